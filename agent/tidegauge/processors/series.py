"""The state of received series, in arrays that kernels read and write.

A series is a row of SERIES. What does not fit into it lies elsewhere, at the row's `cells`: the buckets and
bounds of an explicit histogram and the quantiles of a summary in one array of 64-bit cells, exponential
histograms in one of their own. A hash table leads from the key of a data point to its series, or to
the reason why it has none.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from numba import types

from tidegauge.stats.buckets import MERGED_T, empty
from tidegauge.stats.kernel import KERNEL, kernel


class Reason(enum.IntEnum):
    """Why a data point is dropped. In lower case they are reasons on `tidegauge.dropped`."""

    UNTIMED = 0  # no time: its place in the stream is unknown
    OUT_OF_ORDER = 1  # not after the series' last one
    OVERLAP = 2  # cumulative since before the series' start: another sender's, or an older process's
    INVALID = 3  # no value, no temporality, counts and bounds that do not match, a counter below 0
    SCALE = 4  # an exponential histogram that 160 buckets of scale -4 cannot hold
    TOO_MANY_BUCKETS = 5
    NAME_CONFLICT = 6  # another kind or unit has the name
    METRIC_LIMIT = 7
    OVERFLOW = 8  # beyond the series' limit, and of a kind that cannot be added up


TAKEN_BY_OVERFLOW = len(Reason)
"""Where a tally of reasons counts the points that went to an overflow series."""

MOST_BUCKETS = 256
"""Of an explicit histogram, and quantiles of a summary."""

SERIES = np.dtype(
    [
        ("start_ns", np.uint64),  # from when it counts, as shown; 0: unknown
        ("sent_start_ns", np.uint64),  # as the sender last said
        ("time_ns", np.uint64),  # of the last point
        ("seen_ns", np.int64),  # when a point was last taken, by the agent's clock
        ("whole", np.int64),  # the sum of what came as integers; observations of a histogram or summary
        ("value", np.float64),  # the sum of what came as doubles; a histogram's or summary's sum
        ("carry", np.float64),  # what `value` lost in rounding
        ("min", np.float64),
        ("max", np.float64),
        ("cells", np.int64),  # -1: none
        ("room", np.int64),  # cells that belong to it
        ("buckets", np.int64),  # of an explicit histogram; quantiles of a summary
        ("temporality", np.uint8),
        ("is_alive", np.bool_),  # the row is in use
        ("is_shown", np.bool_),  # it has a value
        ("is_touched", np.bool_),  # since the last collection
        ("is_overflow", np.bool_),
    ],
    align=True,
)

ENTRY = np.dtype(
    [
        ("key", np.uint64),
        ("series", np.int64),  # or FREE, or `refusal(reason)`
        ("last", np.float64),  # of a cumulative point in an overflow series: its last value
        ("time_ns", np.uint64),
        ("is_used", np.bool_),  # since the last sweep
    ],
    align=True,
)
"""A slot of the table."""

FREE = -1
_ALL, _LIVING, _USED = 0, 1, 2

SERIES_T = numba.from_dtype(SERIES)
ENTRIES_T = numba.from_dtype(ENTRY)[::1]


class State(NamedTuple):
    """All arrays of the state. `floats` are `cells`, seen as doubles."""

    table: npt.NDArray[np.void]
    series: npt.NDArray[np.void]
    cells: npt.NDArray[np.int64]
    floats: npt.NDArray[np.float64]
    exponentials: npt.NDArray[np.void]


STATE_T = types.NamedTuple(
    (ENTRIES_T, SERIES_T[::1], types.int64[::1], types.float64[::1], MERGED_T[::1]), State
)


def refusal(reason: Reason) -> int:
    """What the table holds for a key whose points are dropped."""
    return -2 - reason


class Store:
    """Owns the arrays: gives rows, cells and slots, takes them back, and grows by doubling."""

    def __init__(self) -> None:
        self._table = _free(64)
        self._series = np.zeros(16, SERIES)
        self._cells = np.zeros(256, np.int64)
        self._exponentials = empty(4)
        self._used_cells, self._used_exponentials = 0, 1  # the first one is for a kernel's own use
        self._free_rows = list(range(16))[::-1]
        self._free_cells: defaultdict[int, list[int]] = defaultdict(list)
        self._free_exponentials: list[int] = []
        self.keys = 0

    @property
    def state(self) -> State:
        """The arrays as they are until the next change of size."""
        return State(self._table, self._series, self._cells, self._cells.view(np.float64), self._exponentials)

    @property
    def series(self) -> npt.NDArray[np.void]:
        """The rows, an array of SERIES."""
        return self._series

    def insert(self, key: np.uint64, series: int) -> None:
        """Let a new key lead to a row, or to a refusal."""
        self.keys += 1
        if 2 * self.keys > len(self._table):
            table = _free(2 * len(self._table))
            rehash(self._table, table, self._series, _ALL)
            self._table = table
        put(self._table, key, series)

    def row_of(self, key: np.uint64) -> int:
        """The row that a key leads to; negative where there is none."""
        return int(self._table[slot_of(self._table, key)]["series"])

    def open(self, *, is_overflow: bool) -> int:
        """A fresh row."""
        if not self._free_rows:
            size = len(self._series)
            self._series = np.concatenate([self._series, np.zeros(size, SERIES)])
            self._free_rows = list(range(size, 2 * size))[::-1]
        row = self._free_rows.pop()
        self._series[row] = np.zeros((), SERIES)
        one = self._series[row]
        one["cells"] = -1
        one["is_alive"] = one["is_touched"] = True
        one["is_overflow"] = is_overflow
        return row

    def give_cells(self, row: int, cells: int) -> None:
        """Let a row have at least that many cells; what it had before is lost."""
        self._take_cells(row)
        size = -(-cells // 16) * 16
        free = self._free_cells[size]
        if not free:
            while self._used_cells + size > len(self._cells):
                self._cells = np.concatenate([self._cells, np.zeros_like(self._cells)])
            free.append(self._used_cells)
            self._used_cells += size
        self._series[row]["cells"] = free.pop()
        self._series[row]["room"] = size

    def give_exponential(self, row: int) -> None:
        """Let a row have an exponential histogram."""
        if not self._free_exponentials:
            if self._used_exponentials == len(self._exponentials):
                self._exponentials = np.concatenate([self._exponentials, empty(len(self._exponentials))])
            self._free_exponentials.append(self._used_exponentials)
            self._used_exponentials += 1
        self._series[row]["cells"] = slot = self._free_exponentials.pop()
        self._exponentials[slot] = empty(1)[0]

    def close(self, rows: list[int]) -> None:
        """Take rows back, and forget the keys that led to them, or to a refusal: its cause may be gone."""
        for row in rows:
            if self._series[row]["room"]:
                self._take_cells(row)
            elif self._series[row]["cells"] >= 0:
                self._free_exponentials.append(int(self._series[row]["cells"]))
            self._series[row] = np.zeros((), SERIES)
            self._free_rows.append(row)
        self._forget(_LIVING)

    def sweep(self) -> bool:
        """Forget keys not used since the last sweep. Whether any of them led to an overflow series."""
        return self._forget(_USED)

    def _forget(self, kept: int) -> bool:
        table = _free(len(self._table))
        keys, lost = rehash(self._table, table, self._series, kept)
        self._table, self.keys = table, int(keys)
        return bool(lost)

    def _take_cells(self, row: int) -> None:
        one = self._series[row]
        if one["room"]:
            self._free_cells[int(one["room"])].append(int(one["cells"]))
            one["cells"], one["room"] = -1, 0


def _free(slots: int) -> npt.NDArray[np.void]:
    table = np.zeros(slots, ENTRY)
    table["series"] = FREE
    return table


@kernel(types.int64(ENTRIES_T, types.uint64), **KERNEL)
def slot_of(table, key):  # type: ignore[no-untyped-def]
    """The slot that has the key, or the free one where it belongs. The size is a power of two."""
    mask = np.uint64(table.size - 1)
    slot = key & mask
    while table[slot].series != FREE and table[slot].key != key:
        slot = (slot + np.uint64(1)) & mask
    return np.int64(slot)


@kernel(types.void(ENTRIES_T, types.uint64, types.int64), **KERNEL)
def put(table, key, series):  # type: ignore[no-untyped-def]
    """Write an entry; there must be a free slot."""
    entry = table[slot_of(table, key)]
    entry.key = key
    entry.series = series
    entry.last = 0.0
    entry.time_ns = 0
    entry.is_used = True


@kernel(types.Tuple((types.int64, types.boolean))(ENTRIES_T, ENTRIES_T, SERIES_T[::1], types.int64), **KERNEL)
def rehash(table, to, series, which):  # type: ignore[no-untyped-def]
    """Copy entries into another table: how many, and whether a living one of an overflow series was not.

    All of them, or those that lead to a living row, or those of them that were used; these become unused.
    """
    kept, lost = 0, False
    for slot in range(table.size):
        entry = table[slot]
        if entry.series == FREE:
            continue
        if which != _ALL:
            if entry.series < 0 or not series[entry.series].is_alive:
                continue
            if which == _USED and not entry.is_used:
                lost = lost or series[entry.series].is_overflow
                continue
        into = slot_of(to, entry.key)
        to[into] = entry
        if which == _USED:
            to[into].is_used = False
        kept += 1
    return kept, lost
