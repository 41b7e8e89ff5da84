"""How often each value occurs, in bounded memory, the same whatever the order or the batches.

Doubles are counted by their ordered bit pattern, of which the last `shift` bits are dropped. `shift`
is the smallest at which no more than `capacity` distinct patterns remain; it depends on the set of
values alone, since dropping bits only ever joins patterns and more values only ever add them. So two
sketches of the same values are equal, however the values were split and merged.

Up to `capacity` distinct values are counted exactly (shift 0). Beyond that a value is known to a
relative 2**(shift - 52), and evenly spaced ones, such as timestamps, to range/capacity or so.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tidegauge.stats.kernel import kernel

CAPACITY = 16_384
"""Distinct patterns kept: a normal variable is then known to about 2**-9 of its value, and the
sketch takes 512 KiB when full."""

_HASH = np.int64(-7046029254386353131)  # 2**64 / golden ratio, odd


_LEAST, _GREATEST = np.int64(-0x7FF0_0000_0000_0000), np.int64(0x7FEF_FFFF_FFFF_FFFF)
"""The patterns of the least and the greatest finite double."""


class Counted(NamedTuple):
    """Ascending values and how often each occurred; `upper[i]` is the largest that `lower[i]` stands for."""

    lower: npt.NDArray[np.float64]
    upper: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]


class ValueCounts:
    """Counts finite doubles. NaN and infinities are left out. Two patterns, the signs, always remain."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        if capacity < 2:
            raise ValueError("the two signs need a capacity of 2")
        self._capacity = capacity
        self._shift = 0
        self._distinct = 0
        self._keys, self._counts = _table(min(256, capacity))

    @property
    def shift(self) -> int:
        """Bits dropped from each value's pattern."""
        return self._shift

    def update(self, values: npt.NDArray[np.float64]) -> None:
        """Count the finite ones of `values`, float64[n]."""
        finite = values[np.isfinite(values)]
        # Adding zero makes -0.0 and 0.0 one value.
        self._insert(_ordered(finite + 0.0), np.ones(1, np.int64))

    def merge(self, other: ValueCounts) -> None:
        """Add what another sketch of the same capacity has counted."""
        used = other._counts > 0
        while self._shift < other._shift:
            self._coarsen()
        # A coarser pattern stands for all finer ones, so its lowest member will do as the value.
        self._insert(other._keys[used] << np.int64(other._shift), other._counts[used])

    def sorted(self) -> Counted:
        """What was counted, in ascending order."""
        used = self._counts > 0
        keys, counts = self._keys[used], self._counts[used]
        order = np.argsort(keys)
        lower = keys[order] << np.int64(self._shift)
        upper = lower + np.int64((1 << self._shift) - 1)
        # A coarse pattern may reach beyond the finite doubles.
        lower, upper = np.maximum(lower, _LEAST), np.minimum(upper, _GREATEST)
        return Counted(_doubles(lower), _doubles(upper), counts[order])

    def _insert(self, patterns: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> None:
        done = 0
        while True:
            done, self._distinct = _count(
                self._keys, self._counts, patterns, counts, done, self._shift, self._distinct, self._capacity
            )
            if self._distinct > self._capacity:
                while self._distinct > self._capacity:
                    self._coarsen()
            elif done < len(patterns):
                self._rebuild(2 * len(self._keys), 0)
            else:
                return

    def _coarsen(self) -> None:
        self._shift += 1
        self._rebuild(len(self._keys), 1)

    def _rebuild(self, slots: int, drop: int) -> None:
        used = self._counts > 0
        keys, counts = self._keys[used] >> np.int64(drop), self._counts[used]
        self._keys, self._counts = _table(slots // 2)
        _, self._distinct = _count(self._keys, self._counts, keys, counts, 0, 0, 0, slots)


def _table(capacity: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    slots = 1 << (2 * capacity - 1).bit_length()
    return np.zeros(slots, np.int64), np.zeros(slots, np.int64)


@kernel(
    "UniTuple(int64, 2)(int64[::1], int64[::1], int64[::1], int64[::1], int64, int64, int64, int64)",
    cache=True,
    nogil=True,
)
def _count(
    keys: Any, table: Any, patterns: Any, counts: Any, start: Any, shift: Any, distinct: Any, capacity: Any
) -> Any:
    """Count patterns[start:]; stops early when the table is half full or `distinct` passes `capacity`."""
    mask = len(keys) - 1
    for index in range(start, len(patterns)):
        key = patterns[index] >> shift
        mixed = key * _HASH
        slot = (mixed ^ (mixed >> 29)) & mask
        while table[slot] > 0 and keys[slot] != key:
            slot = (slot + 1) & mask
        if table[slot] == 0:
            if 2 * distinct > mask:
                return index, distinct
            keys[slot] = key
            distinct += 1
        table[slot] += counts[index] if len(counts) > 1 else counts[0]
        if distinct > capacity:
            return index + 1, distinct
    return len(patterns), distinct


def _ordered(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Doubles as integers in the same order: negative ones have their magnitude's bits inverted."""
    bits = np.ascontiguousarray(values).view(np.int64)
    return np.where(bits < 0, bits ^ np.int64(0x7FFF_FFFF_FFFF_FFFF), bits)


def _doubles(ordered: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    bits = np.where(ordered < 0, ordered ^ np.int64(0x7FFF_FFFF_FFFF_FFFF), ordered)
    return bits.view(np.float64)
