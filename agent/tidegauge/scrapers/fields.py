"""NVML's field values: many counters in one call, each with an answer of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pynvml

from tidegauge.metric import Attributes
from tidegauge.scrapers.family import Sample
from tidegauge.scrapers.reading import UNSUPPORTED_VALUES

FieldId = tuple[int, int]
"""A field and its scope, which is 0 where it has none: of NVLink's the number of the link."""

_MEMBERS = {
    pynvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_SHORT: "usVal",
}


def read(handle: Any, wanted: Iterable[FieldId]) -> dict[FieldId, float | None]:
    """The fields that have a value now; None for those that this GPU never has.

    Raises:
        pynvml.NVMLError: where the call itself fails.
    """
    ids = list(wanted)
    found: dict[FieldId, float | None] = {}
    for key, field in zip(ids, pynvml.nvmlDeviceGetFieldValues(handle, ids), strict=True):
        if field.nvmlReturn in UNSUPPORTED_VALUES:
            found[key] = None
        elif field.nvmlReturn == pynvml.NVML_SUCCESS and field.valueType in _MEMBERS:
            found[key] = float(getattr(field.value, _MEMBERS[field.valueType]))
    return found


class Fields:
    """A probe for fields that each make one sample: by field, its family, attributes and factor."""

    def __init__(self, wanted: Mapping[FieldId, tuple[str, Attributes, float]]) -> None:
        self._wanted = dict(wanted)
        self.unsupported = 0

    def __call__(self, handle: Any) -> list[Sample]:
        """The samples of the fields that have a value now."""
        samples: list[Sample] = []
        if not self._wanted:
            return samples
        for key, value in read(handle, self._wanted).items():
            if value is None:
                del self._wanted[key]
                self.unsupported += 1
            else:
                family, attributes, factor = self._wanted[key]
                samples.append(Sample(family, attributes, value * factor))
        return samples
