"""What NVML tells about one GPU, in OpenTelemetry's names and base units.

Names and attributes follow the semantic conventions for GPU hardware (`hw.gpu.*`, `hw.*` with
`hw.type` gpu). The clocks have no convention yet: `hw.gpu.clock` with `hw.gpu.clock.domain`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import pynvml

from tidegauge.metric import Attributes, Kind

log = logging.getLogger(__name__)

UNSUPPORTED = (
    pynvml.NVMLError_NotSupported,
    pynvml.NVMLError_FunctionNotFound,
    pynvml.NVMLError_NoPermission,
    pynvml.NVMLError_InvalidArgument,
    pynvml.NVMLError_ArgumentVersionMismatch,
    pynvml.NVMLError_Deprecated,
)
"""Answers that stay the same for as long as the driver does."""

LOST = (
    pynvml.NVMLError_GpuIsLost,
    pynvml.NVMLError_GpuNotFound,
    pynvml.NVMLError_ResetRequired,
    pynvml.NVMLError_DriverNotLoaded,
    pynvml.NVMLError_LibRmVersionMismatch,
    pynvml.NVMLError_Uninitialized,
)
"""Answers after which a GPU says nothing more in this NVML session."""


class Family(NamedTuple):
    """A metric of GPUs: its kind, UCUM unit and description."""

    kind: Kind
    unit: str
    description: str


FAMILIES = {
    "hw.gpu.utilization": Family(
        Kind.GAUGE,
        "1",
        "Share of the driver's last sample period in which a kernel ran (task general) "
        "or device memory was read or written (task memory).",
    ),
    "hw.gpu.memory.usage": Family(Kind.GAUGE, "By", "GPU memory in use, without what the driver reserves."),
    "hw.gpu.memory.limit": Family(Kind.GAUGE, "By", "Size of the GPU memory."),
    "hw.temperature": Family(Kind.GAUGE, "Cel", "Temperature of the GPU die."),
    "hw.power": Family(Kind.GAUGE, "W", "Power drawn by the GPU, averaged over 1 s on most models."),
    "hw.energy": Family(Kind.COUNTER, "J", "Energy consumed since the driver was loaded."),
    "hw.errors": Family(
        Kind.COUNTER, "{error}", "ECC memory errors since the driver was loaded, corrected or uncorrected."
    ),
    "hw.gpu.clock": Family(Kind.GAUGE, "Hz", "Current clock frequency."),
    # A gauge with the conventions' unit 1 would become hw_status_ratio on /metrics.
    "hw.status": Family(
        Kind.GAUGE,
        "",
        "1 for the GPU's present state, 0 for the others: ok; degraded, where a reading failed; "
        "failed, where the driver has lost the GPU.",
    ),
}

STATES = ("ok", "degraded", "failed")


class Sample(NamedTuple):
    """One value of a family of FAMILIES, in its unit."""

    family: str
    attributes: Attributes
    value: float


Probe = Callable[[Any], list[Sample]]


class Gpu:
    """One GPU of an open NVML session, known by its UUID because indices change."""

    def __init__(self, handle: Any, driver_version: str) -> None:
        """Raises pynvml.NVMLError where the GPU does not answer."""
        self._handle = handle
        self._probes = [list(alternatives) for alternatives in PROBES]
        self.uuid: str = pynvml.nvmlDeviceGetUUID(handle)
        self._driver = ("hw.driver_version", driver_version)
        self._attributes: Attributes = (
            ("hw.id", self.uuid),
            ("hw.name", pynvml.nvmlDeviceGetName(handle)),
            ("hw.type", "gpu"),
            ("hw.vendor", "NVIDIA"),
        )

    def read(self) -> list[Sample]:
        """All that it supports, with its state.

        Raises:
            pynvml.NVMLError: one of LOST, where it cannot be read any more.
        """
        samples: list[Sample] = []
        state = "ok"
        for alternatives in self._probes:
            try:
                samples += self._first_supported(alternatives)
            except LOST:
                raise
            except pynvml.NVMLError as error:
                log.debug("GPU %s: %s", self.uuid, error)
                state = "degraded"
        return [
            sample._replace(attributes=self._attributes + sample.attributes) for sample in samples
        ] + self.status(state)

    def status(self, present: str) -> list[Sample]:
        """One sample for each of STATES."""
        # The driver's version stands here alone, so that an upgrade does not rename every series.
        identity = (*self._attributes, self._driver)
        return [
            Sample("hw.status", (*identity, ("hw.state", state)), float(state == present)) for state in STATES
        ]

    def _first_supported(self, alternatives: list[Probe]) -> list[Sample]:
        while alternatives:
            try:
                return alternatives[0](self._handle)
            except UNSUPPORTED:
                del alternatives[0]  # not asked again in this session
        return []


def _utilization(handle: Any) -> list[Sample]:
    percent = pynvml.nvmlDeviceGetUtilizationRates(handle)
    return [
        Sample("hw.gpu.utilization", (("hw.gpu.task", "general"),), percent.gpu / 100),
        Sample("hw.gpu.utilization", (("hw.gpu.task", "memory"),), percent.memory / 100),
    ]


def _memory(handle: Any) -> list[Sample]:
    # nvml.h says both that `used` contains `reserved` and that it does not: derive it.
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    return _memory_samples(memory.total - memory.free - memory.reserved, memory.total)


def _memory_v1(handle: Any) -> list[Sample]:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return _memory_samples(memory.used, memory.total)


def _memory_samples(used: int, total: int) -> list[Sample]:
    return [Sample("hw.gpu.memory.usage", (), float(used)), Sample("hw.gpu.memory.limit", (), float(total))]


def _temperature(handle: Any) -> list[Sample]:
    celsius = pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU)
    return [Sample("hw.temperature", (), float(celsius))]


def _temperature_before_13(handle: Any) -> list[Sample]:
    celsius = pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
    return [Sample("hw.temperature", (), float(celsius))]


def _power(handle: Any) -> list[Sample]:
    return [Sample("hw.power", (), pynvml.nvmlDeviceGetPowerUsage(handle) / 1000)]


def _energy(handle: Any) -> list[Sample]:
    return [Sample("hw.energy", (), pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000)]


def _ecc(kind: str, nvml_kind: int) -> Probe:
    def read(handle: Any) -> list[Sample]:
        count = pynvml.nvmlDeviceGetTotalEccErrors(handle, nvml_kind, pynvml.NVML_VOLATILE_ECC)
        return [Sample("hw.errors", (("error.type", kind),), float(count))]

    return read


def _clock(domain: str, nvml_domain: int) -> Probe:
    def read(handle: Any) -> list[Sample]:
        hertz = pynvml.nvmlDeviceGetClockInfo(handle, nvml_domain) * 1e6
        return [Sample("hw.gpu.clock", (("hw.gpu.clock.domain", domain),), hertz)]

    return read


PROBES: tuple[tuple[Probe, ...], ...] = (
    (_utilization,),
    (_memory, _memory_v1),
    (_temperature, _temperature_before_13),
    (_power,),
    (_energy,),
    (_ecc("corrected", pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),),
    (_ecc("uncorrected", pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),),
    (_clock("graphics", pynvml.NVML_CLOCK_GRAPHICS),),
    (_clock("sm", pynvml.NVML_CLOCK_SM),),
    (_clock("memory", pynvml.NVML_CLOCK_MEM),),
)
"""What is asked of each GPU: for each reading the calls that give it, the preferred one first."""
