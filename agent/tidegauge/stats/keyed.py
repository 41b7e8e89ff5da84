"""A hash table from 64-bit keys to series, in one array that kernels can search (open addressing)."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt
from numba import types

from tidegauge.stats.kernel import INLINE, KERNEL, kernel

ENTRY = np.dtype([("key", np.uint64), ("series", np.int64)], align=True)
"""A slot of the table. Series -1: free."""

ENTRIES_T = numba.from_dtype(ENTRY)[::1]


def free(slots: int) -> npt.NDArray[np.void]:
    """An empty table of ENTRY; `slots` is a power of two and stays above the number of keys."""
    table = np.zeros(slots, ENTRY)
    table["series"] = -1
    return table


def doubled(table: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """The same keys in a table of twice the size."""
    larger = free(2 * len(table))
    for entry in table[table["series"] >= 0]:
        insert(larger, entry["key"], entry["series"])
    return larger


@kernel(types.uint64(types.uint64), **KERNEL)
def mix(value):  # type: ignore[no-untyped-def]
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014), a bijection: a key of what is no hash yet."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@kernel(types.uintp(ENTRIES_T, types.uint64), **INLINE)
def slot_of(table, key):  # type: ignore[no-untyped-def]
    """The slot that has the key, or the free one where it belongs. Keys are hashes already."""
    mask = np.uintp(table.size - 1)
    slot = np.uintp(key) & mask
    while table[slot].series >= 0 and table[slot].key != key:
        slot = (slot + np.uintp(1)) & mask
    return slot


@kernel(types.void(ENTRIES_T, types.uint64, types.int64), **KERNEL)
def insert(table, key, series):  # type: ignore[no-untyped-def]
    """Give the key a series, in place of the one that it may have. One slot at least must stay free."""
    entry = table[slot_of(table, key)]
    entry.key = key
    entry.series = series
