"""GPM, the performance counters of Hopper and newer: what the units of a GPU did between two samples.

It needs no privilege, unlike DCGM's profiling fields. A MIG instance is sampled through its GPU.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pynvml

from tidegauge.scrapers.family import Sample

UNITS = {
    "graphics": pynvml.NVML_GPM_METRIC_GRAPHICS_UTIL,
    "sm": pynvml.NVML_GPM_METRIC_SM_UTIL,
    "tensor": pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL,
    "tensor_half": pynvml.NVML_GPM_METRIC_HMMA_TENSOR_UTIL,
    "tensor_double": pynvml.NVML_GPM_METRIC_DMMA_TENSOR_UTIL,
    "tensor_integer": pynvml.NVML_GPM_METRIC_IMMA_TENSOR_UTIL,
    "fp64": pynvml.NVML_GPM_METRIC_FP64_UTIL,
    "fp32": pynvml.NVML_GPM_METRIC_FP32_UTIL,
    "fp16": pynvml.NVML_GPM_METRIC_FP16_UTIL,
    "integer": pynvml.NVML_GPM_METRIC_INTEGER_UTIL,
    "memory_bandwidth": pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL,
}
"""`hw.gpu.unit` of `hw.gpu.activity`, each in percent of its peak."""

_WANTED = (*UNITS.values(), pynvml.NVML_GPM_METRIC_SM_OCCUPANCY)
_NAMES = {number: name for name, number in UNITS.items()}


class Gpm:
    """A probe for GPM. The first poll has a sample to compare with only at the next one, and says nothing."""

    def __init__(self, parent: Any = None, instance: int = 0) -> None:
        """`parent` is the GPU's handle where the device is the MIG instance with this id."""
        self._parent = parent
        self._instance = instance
        self._samples: list[Any] = []
        self._has_earlier = False
        self.unsupported = 0

    def __call__(self, handle: Any) -> list[Sample]:
        """Activity since the poll before, and the occupancy of the SMs.

        Raises pynvml.NVMLError_NotSupported before Hopper.
        """
        if not self._samples:
            if not pynvml.nvmlGpmQueryDeviceSupport(self._parent or handle).isSupportedDevice:
                raise pynvml.NVMLError_NotSupported
            self._samples = [pynvml.nvmlGpmSampleAlloc(), pynvml.nvmlGpmSampleAlloc()]
        earlier, later = self._samples
        if not self._has_earlier:
            self._take(handle, earlier)
            self._has_earlier = True
            return []
        self._take(handle, later)
        self._samples.reverse()
        return self._compare(earlier, later)

    def close(self) -> None:
        """Give the samples back, while NVML is open."""
        for sample in self._samples:
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlGpmSampleFree(sample)
        self._samples.clear()
        self._has_earlier = False

    def _take(self, handle: Any, sample: Any) -> None:
        try:
            if self._parent is None:
                pynvml.nvmlGpmSampleGet(handle, sample)
            else:
                pynvml.nvmlGpmMigSampleGet(self._parent, self._instance, sample)
        except pynvml.NVMLError:
            self._has_earlier = False  # the next two that succeed are compared
            raise

    def _compare(self, earlier: Any, later: Any) -> list[Sample]:
        wanted = pynvml.c_nvmlGpmMetricsGet_t(
            version=pynvml.NVML_GPM_METRICS_GET_VERSION,
            numMetrics=len(_WANTED),
            sample1=earlier,
            sample2=later,
        )
        for place, number in enumerate(_WANTED):
            wanted.metrics[place].metricId = number
        pynvml.nvmlGpmMetricsGet(wanted)
        answers = wanted.metrics[: len(_WANTED)]
        self.unsupported = sum(one.nvmlReturn != pynvml.NVML_SUCCESS for one in answers)
        return [
            _sample(one.metricId, one.value / 100) for one in answers if one.nvmlReturn == pynvml.NVML_SUCCESS
        ]


def _sample(number: int, ratio: float) -> Sample:
    if number == pynvml.NVML_GPM_METRIC_SM_OCCUPANCY:
        return Sample("hw.gpu.sm.occupancy", (), ratio)
    return Sample("hw.gpu.activity", (("hw.gpu.unit", _NAMES[number]),), ratio)
