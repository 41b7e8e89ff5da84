"""The memory of a GPU or of a MIG instance."""

from __future__ import annotations

from typing import Any

import pynvml

from tidegauge.scrapers.family import Sample
from tidegauge.scrapers.reading import Reading


def readings() -> tuple[Reading, ...]:
    """Memory in use, free and reserved."""
    return (Reading(_memory, _memory_v1),)


def mappings() -> tuple[Reading, ...]:
    """The BAR1 space, which only a whole GPU has."""
    return (Reading(_bar1),)


def _memory(handle: Any) -> list[Sample]:
    # nvml.h says both that `used` contains `reserved` and that it does not: derive it.
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    used = memory.total - memory.free - memory.reserved
    return [
        *_samples(used, memory.free, memory.total),
        Sample("hw.gpu.memory.reserved", (), float(memory.reserved)),
    ]


def _memory_v1(handle: Any) -> list[Sample]:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return _samples(memory.used, memory.free, memory.total)


def _samples(used: int, free: int, total: int) -> list[Sample]:
    samples = [
        Sample("hw.gpu.memory.usage", (), float(used)),
        Sample("hw.gpu.memory.limit", (), float(total)),
        Sample("hw.gpu.memory.free", (), float(free)),
    ]
    if total:
        samples.append(Sample("hw.gpu.memory.utilization", (), used / total))
    return samples


def _bar1(handle: Any) -> list[Sample]:
    memory = pynvml.nvmlDeviceGetBAR1MemoryInfo(handle)
    return [
        Sample("hw.gpu.bar1.usage", (), float(memory.bar1Used)),
        Sample("hw.gpu.bar1.limit", (), float(memory.bar1Total)),
    ]
