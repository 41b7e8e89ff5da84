"""MIG: the instances that a GPU is divided into."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pynvml

from tidegauge.scrapers.reading import UNSUPPORTED


def enabled(gpu: Any) -> bool | None:
    """Whether the GPU is divided; None where it cannot be.

    Raises:
        pynvml.NVMLError: where it cannot be told this time.
    """
    try:
        current, _pending = pynvml.nvmlDeviceGetMigMode(gpu)
    except UNSUPPORTED:
        return None
    return bool(current)


def instances(gpu: Any) -> Iterator[Any]:
    """The handles of the instances that there are now; they change whenever somebody divides anew.

    Raises:
        pynvml.NVMLError: where they cannot be listed this time.
    """
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        try:
            yield pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, index)
        except (pynvml.NVMLError_NotFound, pynvml.NVMLError_InvalidArgument):
            continue  # an empty place
