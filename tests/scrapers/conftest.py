"""The C library that stands in for NVML, compiled once, and a way to tell it what to answer."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest

from tidegauge.scrapers import table

SOURCE = Path(__file__).with_name("nvml_stub.c")
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the compiled stub, as LD_LIBRARY_PATH would have it."""
    if COMPILER is None:
        pytest.skip("no C compiler (cc, gcc or clang) to build the NVML stub with")
    folder = tmp_path_factory.mktemp("nvml")
    target = folder / "libnvidia-ml.so.1"
    flags = ("-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1")
    subprocess.run([COMPILER, *flags, "-o", str(target), str(SOURCE)], check=True)
    return folder


class Stub:
    """The stub, loaded into this process, under the real bindings."""

    def __init__(self, library: Path, folder: Path) -> None:
        self.library = library
        self.environ = {"NVML_STUB": str(folder / "script"), "NVML_STUB_CALLS": str(folder / "calls")}
        self._script = folder / "script"
        self._calls = folder / "calls"
        self.script()
        self._calls.touch()

    def script(self, *lines: str) -> None:
        """Tell it what to do from now on."""
        new = self._script.with_suffix(".new")
        new.write_text("\n".join(lines))
        new.replace(self._script)

    def calls(self) -> Counter[str]:
        """The calls so far, as `CALL GPU`."""
        return Counter(self._calls.read_text().splitlines())


@pytest.fixture
def stub(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bindings: None) -> Stub:
    """The bindings over the stub, until the test ends."""
    folder = tmp_path / "stub"
    folder.mkdir()
    made = Stub(library, folder)
    for name, value in made.environ.items():
        monkeypatch.setenv(name, value)
    table.install(ctypes.CDLL(str(library / "libnvidia-ml.so.1")))
    return made


@pytest.fixture
def bindings() -> Iterator[None]:
    """Leaves the bindings without a library again, as they were."""
    yield
    table.install(None)
    assert pynvml._nvmlLib_refcount == 0, "NVML was left open"
