"""What has gone wrong in a GPU's memory: ECC errors, and what was taken out of use for them."""

from __future__ import annotations

from typing import Any

import pynvml

from tidegauge.scrapers.family import Sample
from tidegauge.scrapers.reading import Probe, Reading

KINDS = {
    "corrected": pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED,
    "uncorrected": pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
}
RETIREMENTS = {
    "corrected": pynvml.NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS,
    "uncorrected": pynvml.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR,
}


def readings() -> tuple[Reading, ...]:
    """ECC errors since the driver's start and in all; remapped rows (Ampere on), retired pages (before)."""
    return (
        *(Reading(_ecc("hw.errors", name, pynvml.NVML_VOLATILE_ECC)) for name in KINDS),
        *(Reading(_ecc("hw.gpu.ecc.aggregate_errors", name, pynvml.NVML_AGGREGATE_ECC)) for name in KINDS),
        Reading(_ecc_enabled),
        Reading(_remapped_rows),
        *(Reading(_retired_pages(name)) for name in RETIREMENTS),
        Reading(_retirement_pending),
    )


def _ecc(family: str, kind: str, counter: int) -> Probe:
    def read(handle: Any) -> list[Sample]:
        count = pynvml.nvmlDeviceGetTotalEccErrors(handle, KINDS[kind], counter)
        return [Sample(family, (("error.type", kind),), float(count))]

    return read


def _ecc_enabled(handle: Any) -> list[Sample]:
    current, _pending = pynvml.nvmlDeviceGetEccMode(handle)
    return [Sample("hw.gpu.ecc.enabled", (), float(current))]


def _remapped_rows(handle: Any) -> list[Sample]:
    corrected, uncorrected, pending, failed = pynvml.nvmlDeviceGetRemappedRows(handle)
    return [
        Sample("hw.gpu.memory.remapped_rows", (("error.type", "corrected"),), float(corrected)),
        Sample("hw.gpu.memory.remapped_rows", (("error.type", "uncorrected"),), float(uncorrected)),
        Sample("hw.gpu.memory.remap.pending", (), float(bool(pending))),
        Sample("hw.gpu.memory.remap.failed", (), float(bool(failed))),
    ]


def _retired_pages(kind: str) -> Probe:
    def read(handle: Any) -> list[Sample]:
        pages = pynvml.nvmlDeviceGetRetiredPages(handle, RETIREMENTS[kind])
        return [Sample("hw.gpu.memory.retired_pages", (("error.type", kind),), float(len(pages)))]

    return read


def _retirement_pending(handle: Any) -> list[Sample]:
    pending = pynvml.nvmlDeviceGetRetiredPagesPendingStatus(handle)
    return [Sample("hw.gpu.memory.retirement.pending", (), float(bool(pending)))]
