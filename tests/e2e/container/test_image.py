"""The image as a hardened pod would run it: read-only root, no privileges, no network."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

HARDENED = (
    *("--network", "none", "--read-only", "--read-only-tmpfs=false"),
    *("--cap-drop", "all", "--security-opt", "no-new-privileges"),
)

KERNELS = """
import gc, json
import tidegauge.app
from numba.core.dispatcher import Dispatcher
from tidegauge.stats.kernel import Stored
kernels = [k for k in gc.get_objects() if isinstance(k, Dispatcher)]
print(json.dumps({
    "kept": sum(isinstance(k._cache, Stored) and not k.overloads for k in kernels),
    "loaded": sum(sum(k.stats.cache_hits.values()) for k in kernels),
    "compiled": sum(sum(k.stats.cache_misses.values()) for k in kernels),
}))
"""

READY = "from urllib.request import urlopen; print(urlopen('http://127.0.0.1:9464/readyz').status)"

CATCHES = """
import re
caught = int(re.search(r"SigCgt:\\s+(\\w+)", open("/proc/1/status").read())[1], 16)
print(bool(caught >> 14 & 1))
"""

# A record batch of its own, so that kernels run and not only load. The image has no Flight client.
RECORDS = """
import json
import grpc
import pyarrow as pa

def field(tag, content):
    size, length = len(content), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return tag + length + bytes([size]) + content

batch = pa.record_batch({"x": [float(i) for i in range(4096)], "c": ["a", "b"] * 2048})
sink = pa.BufferOutputStream()
with pa.ipc.new_stream(sink, batch.schema) as writer:
    for _ in range(3):
        writer.write_batch(batch)
path = field(b"\\x0a", b"\\x08\\x01" + b"".join(field(b"\\x1a", part) for part in (b"records", b"m", b"1")))
messages = [
    field(b"\\x12", message.metadata.to_pybytes())
    + (field(b"\\xc2\\x3e", message.body.to_pybytes()) if message.body else b"")
    for message in pa.ipc.MessageReader.open_stream(sink.getvalue())
]
messages[0] = path + messages[0]
put = grpc.insecure_channel("127.0.0.1:4317").stream_stream("/arrow.flight.protocol.FlightService/DoPut")
print([json.loads(answer[answer.index(b"{"):])["accepted_rows"] for answer in put(iter(messages))])
"""

FOLDED = """
from urllib.request import urlopen
lines = urlopen("http://127.0.0.1:9464/metrics").read().decode().splitlines()
print(any(line.startswith("tidegauge_folded_total") and line.endswith(" 12288.0") for line in lines))
"""

PROGRAMS = """
from pathlib import Path
folders = [Path(top, name) for top in ("/", "/usr", "/usr/local") for name in ("bin", "sbin")]
print(*sorted({path.name for folder in folders if folder.is_dir() for path in folder.iterdir()}))
"""

PRIVILEGED = """
from pathlib import Path
found = [path for top in ("/etc", "/opt", "/usr", "/var") for path in Path(top).rglob("*")]
print([str(path) for path in found if not path.is_symlink() and path.stat().st_mode & 0o6002])
"""

# Every module of the standard library that is there finds its shared libraries, and so do the packages'.
IMPORTS = """
import importlib, sys, sysconfig
from pathlib import Path
names = {p.name.partition(".")[0] for p in Path(sysconfig.get_path("stdlib"), "lib-dynload").glob("*.so")}
names |= {"pyarrow.parquet", "pyarrow.fs", "pyarrow.csv", "pyarrow.json", "pyarrow.orc", "pyarrow.dataset"}
names |= {"numpy.linalg", "numpy.random", "numba", "uvloop", "grpc", "aiohttp", "yaml", "pynvml"}
names |= {"rich.table", "tidegauge.cli.sources", "tidegauge.backtest.replay"}
failed = []
for name in names:
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed.append(f"{name}: {error}")
print(failed)
"""

Podman = Callable[..., str]


@pytest.fixture
def container(podman: Podman, image: str) -> Iterator[str]:
    """A hardened one, running."""
    started = podman("run", "--detach", *HARDENED, "--env", "NUMBA_DEBUG_CACHE=1", image)
    yield started
    podman("rm", "--force", started)


@pytest.fixture(scope="module")
def inside(podman: Podman, image: str) -> Callable[[str], str]:
    """Runs Python source in a hardened container of its own."""
    return lambda source: podman("run", "--rm", *HARDENED, "--entrypoint", "python", image, "-c", source)


def test_kernels_are_loaded_and_none_is_compiled(inside: Callable[[str], str]) -> None:
    counts = json.loads(inside(KERNELS))
    assert counts["kept"] > 40
    assert counts["loaded"] == 0  # until they are called
    assert counts["compiled"] == 0


def test_the_interpreter_is_the_only_program(inside: Callable[[str], str]) -> None:
    assert all(re.fullmatch(r"python3?(\.\d+)?", name) for name in inside(PROGRAMS).split())


def test_no_file_gives_privileges(inside: Callable[[str], str]) -> None:
    assert inside(PRIVILEGED) == "[]"


def test_what_is_there_finds_its_libraries(inside: Callable[[str], str]) -> None:
    assert inside(IMPORTS) == "[]"


def test_labels_say_what_it_is(podman: Podman, image: str) -> None:
    labels = json.loads(podman("image", "inspect", "--format", "{{json .Labels}}", image))
    assert labels["org.opencontainers.image.title"] == "tidegauge"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert podman("run", "--rm", *HARDENED, image, "version").endswith(
        labels["org.opencontainers.image.version"]
    )


def test_the_bill_of_materials_names_every_package(podman: Podman, inside: Callable[[str], str]) -> None:
    bill = json.loads(inside("print(open('/opt/tidegauge/sbom.spdx.json').read())"))
    assert bill["spdxVersion"] == "SPDX-2.3"
    installed = "from importlib.metadata import distributions as d; print(*[x.metadata['Name'] for x in d()])"
    names = {re.sub(r"[-_.]+", "-", name).lower() for name in inside(installed).split()}
    listed = {package["name"] for package in bill["packages"]}
    assert names | {"cpython", "libc6"} <= listed
    identifiers = [package["SPDXID"] for package in bill["packages"]]
    assert len(identifiers) == len(set(identifiers))
    related = {relation["relatedSpdxElement"] for relation in bill["relationships"]}
    assert set(identifiers) == related
    # Scanners look here for Debian's.
    folder = "import os; print(*os.listdir('/var/lib/dpkg/status.d'))"
    assert set(inside(folder).split()) <= listed


def test_the_bill_of_materials_is_valid_spdx(
    tool: Callable[[str, str], Path], inside: Callable[[str], str], tmp_path: Path
) -> None:
    bill = tmp_path / "sbom.spdx.json"
    bill.write_text(inside("print(open('/opt/tidegauge/sbom.spdx.json').read())"))
    command = [str(tool("spdx-tools", "bin/python")), "-m", "spdx_tools.spdx.clitools.pyspdxtools"]
    done = subprocess.run([*command, "--infile", str(bill)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_its_size_is_told_by_parts(
    podman: Podman, image: str, inside: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = inside("print(open('/opt/tidegauge/sizes.txt').read())")
    with capsys.disabled():
        print(f"\n{sizes}")
    [*parts, whole] = [float(size) for size in re.findall(r"([\d.]+) MB", sizes)]
    assert sum(parts) == pytest.approx(whole, abs=0.1 * len(parts))
    # Names, links and folders come on top.
    stored = int(podman("image", "inspect", "--format", "{{.Size}}", image)) / 1e6
    assert stored == pytest.approx(whole, rel=0.03)


def test_a_start_that_is_called_off_ends_at_once(
    podman: Podman, image: str, answers: Callable[..., bool], until: Callable[[Callable[[], bool]], bool]
) -> None:
    """PID 1 gets no signal that it has no handler for, and has to have one before the agent has."""
    container = podman("run", "--detach", *HARDENED, "--cpus", "0.1", image)
    try:
        until(lambda: answers(container, CATCHES, "True"))
        podman("stop", "--time", "60", container)
        assert podman("inspect", "--format", "{{.State.ExitCode}}", container) == "143"
    finally:
        podman("rm", "--force", container)


def test_it_serves_without_a_place_to_write(
    podman: Podman,
    container: str,
    until: Callable[[Callable[[], bool]], bool],
    python: Callable[..., str],
    answers: Callable[..., bool],
) -> None:
    until(lambda: answers(container, READY, "200"))
    assert python(container, "import os; print(os.getuid(), os.getgid())") == "65532 65532"
    assert json.loads(python(container, RECORDS)) == [4096, 4096, 4096]
    until(lambda: answers(container, FOLDED, "True"))
    podman("stop", "--time", "15", container)
    assert podman("inspect", "--format", "{{.State.ExitCode}}", container) == "0"
    log = podman("logs", container)
    assert "[cache] data loaded from" in log
    assert "[cache] data saved" not in log
