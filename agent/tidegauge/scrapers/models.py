"""Which model runs on a GPU, where that can be known.

A setting says so, or the process on the GPU does: its OpenTelemetry variables name the model as its
spans do. A process id counts only where it is certain to mean what NVML means by it. Drivers tell
the host's ids in some containers and the container's in others, so the same number may be another
process here: either this is the host's PID namespace, or the process holds CUDA's device open.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tidegauge.config import GpuModel, IdentityAttributes
from tidegauge.environment import pairs
from tidegauge.metric import Attributes, attributes

HOST_PID_NAMESPACE = "pid:[4026531836]"
"""The kernel gives the first PID namespace this inode always (PROC_PID_INIT_INO in linux/proc_ns.h)."""

REMEMBERED = 1024
"""Processes that are not asked again; most of them have ended when there are so many."""


class Model(NamedTuple):
    """A model's name and version, as spans tell them; the version may be empty."""

    name: str
    version: str

    def attributes(self) -> Attributes:
        """Both as attributes, an empty version left out."""
        return attributes(model=self.name, version=self.version)


class Process(NamedTuple):
    """What is known of a process on a GPU; both empty where it cannot be looked at."""

    executable: str
    model: Model | None


UNKNOWN = Process("", None)


class Models:
    """Tells the model of a GPU from the settings, and that of a process from /proc."""

    def __init__(
        self, settings: Iterable[GpuModel], identity: IdentityAttributes, proc: Path = Path("/proc")
    ) -> None:
        self._settings = {str(one.gpu): Model(one.model, one.version) for one in settings}
        self._identity = identity
        self._proc = proc
        self._seen: dict[tuple[int, str], Process] = {}
        self._host = _link(proc / "self/ns/pid") == HOST_PID_NAMESPACE

    def of_gpu(self, uuid: str, index: int) -> Model | None:
        """The model that the settings put on the GPU with this UUID, or else on that with this index."""
        return self.of_uuid(uuid) or self._settings.get(str(index))

    def of_uuid(self, uuid: str) -> Model | None:
        """The model that the settings put on the GPU or MIG instance with this UUID."""
        return self._settings.get(uuid)

    def of_process(self, pid: int) -> Process:
        """What the process tells of itself; asked once in its life."""
        started = self._started(pid)
        if not started:
            return UNKNOWN
        key = (pid, started)
        if key not in self._seen:
            if len(self._seen) >= REMEMBERED:
                self._seen.clear()
            self._seen[key] = self._look(pid)
        return self._seen[key]

    def _started(self, pid: int) -> str:
        try:
            stat = (self._proc / str(pid) / "stat").read_text()
        except OSError:
            return ""
        # proc(5): field 22, counted behind the name, which may hold spaces and brackets.
        return stat.rpartition(")")[2].split()[19]

    def _look(self, pid: int) -> Process:
        folder = self._proc / str(pid)
        try:
            if not (self._host or _computes(folder)):
                return UNKNOWN
            executable = (folder / "comm").read_text().strip()
        except OSError:
            return UNKNOWN
        try:
            environ = (folder / "environ").read_bytes()
        except OSError:  # another user's process
            return Process(executable, None)
        return Process(executable, self._named(environ))

    def _named(self, environ: bytes) -> Model | None:
        variables = dict(
            line.partition("=")[::2] for line in environ.decode("utf-8", "replace").split("\0") if "=" in line
        )
        try:
            resource = pairs(variables.get("OTEL_RESOURCE_ATTRIBUTES", ""), "OTEL_RESOURCE_ATTRIBUTES")
        except ValueError:
            return None
        if service := variables.get("OTEL_SERVICE_NAME"):
            resource["service.name"] = service
        name = _first(resource, (*self._identity.model, "service.name"))
        return Model(name, _first(resource, (*self._identity.version, "service.version"))) if name else None


def _first(resource: dict[str, str], keys: Iterable[str]) -> str:
    return next((resource[key] for key in keys if resource.get(key)), "")


def _computes(folder: Path) -> bool:
    # Every CUDA process has it, and none that only reads NVML.
    return any(_link(one).startswith("/dev/nvidia-uvm") for one in (folder / "fd").iterdir())


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
