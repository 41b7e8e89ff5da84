"""How busy a GPU is, as the driver samples it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pynvml

from tidegauge.scrapers.family import Sample
from tidegauge.scrapers.reading import Probe, Reading


def readings() -> tuple[Reading, ...]:
    """Utilisation of the GPU, its memory, encoder and decoder, and the performance state."""
    return (
        Reading(_utilization),
        Reading(_engine("encoder", pynvml.nvmlDeviceGetEncoderUtilization)),
        Reading(_engine("decoder", pynvml.nvmlDeviceGetDecoderUtilization)),
        Reading(_performance_state),
    )


def _busy(task: str, percent: float) -> Sample:
    return Sample("hw.gpu.utilization", (("hw.gpu.task", task),), percent / 100)


def _utilization(handle: Any) -> list[Sample]:
    percent = pynvml.nvmlDeviceGetUtilizationRates(handle)
    return [_busy("general", percent.gpu), _busy("memory", percent.memory)]


def _engine(task: str, ask: Callable[[Any], list[int]]) -> Probe:
    def read(handle: Any) -> list[Sample]:
        percent, _period_us = ask(handle)
        return [_busy(task, percent)]

    return read


def _performance_state(handle: Any) -> list[Sample]:
    state = pynvml.nvmlDeviceGetPerformanceState(handle)
    if state == pynvml.NVML_PSTATE_UNKNOWN:
        return []
    return [Sample("hw.gpu.performance_state", (), float(state))]
