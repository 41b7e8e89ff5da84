"""PCIe and NVLink: traffic, errors, and how wide and fast they are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pynvml

from tidegauge.metric import Attributes
from tidegauge.scrapers import fields
from tidegauge.scrapers.family import Sample
from tidegauge.scrapers.fields import FieldId, Fields
from tidegauge.scrapers.reading import UNSUPPORTED, Probe, Reading

LINKS = 18
"""NVLink links of a GPU at most, up to Blackwell."""

_PCIE_ERRORS = {
    "correctable": pynvml.NVML_FI_DEV_PCIE_COUNT_CORRECTABLE_ERRORS,
    "non_fatal": pynvml.NVML_FI_DEV_PCIE_COUNT_NON_FATAL_ERROR,
    "fatal": pynvml.NVML_FI_DEV_PCIE_COUNT_FATAL_ERROR,
    "receiver": pynvml.NVML_FI_DEV_PCIE_COUNT_RECEIVER_ERROR,
    "bad_tlp": pynvml.NVML_FI_DEV_PCIE_COUNT_BAD_TLP,
    "bad_dllp": pynvml.NVML_FI_DEV_PCIE_COUNT_BAD_DLLP,
    "nak_sent": pynvml.NVML_FI_DEV_PCIE_COUNT_NAKS_SENT,
    "nak_received": pynvml.NVML_FI_DEV_PCIE_COUNT_NAKS_RECEIVED,
}
_NVLINK_ERRORS = {
    "replay": pynvml.NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL,
    "recovery": pynvml.NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL,
    "crc_flit": pynvml.NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL,
    "crc_data": pynvml.NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL,
}
_DIRECTIONS = {"transmit": pynvml.NVML_PCIE_UTIL_TX_BYTES, "receive": pynvml.NVML_PCIE_UTIL_RX_BYTES}


def readings() -> tuple[Reading, ...]:
    """Traffic and errors of both, PCIe's generation and lanes, NVLink's links."""
    return (
        Reading(PcieTraffic()),
        Reading(_replays),
        Reading(Fields({(field, 0): _error("pcie", name) for name, field in _PCIE_ERRORS.items()})),
        Reading(_value("hw.gpu.pcie.generation", pynvml.nvmlDeviceGetCurrPcieLinkGeneration)),
        Reading(_value("hw.gpu.pcie.generation.limit", pynvml.nvmlDeviceGetMaxPcieLinkGeneration)),
        Reading(_value("hw.gpu.pcie.lanes", pynvml.nvmlDeviceGetCurrPcieLinkWidth)),
        Reading(_value("hw.gpu.pcie.lanes.limit", pynvml.nvmlDeviceGetMaxPcieLinkWidth)),
        Reading(Nvlink()),
        Reading(Fields({(field, 0): _error("nvlink", name) for name, field in _NVLINK_ERRORS.items()})),
    )


def _error(link: str, kind: str) -> tuple[str, Attributes, float]:
    return "hw.gpu.link.errors", (("hw.gpu.link", link), ("error.type", kind)), 1.0


def _io(family: str, link: str, direction: str, value: float) -> Sample:
    return Sample(family, (("hw.gpu.link", link), ("network.io.direction", direction)), value)


def _value(family: str, ask: Callable[[Any], int]) -> Probe:
    def read(handle: Any) -> list[Sample]:
        return [Sample(family, (), float(ask(handle)))]

    return read


def _replays(handle: Any) -> list[Sample]:
    family, attributes, _ = _error("pcie", "replay")
    return [Sample(family, attributes, float(pynvml.nvmlDeviceGetPcieReplayCounter(handle)))]


class PcieTraffic:
    """The counters of bytes where they are; else the driver's measurement, which takes 20 ms for each way."""

    def __init__(self) -> None:
        self._ways = {
            (pynvml.NVML_FI_DEV_PCIE_COUNT_TX_BYTES, 0): "transmit",
            (pynvml.NVML_FI_DEV_PCIE_COUNT_RX_BYTES, 0): "receive",
        }
        self._counted = True

    def __call__(self, handle: Any) -> list[Sample]:
        """Bytes since the driver was loaded, or bytes a second."""
        if self._counted:
            values = self._read(handle)
            if None not in values.values():
                return [
                    _io("hw.gpu.io", "pcie", self._ways[way], value)
                    for way, value in values.items()
                    if value is not None
                ]
            self._counted = False
        return [
            _io("hw.gpu.io.rate", "pcie", direction, pynvml.nvmlDeviceGetPcieThroughput(handle, number) * 1e3)
            for direction, number in _DIRECTIONS.items()
        ]

    def _read(self, handle: Any) -> dict[FieldId, float | None]:
        try:
            return fields.read(handle, self._ways)
        except UNSUPPORTED:
            return dict.fromkeys(self._ways)


class Nvlink:
    """The links that are up, and the bytes of payload over all of them."""

    def __init__(self) -> None:
        self._links: list[int] | None = None
        self._counted = True

    def __call__(self, handle: Any) -> list[Sample]:
        """How many links are up, and what has passed them since the driver was loaded.

        Raises pynvml.NVMLError_NotSupported where the GPU has no link at all.
        """
        states = self._states(handle)
        self._links = list(states)
        if not states:
            raise pynvml.NVMLError_NotSupported
        up = [link for link, active in states.items() if active]
        samples = [Sample("hw.gpu.nvlink.active", (), float(len(up)))]
        return samples + self._traffic(handle, up)

    def _states(self, handle: Any) -> dict[int, bool]:
        states: dict[int, bool] = {}
        for link in range(LINKS) if self._links is None else self._links:
            with contextlib.suppress(*UNSUPPORTED):  # it is not there, and is not asked again
                states[link] = bool(pynvml.nvmlDeviceGetNvLinkState(handle, link))
        return states

    def _traffic(self, handle: Any, up: list[int]) -> list[Sample]:
        ways = {
            "transmit": pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX,
            "receive": pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX,
        }
        if not (self._counted and up):
            return []
        # The scope is the link: a sum over all of them is asked for differently by different drivers.
        values = fields.read(handle, [(field, link) for field in ways.values() for link in up])
        samples = []
        for direction, field in ways.items():
            kibibytes = [values.get((field, link)) for link in up]
            if None in kibibytes:
                self._counted = any(value is not None for value in values.values())
            else:
                samples.append(_io("hw.gpu.io", "nvlink", direction, sum(filter(None, kibibytes)) * 1024))
        return samples
