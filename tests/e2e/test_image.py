"""The image, built for real and run as a hardened pod would: read-only root, no privileges, no network.

Needs podman (with runc), and mmdebstrap for a base without a registry; BASE names another base image
that podman can get.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
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

HARDENED = (
    *("--network", "none", "--read-only", "--read-only-tmpfs=false"),
    *("--cap-drop", "all", "--security-opt", "no-new-privileges"),
)

KERNELS = """
import gc, json
import tidegauge.app
from numba.core.dispatcher import Dispatcher
kernels = [k for k in gc.get_objects() if isinstance(k, Dispatcher)]
print(json.dumps({
    "loaded": sum(sum(k.stats.cache_hits.values()) for k in kernels),
    "compiled": sum(sum(k.stats.cache_misses.values()) for k in kernels),
}))
"""

READY = "from urllib.request import urlopen; print(urlopen('http://127.0.0.1:9464/readyz').status)"

# A record batch of its own, so that kernels run and not only load.
RECORDS = """
import json
import pyarrow as pa
from pyarrow import flight
batch = pa.record_batch({"x": [float(i) for i in range(4096)], "c": ["a", "b"] * 2048})
client = flight.connect("grpc://127.0.0.1:4317")
writer, answers = client.do_put(flight.FlightDescriptor.for_path("records", "m", "1"), batch.schema)
for _ in range(3):
    writer.write_batch(batch)
writer.done_writing()
print(json.dumps([json.loads(answers.read().to_pybytes())["accepted_rows"] for _ in range(3)]))
"""

FOLDED = """
from urllib.request import urlopen
lines = urlopen("http://127.0.0.1:9464/metrics").read().decode().splitlines()
print(any(line.startswith("tidegauge_folded_total") and line.endswith(" 12288.0") for line in lines))
"""

Podman = Callable[..., str]


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def image(podman: Podman, tmp_path_factory: pytest.TempPathFactory) -> str:
    base = os.environ.get("BASE") or debian(podman, tmp_path_factory.mktemp("base"))
    # pip inside the build comes to its index as this machine does.
    trust = ["--volume", f"{CA}:{CA}:ro"] if CA.exists() else []
    podman("build", "--network", "host", *trust, "--build-arg", f"BASE={base}", "--tag", IMAGE, str(ROOT))
    return IMAGE


def debian(podman: Podman, folder: Path) -> str:
    """A base image of this machine's own Debian release; made once."""
    release = platform.freedesktop_os_release()["VERSION_CODENAME"]
    name = f"localhost/tidegauge-base:{release}"
    if name not in podman("images", "--format", "{{.Repository}}:{{.Tag}}").splitlines():
        packages = "--include=python3,python3-venv,ca-certificates"
        archive = folder / "base.tar"
        subprocess.run(["mmdebstrap", "--variant=minbase", packages, release, str(archive)], check=True)
        podman("import", str(archive), name)
    return name


@pytest.fixture
def container(podman: Podman, image: str) -> Iterator[str]:
    """A hardened one, running."""
    started = podman("run", "--detach", *HARDENED, "--env", "NUMBA_DEBUG_CACHE=1", image)
    yield started
    podman("rm", "--force", started)


def test_kernels_are_loaded_and_none_is_compiled(podman: Podman, image: str) -> None:
    counts = json.loads(podman("run", "--rm", *HARDENED, "--entrypoint", "python", image, "-c", KERNELS))
    assert counts["loaded"] > 40
    assert counts["compiled"] == 0


def test_it_serves_without_a_place_to_write(
    podman: Podman, container: str, until: Callable[[Callable[[], bool]], bool]
) -> None:
    def python(source: str) -> str:
        return podman("exec", container, "python", "-c", source)

    def answers(source: str, wanted: str) -> bool:
        try:
            return python(source) == wanted
        except AssertionError:  # nothing listens yet
            return False

    until(lambda: answers(READY, "200"))
    assert podman("exec", container, "id", "-u") == "65532"
    assert json.loads(python(RECORDS)) == [4096, 4096, 4096]
    until(lambda: answers(FOLDED, "True"))
    podman("stop", "--time", "15", container)
    assert podman("inspect", "--format", "{{.State.ExitCode}}", container) == "0"
    log = podman("logs", container)
    assert "[cache] data loaded from" in log
    assert "[cache] data saved" not in log
