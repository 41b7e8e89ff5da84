"""From span keys to series: a bounded hash table that kernels read."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt
from numba import njit, types

from tidegauge.identity import OVERFLOW
from tidegauge.metric import Attributes
from tidegauge.wire.protobuf import INLINE, KERNEL

ENTRY = np.dtype([("key", np.uint64), ("series", np.int64)], align=True)
"""A slot of the table. Series -1: free."""

OVERFLOW_SERIES = 0

ENTRIES_T = numba.from_dtype(ENTRY)[::1]


class SeriesTable:
    """Numbers series by their attributes, from 1 on, and remembers the number for each span key.

    At most `max_series` are numbered; what comes later is of series 0, which is marked as overflow.
    Keys, which are hashes, may be spellings of one series: a version sent as text and as a number.
    They are bounded too: past `max_keys` the table is `full`, and keys that it has not are overflow.
    """

    def __init__(self, max_series: int, max_keys: int) -> None:
        self.max_series = max_series
        self._max_keys = max_keys
        self._numbers: dict[Attributes, int] = {OVERFLOW: OVERFLOW_SERIES}
        self._keys = 0
        self.entries = _free(64)
        self.attributes: list[Attributes] = [OVERFLOW]

    @property
    def full(self) -> bool:
        """Whether no more keys are taken."""
        return self._keys >= self._max_keys

    def register(self, key: int, attributes: Attributes) -> None:
        """Give a key that is not there its series: a new one, the one of these attributes, or overflow."""
        if attributes not in self._numbers and len(self._numbers) <= self.max_series:
            self._numbers[attributes] = len(self.attributes)
            self.attributes.append(attributes)
        self._keys += 1
        if 2 * self._keys > len(self.entries):
            larger = _free(2 * len(self.entries))
            for entry in self.entries[self.entries["series"] >= 0]:
                _insert(larger, entry["key"], entry["series"])
            self.entries = larger
        _insert(self.entries, key, self._numbers.get(attributes, OVERFLOW_SERIES))


def _free(slots: int) -> npt.NDArray[np.void]:
    table = np.zeros(slots, ENTRY)
    table["series"] = -1
    return table


@njit(types.uint64(ENTRIES_T, types.uint64), **INLINE)
def _slot(entries, key):  # type: ignore[no-untyped-def]
    """The slot that has the key, or the free one where it belongs. The size is a power of two."""
    mask = np.uint64(entries.size - 1)
    slot = key & mask
    while entries[slot].series >= 0 and entries[slot].key != key:
        slot = (slot + np.uint64(1)) & mask
    return slot


@njit(types.int64(ENTRIES_T, types.boolean, types.uint64), **INLINE)
def find(entries, full, key):  # type: ignore[no-untyped-def]
    """The series of a key. Where it is unknown: -1, or overflow where the table is full."""
    series = entries[_slot(entries, key)].series
    return OVERFLOW_SERIES if full and series < 0 else series


@njit(types.void(ENTRIES_T, types.uint64, types.int64), **KERNEL)
def _insert(entries, key, series):  # type: ignore[no-untyped-def]
    entry = entries[_slot(entries, key)]
    entry.key = key
    entry.series = series
