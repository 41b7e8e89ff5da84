"""The image, built for real by podman, and containers of it.

Needs podman (with runc), and mmdebstrap for a base without a registry; BASE names another base image
that podman can get, and IMAGE an image that is built already.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
IMAGE = "localhost/tidegauge:e2e"
CA = Path("/etc/ssl/certs/ca-certificates.crt")

# Podman's defaults need systemd and higher limits than a container that runs tests may have.
CONF = """\
[containers]
default_ulimits = ["nofile=8192:8192", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""

Podman = Callable[..., str]


@pytest.fixture(scope="session")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Podman:
    """Runs podman with its arguments and returns what it prints."""
    wanted = ["podman", "runc"] if "BASE" in os.environ else ["podman", "runc", "mmdebstrap"]
    missing = [name for name in wanted if shutil.which(name) is None]
    if missing:
        reason = f"no {', '.join(missing)} on this machine"
        if os.environ.get("CI") == "true" and shutil.which("apt-get"):
            pytest.fail(reason)
        pytest.skip(reason)
    conf = tmp_path_factory.mktemp("podman") / "containers.conf"
    conf.write_text(CONF)

    def run(*arguments: str) -> str:
        done = subprocess.run(
            ["podman", *arguments],
            check=False,
            text=True,
            capture_output=True,
            env=os.environ | {"CONTAINERS_CONF": str(conf)},
        )
        assert done.returncode == 0, (
            f"podman {' '.join(arguments)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
        return done.stdout.strip()

    return run


@pytest.fixture(scope="session")
def base(podman: Podman, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image with Python to build upon: this machine's own Debian release, made once."""
    if "BASE" in os.environ:
        return os.environ["BASE"]
    release = platform.freedesktop_os_release()["VERSION_CODENAME"]
    name = f"localhost/tidegauge-base:{release}"
    if name not in podman("images", "--format", "{{.Repository}}:{{.Tag}}").splitlines():
        packages = "--include=python3,python3-venv,ca-certificates,binutils"
        archive = tmp_path_factory.mktemp("base") / "base.tar"
        subprocess.run(["mmdebstrap", "--variant=minbase", packages, release, str(archive)], check=True)
        podman("import", str(archive), name)
    return name


@pytest.fixture(scope="session")
def image(podman: Podman, base: str) -> str:
    if "IMAGE" in os.environ:
        return os.environ["IMAGE"]
    # pip inside the build comes to its index as this machine does.
    trust = ["--volume", f"{CA}:{CA}:ro"] if CA.exists() else []
    podman("build", "--network", "host", *trust, "--build-arg", f"BASE={base}", "--tag", IMAGE, str(ROOT))
    return IMAGE


@pytest.fixture(scope="session")
def python(podman: Podman) -> Callable[..., str]:
    """Runs Python source in a container that is running, and returns what it prints."""
    return lambda container, source, *more: podman("exec", container, "python3", "-c", source, *more)


@pytest.fixture(scope="session")
def answers(python: Callable[..., str]) -> Callable[..., bool]:
    """Whether the source prints that by now, in a container that may not be there yet."""

    def ask(container: str, source: str, wanted: str) -> bool:
        try:
            return python(container, source) == wanted
        except AssertionError:  # nothing listens yet
            return False

    return ask


@pytest.fixture(scope="session")
def mlserver(tool: Callable[[str, str], Path], podman: Podman, base: str) -> Path:
    """MLServer's packages, for the Python of the base image."""
    folder = tool("mlserver", "lib") / "python3.11" / "site-packages"
    version = podman("run", "--rm", base, "python3", "--version")
    if not version.startswith("Python 3.11."):
        pytest.skip(f"MLServer is here for Python 3.11, and the base image has {version}")
    return folder
