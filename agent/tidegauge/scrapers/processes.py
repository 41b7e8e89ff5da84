"""The processes on a GPU: what memory they hold, how busy they keep it, and which model they serve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pynvml

from tidegauge.identity import OVERFLOW
from tidegauge.metric import Attributes
from tidegauge.scrapers.family import Sample
from tidegauge.scrapers.models import Models

CALLS: tuple[Callable[[Any], list[Any]], ...] = (
    pynvml.nvmlDeviceGetComputeRunningProcesses_v3,
    pynvml.nvmlDeviceGetComputeRunningProcesses_v2,
)
"""The one without a number raises an error of its own where the library has another version."""


class Processes:
    """A probe for the processes that compute on a device, at most `limit` of them by id.

    What is beyond the limit is one series, with the attribute of OVERFLOW.
    """

    def __init__(self, ask: Callable[[Any], list[Any]], models: Models, limit: int) -> None:
        """`ask` is one of CALLS."""
        self._ask = ask
        self._models = models
        self._limit = limit

    def __call__(self, handle: Any) -> list[Sample]:
        """How many there are, the memory of each, largest first, and the models that they name."""
        found = self._ask(handle)
        found.sort(key=lambda one: one.usedGpuMemory or 0, reverse=True)
        samples = [Sample("hw.gpu.processes", (), float(len(found)))]
        models = set()
        for one in found[: self._limit]:
            known = self._models.of_process(one.pid)
            attributes: Attributes = (("process.pid", str(one.pid)),)
            if known.executable:
                attributes += (("process.executable.name", known.executable),)
            if known.model is not None:
                models.add(known.model)
                attributes += known.model.attributes()
            if one.usedGpuMemory is not None:
                samples.append(Sample("hw.gpu.process.memory.usage", attributes, float(one.usedGpuMemory)))
        if beyond := [one.usedGpuMemory for one in found[self._limit :] if one.usedGpuMemory is not None]:
            samples.append(Sample("hw.gpu.process.memory.usage", OVERFLOW, float(sum(beyond))))
        return samples + [
            Sample("hw.gpu.model", (*model.attributes(), ("source", "process")), 1.0)
            for model in sorted(models)
        ]


class ProcessUtilization:
    """A probe for what each process made of the time since the poll before.

    The driver may tell other process ids here than in the list of processes (560.35 did in containers),
    so these carry nothing but the id.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._latest_us = 0

    def __call__(self, handle: Any) -> list[Sample]:
        """Mean utilisation of SMs and memory by process, busiest first."""
        try:
            found = pynvml.nvmlDeviceGetProcessUtilization(handle, self._latest_us)
        except pynvml.NVMLError_NotFound:  # nothing new
            return []
        # Slots that were not filled carry no time.
        found = [one for one in found if one.timeStamp > self._latest_us]
        self._latest_us = max((one.timeStamp for one in found), default=self._latest_us)
        by_pid: dict[int, list[Any]] = {}
        for one in found:
            by_pid.setdefault(one.pid, []).append(one)
        busiest = sorted(by_pid, key=lambda pid: -sum(one.smUtil for one in by_pid[pid]))
        samples = []
        for pid in busiest[: self._limit]:
            ones = by_pid[pid]
            for task, percents in (
                ("general", [one.smUtil for one in ones]),
                ("memory", [one.memUtil for one in ones]),
            ):
                attributes = (("process.pid", str(pid)), ("hw.gpu.task", task))
                ratio = sum(percents) / len(percents) / 100
                samples.append(Sample("hw.gpu.process.utilization", attributes, ratio))
        return samples
