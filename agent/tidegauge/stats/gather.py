"""A few rows out of a batch, read where they lie."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from tidegauge.stats.bins import FLOAT32, FLOAT64, INT64
from tidegauge.stats.kernel import kernel
from tidegauge.stats.pointers import peek
from tidegauge.stats.spots import OFFSET, VALIDITY, VALUES

_F64, _F32, _I64, _I32, _U8 = np.float64, np.float32, np.int64, np.int32, np.uint8


@kernel(
    types.void(
        types.Array(types.int64, 2, "C", readonly=True),
        types.Array(types.int64, 2, "C", readonly=True),
        types.Array(types.int64, 1, "C", readonly=True),
        types.float32[:, ::1],
    ),
    cache=True,
    nogil=True,
)
def gather(spots: Any, columns: Any, rows: Any, found: Any) -> None:
    """Copy some rows of numeric columns, nulls as NaN.

    Args:
        spots: int64[columns of the batch, 4] (`stats.spots`); the caller keeps the batch alive.
        columns: int64[k, 3]: the batch's column, its column in `found`, its value type's code in
            `stats.bins`.
        rows: int64[n], below the batch's length.
        found: float32[n, ...], written to.
    """
    for number in range(len(columns)):
        spot, place, code = spots[columns[number, 0]], columns[number, 1], columns[number, 2]
        for index in range(len(rows)):
            at = spot[OFFSET] + rows[index]
            if spot[VALIDITY] != 0 and not (peek(spot[VALIDITY], at >> 3, _U8) >> (at & 7)) & 1:
                found[index, place] = np.nan
            elif code == FLOAT64:
                found[index, place] = np.float32(peek(spot[VALUES], at, _F64))
            elif code == FLOAT32:
                found[index, place] = peek(spot[VALUES], at, _F32)
            elif code == INT64:
                found[index, place] = np.float32(peek(spot[VALUES], at, _I64))
            else:
                found[index, place] = np.float32(peek(spot[VALUES], at, _I32))
