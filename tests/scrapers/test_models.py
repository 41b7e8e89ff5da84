"""Which model runs on a GPU: by setting, and by a process that certainly is the one that NVML means."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tidegauge import config, config_file
from tidegauge.config import ConfigError, GpuModel, IdentityAttributes
from tidegauge.scrapers.models import HOST_PID_NAMESPACE, UNKNOWN, Model, Models, Process

SLEEP = (sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()")


class Server:
    """A real process with these variables, seen through a /proc in which it computes on a GPU, or not."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            SLEEP, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it has been loaded: before, the name is still its parent's
        self.pid = self._process.pid
        self.proc = folder
        real, mine = Path(f"/proc/{self.pid}"), folder / str(self.pid)
        (mine / "fd").mkdir(parents=True)
        for name in ("stat", "comm", "environ"):
            (mine / name).symlink_to(real / name)
        (folder / "self/ns").mkdir(parents=True)
        self.namespace("pid:[4026532001]")

    def namespace(self, link: str) -> None:
        path = self.proc / "self/ns/pid"
        path.unlink(missing_ok=True)
        path.symlink_to(link)

    def computes(self) -> None:
        (self.proc / str(self.pid) / "fd/7").symlink_to("/dev/nvidia-uvm")

    def stop(self) -> None:
        self._process.communicate()


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Any]:
    servers = []

    def start(**environ: str) -> Server:
        servers.append(Server(tmp_path, environ))
        return servers[-1]

    yield start
    for one in servers:
        one.stop()


def asked(server: Server) -> Process:
    return Models((), IdentityAttributes(), server.proc).of_process(server.pid)


def test_a_process_that_holds_cuda_names_its_model(started: Any) -> None:
    server = started(OTEL_RESOURCE_ATTRIBUTES="model.name=fraud%20net,model.version=2.1", OTHER="x")
    server.computes()
    found = asked(server)
    assert found.model == Model("fraud net", "2.1")
    assert found.executable.startswith("python")
    assert found.model.attributes() == (("model", "fraud net"), ("version", "2.1"))


def test_a_process_with_the_same_number_is_not_taken_for_it(started: Any) -> None:
    server = started(OTEL_RESOURCE_ATTRIBUTES="model.name=fraud")
    (server.proc / str(server.pid) / "fd/3").symlink_to("/dev/nvidiactl")  # reads NVML, as the agent does
    assert asked(server) == UNKNOWN


def test_on_the_host_every_number_means_what_it_says(started: Any) -> None:
    server = started(OTEL_SERVICE_NAME="scorer")
    assert asked(server) == UNKNOWN
    server.namespace(HOST_PID_NAMESPACE)
    assert asked(server).model == Model("scorer", "")


@pytest.mark.parametrize(
    ("environ", "model"),
    [
        ({}, None),
        ({"OTEL_RESOURCE_ATTRIBUTES": "not pairs"}, None),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=a,service.version=3"}, Model("a", "3")),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=a", "OTEL_SERVICE_NAME": "b"}, Model("b", "")),
        ({"OTEL_RESOURCE_ATTRIBUTES": "model.name=m", "OTEL_SERVICE_NAME": "b"}, Model("m", "")),
        ({"OTEL_RESOURCE_ATTRIBUTES": "gen_ai.request.model=g"}, Model("g", "")),
    ],
    ids=["nothing", "no pairs", "service", "service name", "model", "gen_ai"],
)
def test_the_variables_count_as_they_do_for_spans(
    started: Any, environ: dict[str, str], model: Model | None
) -> None:
    server = started(**environ)
    server.computes()
    assert asked(server).model == model


def test_another_users_environment_cannot_be_read(started: Any) -> None:
    server = started(OTEL_SERVICE_NAME="scorer")
    server.computes()
    path = server.proc / str(server.pid) / "environ"
    path.unlink()
    path.mkdir()  # as root, no permission is refused: this is an OSError too
    assert asked(server).model is None
    assert asked(server).executable


def test_a_process_is_asked_once_and_its_number_anew(started: Any) -> None:
    server = started(OTEL_SERVICE_NAME="scorer")
    server.computes()
    models = Models((), IdentityAttributes(), server.proc)
    assert models.of_process(server.pid).model == Model("scorer", "")
    environ = server.proc / str(server.pid) / "environ"
    environ.unlink()
    environ.write_bytes(b"OTEL_SERVICE_NAME=other\0")
    assert models.of_process(server.pid).model == Model("scorer", "")
    stat = server.proc / str(server.pid) / "stat"
    fields = stat.read_text().rpartition(")")
    stat.unlink()
    later = fields[2].split()
    later[19] = str(int(later[19]) + 1)
    stat.write_text(f"1 (a ) b){' '.join(['', *later])}")
    assert models.of_process(server.pid).model == Model("other", "")


def test_what_is_gone_is_unknown(tmp_path: Path) -> None:
    assert Models((), IdentityAttributes(), tmp_path).of_process(os.getpid()) == UNKNOWN


def test_a_uuid_comes_before_an_index() -> None:
    settings = (GpuModel(gpu=0, model="a"), GpuModel(gpu="GPU-1", model="b", version="2"))
    models = Models(settings, IdentityAttributes())
    assert models.of_gpu("GPU-1", 0) == Model("b", "2")
    assert models.of_gpu("GPU-2", 0) == Model("a", "")
    assert models.of_gpu("GPU-2", 1) is None
    assert models.of_uuid("MIG-1") is None


def test_the_setting_takes_uuids_and_indices(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "scrapers: {nvml: {models: [{gpu: 1, model: a}, {gpu: GPU-1, model: b, version: '2'}]}}"
    )
    loaded = config_file.load(tmp_path / "a.yaml", {})
    assert loaded.scrapers.nvml.models == (
        config.GpuModel(gpu=1, model="a"),
        config.GpuModel(gpu="GPU-1", model="b", version="2"),
    )
    (tmp_path / "b.yaml").write_text("scrapers: {nvml: {models: [{gpu: [1], model: a}, {model: b}]}}")
    with pytest.raises(ConfigError) as caught:
        config_file.load(tmp_path / "b.yaml", {})
    assert [problem.path for problem in caught.value.problems] == [
        "scrapers.nvml.models[0].gpu",
        "scrapers.nvml.models[1].gpu",
    ]
