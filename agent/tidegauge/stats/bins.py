"""Fixed bins: which bin a value falls in, and folding whole record batches into counts.

Bin b of a feature holds the values in (edges[b-1], edges[b]], the first and the last being open to
infinity: the intervals of Prometheus and OpenTelemetry. Counts on identical bins add across panes,
restarts and replicas.

A uniform grid finds the bin without a branch: a table tells how many edges lie in the
cells before the value's, and a fixed number of comparisons passes those in its own cell. The cell of a
value is monotone in the value (IEEE subtraction and multiplication are), so the counts are those of a
binary search, to the bit. Branches cost more than the rest: whether a value lies beyond the outer
edges, or a zero among others, is as good as random, and a wrong guess costs 4 to 8 ns.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from numba import types

from tidegauge.stats.kernel import KERNEL, kernel
from tidegauge.stats.pointers import peek
from tidegauge.stats.spots import LENGTH, OFFSET, VALIDITY, VALUES

CELLS = 1024
"""Cells of the grid: at 128 bins four in five values meet a cell without an edge."""

MISSING, NAN, BELOW, ABOVE, INFINITE = range(5)
"""Columns of the tallies: nulls, NaNs, values under and over the reference's range, and how many of these
are infinite."""

TALLIES = 5

FLOAT64, FLOAT32, INT64, INT32 = range(4)
"""Codes of the value types that the kernel reads in place."""


class Grid(NamedTuple):
    """How the kernels find a bin.

    `edges`: float64[edges + 1], ending in infinity. `table`: uint16[CELLS], the edges in the cells
    before each. `origin`, `scale`: a value's cell is (coordinate - origin) * scale. `steps`: the most
    edges in one cell. Where it is negative the coordinate is not the value but its ordered bit
    pattern, in which heavy tails lie evenly.
    """

    edges: npt.NDArray[np.float64]
    table: npt.NDArray[np.uint16]
    origin: float
    scale: float
    steps: int


def grid(edges: npt.NDArray[np.float64]) -> Grid:
    """The grid of ascending finite edges, over values or over bit patterns, whichever parts them better.

    Raises:
        ValueError: for edges that are not strictly ascending and finite, or more than 65535 of them.
    """
    count = len(edges)
    if count > np.iinfo(np.uint16).max:
        raise ValueError(f"{count} edges are more than a grid can index")
    if not np.all(np.isfinite(edges)) or np.any(edges[1:] <= edges[:-1]):
        raise ValueError("edges must be finite and strictly ascending")
    # Adding zero makes -0.0 the 0.0 that it equals; their bit patterns differ.
    padded = np.append(edges + 0.0, np.inf)
    if count == 0:
        return Grid(padded, np.zeros(CELLS, np.uint16), 0.0, 0.0, 0)
    linear, patterned = _grid(padded, 1), _grid(padded, -1)
    return linear if linear.steps <= -patterned.steps else patterned


def _grid(padded: npt.NDArray[np.float64], sign: int) -> Grid:
    places = np.array([_coordinate(edge, sign) for edge in padded[:-1]])
    with np.errstate(over="ignore", divide="ignore"):
        scale = float((CELLS - 1) / (places[-1] - places[0]))
    if not np.isfinite(scale):
        scale = 0.0  # a single edge, or ones closer than doubles can tell: all share cell 0
    cells = np.array([_cell(place, places[0], scale) for place in places]).astype(np.int64)
    table = np.searchsorted(cells, np.arange(CELLS), side="left").astype(np.uint16)
    return Grid(padded, table, float(places[0]), scale, sign * int(np.bincount(cells).max()))


@kernel("float64(float64, int64)", cache=True, nogil=True, inline="always")
def _coordinate(value: Any, sign: Any) -> Any:
    if sign >= 0:
        return value
    bits = np.float64(value).view(np.int64)
    return np.float64(bits if bits >= 0 else bits ^ np.int64(0x7FFF_FFFF_FFFF_FFFF))


@kernel("uint64(float64, float64, float64)", cache=True, nogil=True, inline="always")
def _cell(value: Any, origin: Any, scale: Any) -> Any:
    # The order of the arguments makes these selects, and NaN (infinity times a zero scale) a 0.
    return np.uint64(min(CELLS - 1.0, max(0.0, (value - origin) * scale)))


@numba.njit(**KERNEL, inline="always")
def _bin(value: Any, cell: Any, edges: Any, table: Any, steps: Any) -> Any:
    # Unsigned throughout: a signed index costs a test for wrapping around at each access.
    found = np.uint64(table[np.uint64(cell)])
    for _ in range(steps):
        found += np.uint64(edges[found] < value)
    return found


@kernel(
    types.int64[::1](
        types.Array(types.float64, 1, "C", readonly=True),
        types.Array(types.float64, 1, "C", readonly=True),
        types.Array(types.uint16, 1, "C", readonly=True),
        types.float64,
        types.float64,
        types.int64,
    ),
    cache=True,
    nogil=True,
)
def bin_index(values: Any, edges: Any, table: Any, origin: Any, scale: Any, steps: Any) -> Any:
    """The bin of each value: int64 of the same length. The other arguments are a Grid's."""
    found = np.empty(len(values), np.int64)
    for index in range(len(values)):
        cell = _cell(_coordinate(values[index], steps), origin, scale)
        found[index] = _bin(values[index], cell, edges, table, abs(steps))
    return found


_BLOCK = 512
"""Values that are worked on at once: they, their cells and the bins stay in the first cache."""


@numba.njit(**KERNEL)
def _read(kind: Any, spot: Any, begin: Any, length: Any, block: Any) -> Any:
    """Copy those of `length` values that are valid into the block, as doubles; how many they are."""
    values, validity, first = spot[VALUES], spot[VALIDITY], spot[OFFSET] + begin
    if validity == 0:
        for index in range(length):
            block[index] = np.float64(peek(values, first + index, kind))
        return length
    kept = np.uint64(0)
    for index in range(first, first + length):
        block[kept] = np.float64(peek(values, index, kind))
        kept += np.uint64((peek(validity, index >> 3, np.uint8) >> (index & 7)) & 1)
    return np.int64(kept)


@numba.njit(**KERNEL)
def _look(block: Any, length: Any, place: Any, steps: Any, cells: Any, tally: Any) -> Any:
    """Find the values' cells and count what lies outside of the reference's range. Whether all are finite."""
    origin, scale, lowest, highest = place[0], place[1], place[2], place[3]
    inside = np.int64(0)
    if steps >= 0:
        for index in range(length):
            value = block[index]
            cells[index] = np.int32(_cell(value, origin, scale))
            inside += np.int64((lowest <= value) & (value <= highest))
    else:
        for index in range(length):
            value = block[index]
            cells[index] = np.int32(_cell(_coordinate(value, -1), origin, scale))
            inside += np.int64((lowest <= value) & (value <= highest))
    if inside == length:
        return True
    below, nans, finite = np.int64(0), np.int64(0), np.int64(0)
    for index in range(length):
        value = block[index]
        below += np.int64(value < lowest)
        nans += np.int64(value != value)
        finite += np.int64(value - value == 0.0)
    tally[NAN] += nans
    tally[BELOW] += below
    tally[ABOVE] += length - inside - below - nans
    tally[INFINITE] += length - finite - nans
    return finite == length


@numba.njit(**KERNEL)
def _add_any(
    block: Any,
    length: Any,
    cells: Any,
    edges: Any,
    table: Any,
    center: Any,
    steps: Any,
    counts: Any,
    sums: Any,
) -> Any:
    """Add values one after the other, not finite ones among them; the sum of the squares."""
    second = 0.0
    for index in range(length):
        value = block[index]
        found = _bin(value, cells[index], edges, table, steps)
        gap = value - center if value - value == 0.0 else 0.0
        counts[found] += np.int64(value == value)
        sums[found] += gap
        second += gap * gap
    return second


@numba.njit(**KERNEL, inline="always")
def _add_pairs(
    block: Any, length: Any, cells: Any, edges: Any, table: Any, center: Any, steps: Any, twice: Any
) -> Any:
    # Two places for each bin, of a sum and a count as doubles: one load, one addition and one store for
    # both, and values of one bin that follow each other do not wait for each other.
    even, odd = 0.0, 0.0
    for index in range(0, length - 1, 2):
        one, other = block[index], block[index + 1]
        at = np.uint64(4) * _bin(one, cells[index], edges, table, steps)
        behind = np.uint64(4) * _bin(other, cells[index + 1], edges, table, steps) + np.uint64(2)
        one -= center
        other -= center
        even += one * one
        odd += other * other
        twice[at] += one
        twice[at + np.uint64(1)] += 1.0
        twice[behind] += other
        twice[behind + np.uint64(1)] += 1.0
    if length & 1:
        last = block[length - 1]
        at = np.uint64(4) * _bin(last, cells[length - 1], edges, table, steps)
        last -= center
        even += last * last
        twice[at] += last
        twice[at + np.uint64(1)] += 1.0
    return even + odd


@numba.njit(**KERNEL)
def _add_many(
    block: Any, length: Any, cells: Any, edges: Any, table: Any, center: Any, steps: Any, twice: Any
) -> Any:
    """Add finite values to `twice`; the sum of the squares."""
    if steps == 1:  # most columns: the loop over the steps is none
        return _add_pairs(block, length, cells, edges, table, center, 1, twice)
    return _add_pairs(block, length, cells, edges, table, center, steps, twice)


@numba.njit(**KERNEL)
def _fold_column(
    kind: Any,
    spot: Any,
    edges: Any,
    table: Any,
    place: Any,
    steps: Any,
    counts: Any,
    sums: Any,
    squares: Any,
    tally: Any,
    room: Any,
) -> None:
    block, cells, twice = room
    second = 0.0
    rows, center, step = spot[LENGTH], place[4], abs(steps)
    many = rows >= len(twice)
    for begin in range(0, rows, _BLOCK):
        length = min(_BLOCK, rows - begin)
        valid = _read(kind, spot, begin, length, block)
        tally[MISSING] += length - valid
        finite = _look(block, valid, place, steps, cells, tally)
        if many and finite:
            second += _add_many(block, valid, cells, edges, table, center, step, twice)
        else:
            second += _add_any(block, valid, cells, edges, table, center, step, counts, sums)
    if many:
        for index in range(len(counts)):
            sums[index] += twice[4 * index] + twice[4 * index + 2]
            counts[index] += np.int64(twice[4 * index + 1] + twice[4 * index + 3])
        twice[:] = 0.0
    squares[0] += second


@kernel(
    types.void(
        types.Array(types.int64, 3, "C", readonly=True),
        types.Array(types.int64, 2, "C", readonly=True),
        types.Array(types.float64, 2, "C", readonly=True),
        types.Array(types.uint16, 2, "C", readonly=True),
        types.Array(types.float64, 2, "C", readonly=True),
        types.int64[:, ::1],
        types.float64[:, ::1],
        types.float64[:, ::1],
        types.int64[:, ::1],
    ),
    cache=True,
    nogil=True,
)
def fold(
    spots: Any,
    columns: Any,
    edges: Any,
    tables: Any,
    places: Any,
    counts: Any,
    sums: Any,
    squares: Any,
    tallies: Any,
) -> None:
    """Fold the numeric columns of record batches of one schema into counts and sums per bin, in one call.

    The sums are those of one call per batch, to the bit.

    Args:
        spots: int64[n, batch's columns, 4] as `stats.spots` makes them. The caller keeps alive what they
            lie in.
        columns: int64[k, 4]: the batch's column, feature's row in the arrays below, value type's code,
            and the steps of the feature's grid.
        edges: float64[features, most], rows as a Grid has them, the rest infinite.
        tables: uint16[features, CELLS] from `grid`.
        places: float64[features, 5]: grid origin, grid scale, least and greatest reference value,
            and the centre that sums are taken about.
        counts: int64[features, most bins], added to.
        sums: float64[features, most bins]: of finite values minus the centre, added to.
        squares: float64[features, 1]: of the same, squared, added to.
        tallies: int64[features, TALLIES], added to.
    """
    room = (np.empty(_BLOCK), np.empty(_BLOCK, np.int32), np.zeros(4 * counts.shape[1]))
    # Column by column, so that a small batch finds the column's grid in the cache.
    for number in range(len(columns)):
        column, feature = columns[number, 0], columns[number, 1]
        code, steps = columns[number, 2], columns[number, 3]
        row, table, place = edges[feature], tables[feature], places[feature]
        count, total, tally = counts[feature], sums[feature], tallies[feature]
        square = squares[feature]
        for batch in range(len(spots)):
            spot = spots[batch, column]
            if code == FLOAT64:
                _fold_column(np.float64, spot, row, table, place, steps, count, total, square, tally, room)
            elif code == FLOAT32:
                _fold_column(np.float32, spot, row, table, place, steps, count, total, square, tally, room)
            elif code == INT64:
                _fold_column(np.int64, spot, row, table, place, steps, count, total, square, tally, room)
            else:
                _fold_column(np.int32, spot, row, table, place, steps, count, total, square, tally, room)


def quantile_edges(
    lower: npt.NDArray[np.float64],
    upper: npt.NDArray[np.float64],
    counts: npt.NDArray[np.int64],
    bins: int,
) -> npt.NDArray[np.float64]:
    """Edges that cut counted values into at most `bins` bins of about equal mass: float64[at most bins-1].

    `lower`, `upper` and `counts` are those of `value_counts.Counted`. Edges lie between values, so that
    a float32 of a float64 stays in its bin. With no more than `bins` distinct values each has a bin of
    its own; a single one gets a bin below and one above it besides, so that a constant that changes is
    seen; and a value that outweighs a bin is parted from those below it.
    """
    if len(upper) == 0:
        return np.empty(0)
    if len(upper) == 1:
        slack = abs(upper[0]) * _FLOAT32 or 5e-324
        with np.errstate(over="ignore"):
            around = np.array([upper[0] - slack, upper[0] + slack])
        return around if np.isfinite(around).all() else upper.copy()
    if len(upper) <= bins:
        return _between(lower, upper, np.arange(len(upper) - 1))
    cumulative = np.cumsum(counts)
    wanted = cumulative[-1] * np.arange(1, bins) / bins
    hit, times = np.unique(np.searchsorted(cumulative, wanted, side="left"), return_counts=True)
    spare = hit[(times > 1) | (hit == len(upper) - 1)] - 1
    chosen = np.union1d(hit, spare)
    return _between(lower, upper, chosen[(chosen >= 0) & (chosen < len(upper) - 1)])


_FLOAT32 = 2.0**-20
"""More than a float32 is off from its float64 (2**-24), relatively, and less than matters."""


def _between(
    lower: npt.NDArray[np.float64], upper: npt.NDArray[np.float64], chosen: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Edges above the chosen values and below the next ones."""
    above = lower[chosen + 1]
    with np.errstate(over="ignore"):
        middle = np.minimum(upper[chosen] / 2 + above / 2, np.nextafter(above, -np.inf))
    return np.maximum(upper[chosen], middle)


def widened(lowest: float, highest: float) -> tuple[float, float]:
    """A range that holds the float32 of its ends too."""
    low, high = lowest - abs(lowest) * _FLOAT32, highest + abs(highest) * _FLOAT32
    return (low if math.isfinite(low) else lowest), (high if math.isfinite(high) else highest)
