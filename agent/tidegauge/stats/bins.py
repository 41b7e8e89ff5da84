"""Fixed bins: which bin a value falls in, and folding whole record batches into counts.

Bin b of a feature holds the values in (edges[b-1], edges[b]], the first and the last being open to
infinity: the intervals of Prometheus and OpenTelemetry. Counts on identical bins add across panes,
restarts and replicas.

A uniform grid over the edges finds the bin: cell c of the grid holds only edges
`table[c]..table[c+1]`, so most values need no comparison at all and the worst a binary search among
the edges that share a cell. The cell of a value is monotone in the value (IEEE subtraction and
multiplication are), so the counts are those of a binary search, to the bit.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba import carray, types

from tidegauge.stats.pointers import as_pointer

CELLS = 1024
"""Cells of the grid: at 128 bins four in five values meet a cell without an edge."""

MISSING, NAN, BELOW, ABOVE = range(4)
"""Columns of the tallies: nulls, NaNs, values under and over the reference's range (infinite ones too)."""

TALLIES = 4

FLOAT64, FLOAT32, INT64, INT32 = range(4)
"""Codes of the value types that the kernel reads in place."""


def grid(edges: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int16], float, float]:
    """The lookup table of ascending finite edges: (table int16[CELLS+1], origin, cells per unit).

    Raises:
        ValueError: for edges that are not strictly ascending and finite, or more than 32767 of them.
    """
    if len(edges) > np.iinfo(np.int16).max:
        raise ValueError(f"{len(edges)} edges are more than a grid can index")
    if not np.all(np.isfinite(edges)) or np.any(edges[1:] <= edges[:-1]):
        raise ValueError("edges must be finite and strictly ascending")
    table = np.zeros(CELLS + 1, np.int16)
    if len(edges) == 0:
        return table, 0.0, 0.0
    origin = float(edges[0])
    with np.errstate(over="ignore"):
        span = float(edges[-1] - edges[0])
    # A span of zero or beyond the largest double leaves one cell, and a binary search over all edges.
    scale = (CELLS - 1) / span if 0 < span < np.inf else 0.0
    if not np.isfinite(scale):
        scale = 0.0
    cells = np.array([_cell(edge, origin, scale) for edge in edges])
    table[:] = np.searchsorted(cells, np.arange(CELLS + 1), side="left")
    return table, origin, scale


@numba.njit("int64(float64, float64, float64)", cache=True, nogil=True, inline="always")
def _cell(value: Any, origin: Any, scale: Any) -> Any:
    position = (value - origin) * scale
    # Two selects, not branches: values beyond the outer edges are common and unpredictable, and cost
    # 1.5 ns a value as branches. NaN (an infinite value times a zero scale) lands in cell 0.
    position = position if position > 0.0 else 0.0
    position = position if position < CELLS - 1.0 else CELLS - 1.0
    return np.int64(position)


@numba.njit(cache=True, nogil=True, inline="always")
def _bin(value: Any, edges: Any, table: Any, origin: Any, scale: Any) -> Any:
    cell = _cell(value, origin, scale)
    low = np.int64(table[cell])
    high = np.int64(table[cell + 1])
    while low < high:
        middle = (low + high) >> 1
        if edges[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@numba.njit(
    types.int64[::1](
        types.Array(types.float64, 1, "C", readonly=True),
        types.Array(types.float64, 1, "C", readonly=True),
        types.Array(types.int16, 1, "C", readonly=True),
        types.float64,
        types.float64,
    ),
    cache=True,
    nogil=True,
)
def bin_index(values: Any, edges: Any, table: Any, origin: Any, scale: Any) -> Any:
    """The bin of each value: int64 of the same length. `table`, `origin`, `scale` come from `grid`."""
    found = np.empty(len(values), np.int64)
    for index in range(len(values)):
        found[index] = _bin(values[index], edges, table, origin, scale)
    return found


@numba.njit(cache=True, nogil=True)
def _fold_column(
    values: Any,
    validity: Any,
    offset: Any,
    edges: Any,
    table: Any,
    place: Any,
    counts: Any,
    sums: Any,
    tally: Any,
) -> None:
    origin, scale, lowest, highest, center = place[0], place[1], place[2], place[3], place[4]
    for index in range(len(values)):
        if len(validity) > 0:
            bit = offset + index
            if not (validity[bit >> 3] >> (bit & 7)) & 1:
                tally[MISSING] += 1
                continue
        value = np.float64(values[index])
        if lowest <= value <= highest:
            # Within the reference's range, and so finite: the common case.
            found = _bin(value, edges, table, origin, scale)
            counts[found] += 1
            sums[found] += value - center
        elif value != value:
            tally[NAN] += 1
        else:
            tally[BELOW if value < lowest else ABOVE] += 1
            found = _bin(value, edges, table, origin, scale)
            counts[found] += 1
            if value - value == 0.0:
                sums[found] += value - center


@numba.njit(
    types.void(
        types.int64,
        types.Array(types.int64, 2, "C", readonly=True),
        types.Array(types.float64, 2, "C", readonly=True),
        types.Array(types.int16, 2, "C", readonly=True),
        types.Array(types.float64, 2, "C", readonly=True),
        types.int64[:, ::1],
        types.float64[:, ::1],
        types.int64[:, ::1],
    ),
    cache=True,
    nogil=True,
)
def fold(
    batch: Any, columns: Any, edges: Any, tables: Any, places: Any, counts: Any, sums: Any, tallies: Any
) -> None:
    """Fold the numeric columns of a record batch into counts and sums per bin, in one call.

    Args:
        batch: address of the batch's `ArrowArray` struct (Arrow C data interface), whose children
            are the columns. The caller keeps it alive and has validated it.
        columns: int64[k, 4]: child's index, feature's row in the arrays below, value type's code,
            and number of the feature's edges.
        edges: float64[features, most edges], ascending, the rest of a row unused.
        tables: int16[features, CELLS + 1] from `grid`.
        places: float64[features, 5]: grid origin, grid scale, least and greatest reference value,
            and the centre that sums are taken about.
        counts: int64[features, most bins], added to.
        sums: float64[features, most bins]: of finite values minus the centre, added to.
        tallies: int64[features, TALLIES], added to.
    """
    # struct ArrowArray: length, null_count, offset, n_buffers, n_children, buffers, children, ...
    base = carray(as_pointer(batch), 7, np.int64)
    children = carray(as_pointer(base[6]), base[4], np.int64)
    for number in range(len(columns)):
        feature, code, edge_count = columns[number, 1], columns[number, 2], columns[number, 3]
        array = carray(as_pointer(children[columns[number, 0]]), 7, np.int64)
        length, nulls, offset = array[0], array[1], array[2]
        buffers = carray(as_pointer(array[5]), 2, np.int64)
        bits = 0 if nulls == 0 or buffers[0] == 0 else (offset + length + 7) >> 3
        validity = carray(as_pointer(buffers[0]), bits, np.uint8)
        own_edges = edges[feature, :edge_count]
        table, place = tables[feature], places[feature]
        count, total, tally = counts[feature], sums[feature], tallies[feature]
        if length == 0:
            continue
        if code == FLOAT64:
            doubles = carray(as_pointer(buffers[1] + 8 * offset), length, np.float64)
            _fold_column(doubles, validity, offset, own_edges, table, place, count, total, tally)
        elif code == FLOAT32:
            floats = carray(as_pointer(buffers[1] + 4 * offset), length, np.float32)
            _fold_column(floats, validity, offset, own_edges, table, place, count, total, tally)
        elif code == INT64:
            longs = carray(as_pointer(buffers[1] + 8 * offset), length, np.int64)
            _fold_column(longs, validity, offset, own_edges, table, place, count, total, tally)
        else:
            ints = carray(as_pointer(buffers[1] + 4 * offset), length, np.int32)
            _fold_column(ints, validity, offset, own_edges, table, place, count, total, tally)


def quantile_edges(
    upper: npt.NDArray[np.float64], counts: npt.NDArray[np.int64], bins: int
) -> npt.NDArray[np.float64]:
    """Edges that cut counted values into at most `bins` bins of about equal mass: float64[at most bins-1].

    `upper` are ascending distinct values and `counts` how often each occurred. With no more than
    `bins` distinct values each has a bin of its own; a single one gets a bin below and one above it
    besides, so that a constant that changes is seen.
    """
    if len(upper) == 0:
        return np.empty(0)
    if len(upper) == 1:
        below = math.nextafter(upper[0], -math.inf)
        return np.array([below, upper[0]]) if math.isfinite(below) else upper.copy()
    if len(upper) <= bins:
        return upper[:-1].copy()
    cumulative = np.cumsum(counts)
    wanted = cumulative[-1] * np.arange(1, bins) / bins
    chosen = np.unique(np.searchsorted(cumulative, wanted, side="left"))
    return np.asarray(upper[chosen[chosen < len(upper) - 1]])
