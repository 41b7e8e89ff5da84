"""Where the values of a batch's columns lie in memory, as Arrow tells it in two ways.

A spot is int64[4]: the address of a column's values, that of its validity bits or 0 where all are valid,
the elements to skip at both, and their number. Addresses need no alignment.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, types

from tidegauge.stats.kernel import kernel
from tidegauge.stats.pointers import as_pointer

VALUES, VALIDITY, OFFSET, LENGTH = range(4)

_PAIRS = types.Array(types.uint64, 1, "C", readonly=True)


@kernel("void(int64, int64[:, ::1])", cache=True, nogil=True)
def locate(batch: Any, spots: Any) -> None:
    """The spots of the columns of an `ArrowArray` struct (Arrow C data interface), int64[columns, 4].

    Only columns of two buffers have one; those of others stay as they are. The caller keeps the struct
    alive and has validated it.
    """
    # struct ArrowArray: length, null_count, offset, n_buffers, n_children, buffers, children, ...
    base = carray(as_pointer(batch), 7, np.int64)
    children = carray(as_pointer(base[6]), base[4], np.int64)
    for column in range(len(spots)):
        array = carray(as_pointer(children[column]), 7, np.int64)
        if array[3] != 2:
            continue
        buffers = carray(as_pointer(array[5]), 2, np.int64)
        spots[column, VALUES] = buffers[1]
        spots[column, VALIDITY] = 0 if array[1] == 0 else buffers[0]
        spots[column, OFFSET] = array[2]
        spots[column, LENGTH] = array[0]


@kernel(
    types.boolean(
        types.int64,
        types.int64,
        types.int64,
        types.Array(types.int64, 1, "C", readonly=True),
        _PAIRS,
        _PAIRS,
        types.int64[:, ::1],
    ),
    cache=True,
    nogil=True,
)
def lay_out(body: Any, nbytes: Any, rows: Any, widths: Any, nodes: Any, buffers: Any, spots: Any) -> bool:
    """The spots of the columns of a record batch message whose columns all have two buffers.

    Args:
        body, nbytes: the address and the size of the message's body.
        rows: of the batch.
        widths: int64[columns]: bits of a value.
        nodes: uint64[2 * columns]: length and nulls of each column (Message.fbs, FieldNode).
        buffers: uint64[4 * columns]: offset and length of each buffer (Message.fbs, Buffer).
        spots: int64[columns, 4], written to.

    Returns:
        Whether all of it lies in the body and is large enough: what else a batch of numbers could violate
        is nothing. Where it is not so, the spots must not be used.
    """
    columns = len(widths)
    size, wanted = np.uint64(nbytes), np.uint64(rows)
    if len(nodes) != 2 * columns or len(buffers) != 4 * columns or rows < 0 or nbytes < 0:
        return False
    for column in range(columns):
        nulls = nodes[2 * column + 1]
        if nodes[2 * column] != wanted or nulls > wanted:
            return False
        for part in range(2):
            offset, length = buffers[4 * column + 2 * part], buffers[4 * column + 2 * part + 1]
            if offset > size or length > size - offset:
                return False
            bits = np.uint64(widths[column]) if part == 1 else np.uint64(nulls > np.uint64(0))
            # Rows are at most eight times the bytes here, so that this cannot wrap.
            if wanted > np.uint64(8) * size or length < (wanted * bits + np.uint64(7)) >> np.uint64(3):
                return False
            spots[column, VALIDITY if part == 0 else VALUES] = body + np.int64(offset)
        if nulls == np.uint64(0):
            spots[column, VALIDITY] = 0
        spots[column, OFFSET] = 0
        spots[column, LENGTH] = rows
    return True
