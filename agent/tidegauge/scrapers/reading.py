"""What is asked of a GPU: a reading, by the calls that can give it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import pynvml

from tidegauge.scrapers.family import Sample

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

UNSUPPORTED_VALUES = {error().value for error in UNSUPPORTED}

Probe = Callable[[Any], list[Sample]]
"""Takes a device handle; raises pynvml.NVMLError where the reading cannot be had."""


@runtime_checkable
class Several(Protocol):
    """A probe for more than one reading, which leaves out by itself what is not supported."""

    unsupported: int


class Reading:
    """The calls that can give a reading, the preferred one first. One that is not supported is asked once."""

    def __init__(self, *probes: Probe) -> None:
        self._probes: Sequence[Probe] = probes

    def __call__(self, handle: Any) -> list[Sample]:
        """What the first call that is supported says; nothing where none is."""
        while self._probes:
            try:
                return self._probes[0](handle)
            except UNSUPPORTED:
                self._probes = self._probes[1:]  # not asked again in this session
        return []

    @property
    def unsupported(self) -> int:
        """How many readings are known not to be there."""
        if not self._probes:
            return 1
        first = self._probes[0]
        return first.unsupported if isinstance(first, Several) else 0
