"""Puts together the root file system of the image: what the agent opens, and nothing else.

    python3 rootfs.py slim VENV          take out of the virtual environment what no run needs
    python3 rootfs.py assemble VENV TO   fill TO/system, TO/packages and TO/agent, a layer each

Run while the image is built, by the base image's interpreter, on its standard library alone. Copied are
the interpreter, its library, and the shared objects that `ldd` names; no shell, no package manager and no
tool comes along. Debian's packages that files were taken from are recorded where scanners look for them.
"""

from __future__ import annotations

import compileall
import itertools
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

import sbom

NEEDLESS = (
    # Only tests, compilers and type checkers open these.
    *("**/tests", "pyarrow/include", "pyarrow/src", "numpy/_core/include", "numpy/distutils", "numba/cuda"),
    *("**/*.pxd", "**/*.pyx", "**/*.pyi", "**/*.pxi", "**/*.h", "**/*.hpp", "**/*.c", "**/*.cpp", "**/*.a"),
    # The agent serves Flight through gRPC.
    *("pyarrow/libarrow_flight.so*", "pyarrow/_flight.*.so", "pyarrow/libarrow_python_flight.so*"),
)
"""Below site-packages."""

UNUSED = (
    *("test", "idlelib", "tkinter", "_tkinter.*", "turtledemo", "turtle.py", "lib2to3", "pydoc_data"),
    *("ensurepip", "venv", "config-*", "_test*.so", "__pycache__", "site-packages", "dist-packages"),
    *("curses", "_curses*.so", "readline.*.so", "sqlite3", "_sqlite3.*.so", "dbm", "_dbm.*.so", "_gdbm.*.so"),
    *("nis.*.so", "ossaudiodev.*.so"),
)
"""Of Python's own library: what draws, teaches, installs or tests, and what brings libraries for databases,
terminals and Kerberos along."""

FILES = {
    "etc/passwd": "root:x:0:0::/:/none\ntidegauge:x:65532:65532::/:/none\n",
    "etc/group": "root:x:0:\ntidegauge:x:65532:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}


def main() -> None:
    action, venv, *to = sys.argv[1:]
    if action == "slim":
        slim(site_packages(Path(venv)))
    else:
        assemble(Path(venv), *map(Path, to))


def site_packages(venv: Path) -> Path:
    [found] = venv.glob("lib/python3.*/site-packages")
    return found


def slim(packages: Path) -> None:
    """Delete what `NEEDLESS` names, symbol tables, and second copies of a library."""
    for path in [path for pattern in NEEDLESS for path in packages.glob(pattern)]:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    # Libraries that wheels bring in *.libs were edited there, and strip would leave them misaligned.
    objects = sorted(path for path in elves([packages]) if not path.parent.name.endswith(".libs"))
    run("strip", "--strip-unneeded", *map(str, objects))
    for shorter, longer in itertools.pairwise(objects):
        if longer.name.startswith(shorter.name + ".") and shorter.read_bytes() == longer.read_bytes():
            shorter.unlink()
            shorter.symlink_to(longer.name)


def assemble(venv: Path, to: Path) -> None:
    """Fill the layers, those that change least first."""
    system, packages, agent = (to / name for name in ("system", "packages", "agent"))
    taken = set(take_python(venv, system))
    taken |= set(take_libraries(venv, system))
    owners = record_owners(taken, system)
    for name, text in FILES.items():
        write(system / name, text)
    shutil.copytree(venv, below(packages, venv), symlinks=True)
    for path in [*site_packages(venv).glob("tidegauge*"), venv / "kernels", venv / "bin" / "tidegauge"]:
        below(agent, path).parent.mkdir(parents=True, exist_ok=True)
        below(packages, path).rename(below(agent, path))
    place = below(agent, venv)
    write(place / "sbom.spdx.json", sbom.document(site_packages(venv), owners))
    write(place / "sizes.txt", sizes(to, venv))
    print((place / "sizes.txt").read_text())


def take_python(venv: Path, root: Path) -> Iterator[Path]:
    """The interpreter under each name that leads to it, its library compiled, and certificates."""
    path = venv / "bin" / "python"
    while path.is_symlink():
        target = path.parent / path.readlink()
        if venv not in path.parents:
            link(real(path), path.readlink(), root)
        path = target
    yield copy(path, root)
    library = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(library, below(root, library), ignore=shutil.ignore_patterns(*UNUSED))
    compileall.compile_dir(
        below(root, library),
        quiet=1,
        stripdir=str(root),
        prependdir="/",
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    yield from library.glob("*.py")
    for name in ("/etc/ssl/certs/ca-certificates.crt", "/etc/os-release", "/etc/debian_version"):
        if Path(name).exists():
            yield copy(Path(name), root)


def take_libraries(venv: Path, root: Path) -> Iterator[Path]:
    """What the dynamic linker would load, under the names that it looks for."""
    for top in ("bin", "lib", "lib64"):
        if Path("/", top).is_symlink():
            link(Path("/", top), Path("/", top).readlink(), root)
    for name in sorted(linked([root, venv])):
        if venv not in Path(name).parents:
            yield copy(Path(name), root)
    # An interpreter in /usr/local has its library there, where only the linker's cache finds it.
    for path in [Path("/etc/ld.so.conf"), *Path("/etc/ld.so.conf.d").glob("*.conf")]:
        copy(path, root)
    run("ldconfig", "-r", str(root))


def linked(places: Iterable[Path]) -> set[str]:
    found: set[str] = set()
    for path in elves(places):
        # Modules of the standard library find theirs wherever they lie.
        found |= set(re.findall(r"(/\S+) \(0x", run("ldd", str(path), check=False)))
    return found


def elves(places: Iterable[Path]) -> Iterator[Path]:
    """Programs and shared objects at or below these places, not those that are links."""
    for place in places:
        for path in place.rglob("*") if place.is_dir() else [place]:
            if path.is_file() and not path.is_symlink():
                with path.open("rb") as file:
                    if file.read(4) == b"\x7fELF":
                        yield path


def record_owners(files: Iterable[Path], root: Path) -> list[sbom.Part]:
    """The Debian packages that own these files; their status and licences are kept as scanners expect."""
    # dpkg may know a file by its name from before /lib became /usr/lib.
    names = {str(name) for path in files for name in (path, Path("/", *path.parts[2:]))}
    listing = run("dpkg", "--search", *names, check=False)
    found = []
    for package in sorted(set(re.findall(r"^([^\s:,]+(?::\w+)?): /", listing, re.M))):
        status = run("dpkg", "--status", package)
        fields = dict(re.findall(r"^(Package|Version|Architecture): (.*)$", status, re.M))
        name = fields["Package"]
        write(root / "var/lib/dpkg/status.d" / name, status)
        licence = Path("/usr/share/doc", name, "copyright")
        if licence.exists():
            copy(licence, root)
        found.append(sbom.debian(name, fields["Version"], fields["Architecture"]))
    return found


def sizes(to: Path, venv: Path) -> str:
    """Megabytes of each part, the largest first."""
    packages = site_packages(venv)
    parts: dict[str, int] = {}
    for path in to.rglob("*"):
        if path.is_file() and not path.is_symlink():
            inside = Path("/", *path.relative_to(to).parts[1:])
            part = "tidegauge"
            if packages in inside.parents:
                part = re.sub(r"\.libs$|-.*\.dist-info$", "", inside.relative_to(packages).parts[0])
            elif venv / "kernels" in inside.parents:
                part = "kernels"
            elif venv not in inside.parents:
                part = "python" if "python" in str(inside) else "system libraries"
            parts[part] = parts.get(part, 0) + path.stat().st_size
    large = {part: size for part, size in parts.items() if size >= 1e6}
    large["others"] = sum(parts.values()) - sum(large.values())
    lines = [f"{size / 1e6:7.1f} MB  {part}" for part, size in sorted(large.items(), key=lambda one: -one[1])]
    return "\n".join([*lines, f"{sum(parts.values()) / 1e6:7.1f} MB", ""])


def run(*command: str, check: bool = True) -> str:
    return subprocess.run(command, check=check, stdout=subprocess.PIPE, text=True).stdout


def real(path: Path) -> Path:
    """The path with links in its folder followed, but not its own."""
    return path.parent.resolve() / path.name


def below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def copy(path: Path, root: Path) -> Path:
    """What lies at `path`, also through a link, under that name; returns the file that has it."""
    to = below(root, real(path))
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, to)
    return path.resolve()


def link(path: Path, target: Path, root: Path) -> None:
    below(root, path).parent.mkdir(parents=True, exist_ok=True)
    below(root, path).symlink_to(target)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    main()
