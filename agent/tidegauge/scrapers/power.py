"""What a GPU draws, how hot it is, and how much of either it may."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pynvml

from tidegauge.scrapers.family import Sample
from tidegauge.scrapers.fields import Fields
from tidegauge.scrapers.reading import Probe, Reading


def readings() -> tuple[Reading, ...]:
    """Temperatures, power, energy, and their limits."""
    return (
        Reading(_temperature, _temperature_before_13),
        Reading(_temperature_limit("throttled", pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)),
        Reading(_temperature_limit("high.critical", pynvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN)),
        Reading(_margin),
        Reading(Fields({(pynvml.NVML_FI_DEV_MEMORY_TEMP, 0): ("hw.gpu.memory.temperature", (), 1.0)})),
        Reading(_power),
        Reading(_power_limit("enforced", pynvml.nvmlDeviceGetEnforcedPowerLimit)),
        Reading(_power_limit("default", pynvml.nvmlDeviceGetPowerManagementDefaultLimit)),
        Reading(_energy),
    )


def _temperature(handle: Any) -> list[Sample]:
    celsius = pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU)
    return [Sample("hw.temperature", (), float(celsius))]


def _temperature_before_13(handle: Any) -> list[Sample]:
    celsius = pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
    return [Sample("hw.temperature", (), float(celsius))]


def _temperature_limit(kind: str, threshold: int) -> Probe:
    def read(handle: Any) -> list[Sample]:
        celsius = pynvml.nvmlDeviceGetTemperatureThreshold(handle, threshold)
        return [Sample("hw.temperature.limit", (("hw.limit_type", kind),), float(celsius))]

    return read


def _margin(handle: Any) -> list[Sample]:
    return [Sample("hw.gpu.temperature.margin", (), float(pynvml.nvmlDeviceGetMarginTemperature(handle)))]


def _power(handle: Any) -> list[Sample]:
    return [Sample("hw.power", (), pynvml.nvmlDeviceGetPowerUsage(handle) / 1000)]


def _power_limit(kind: str, ask: Callable[[Any], int]) -> Probe:
    def read(handle: Any) -> list[Sample]:
        return [Sample("hw.power.limit", (("hw.limit_type", kind),), ask(handle) / 1000)]

    return read


def _energy(handle: Any) -> list[Sample]:
    return [Sample("hw.energy", (), pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000)]
