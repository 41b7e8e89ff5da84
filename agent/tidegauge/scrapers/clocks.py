"""A GPU's clocks, what holds them down, and for how long it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pynvml

from tidegauge.scrapers.family import Sample
from tidegauge.scrapers.reading import UNSUPPORTED, Probe, Reading

DOMAINS = {
    "graphics": pynvml.NVML_CLOCK_GRAPHICS,
    "sm": pynvml.NVML_CLOCK_SM,
    "memory": pynvml.NVML_CLOCK_MEM,
    "video": pynvml.NVML_CLOCK_VIDEO,
}

REASONS = {
    "idle": 0x1,
    "application_setting": 0x2,
    "power_cap": 0x4,
    "hw_slowdown": 0x8,
    "sync_boost": 0x10,
    "sw_thermal": 0x20,
    "hw_thermal": 0x40,
    "power_brake": 0x80,
    "display_setting": 0x100,
    "board_limit": 0x200,
    "reliability": 0x400,
}
"""Bits of nvmlClocksEventReason*, the last two of nvmlClocksThrottleReason*; several are set at once."""

POLICIES = {
    "power_cap": pynvml.NVML_PERF_POLICY_POWER,
    "thermal": pynvml.NVML_PERF_POLICY_THERMAL,
    "sync_boost": pynvml.NVML_PERF_POLICY_SYNC_BOOST,
    "board_limit": pynvml.NVML_PERF_POLICY_BOARD_LIMIT,
    "low_utilization": pynvml.NVML_PERF_POLICY_LOW_UTILIZATION,
    "reliability": pynvml.NVML_PERF_POLICY_RELIABILITY,
}
"""Policies that NVML accounts for. Field values would tell hardware and software apart, but their
numbers (251 or 269 …) differ between drivers, so asking for them may answer something else."""


def readings() -> tuple[Reading, ...]:
    """Clocks and their limits, the reasons of this moment, and the time of each policy."""
    return (
        *(Reading(_clock("hw.gpu.clock", name, number)) for name, number in DOMAINS.items()),
        *(Reading(_clock("hw.gpu.clock.limit", name, number)) for name, number in DOMAINS.items()),
        Reading(
            Reasons(
                pynvml.nvmlDeviceGetSupportedClocksEventReasons,
                pynvml.nvmlDeviceGetCurrentClocksEventReasons,
            ),
            Reasons(
                pynvml.nvmlDeviceGetSupportedClocksThrottleReasons,
                pynvml.nvmlDeviceGetCurrentClocksThrottleReasons,
            ),
        ),
        *(Reading(_held_time(name, number)) for name, number in POLICIES.items()),
    )


class Reasons:
    """Why the clocks are not at their highest, of the reasons that the GPU can have."""

    def __init__(self, supported: Callable[[Any], int], current: Callable[[Any], int]) -> None:
        self._supported = supported
        self._current = current
        self._mask: int | None = None

    def __call__(self, handle: Any) -> list[Sample]:
        """A sample for each of REASONS that the GPU supports."""
        current = self._current(handle)
        if self._mask is None:
            try:
                self._mask = self._supported(handle)
            except UNSUPPORTED:
                self._mask = sum(REASONS.values())
        return [
            Sample("hw.gpu.clock.held", (("hw.gpu.clock.reason", name),), float(bool(current & bit)))
            for name, bit in REASONS.items()
            if self._mask & bit
        ]


def _clock(family: str, domain: str, number: int) -> Probe:
    ask = pynvml.nvmlDeviceGetMaxClockInfo if family.endswith("limit") else pynvml.nvmlDeviceGetClockInfo

    def read(handle: Any) -> list[Sample]:
        return [Sample(family, (("hw.gpu.clock.domain", domain),), ask(handle, number) * 1e6)]

    return read


def _held_time(policy: str, number: int) -> Probe:
    def read(handle: Any) -> list[Sample]:
        held_s = pynvml.nvmlDeviceGetViolationStatus(handle, number).violationTime / 1e9
        return [Sample("hw.gpu.clock.held.time", (("hw.gpu.clock.reason", policy),), held_s)]

    return read
