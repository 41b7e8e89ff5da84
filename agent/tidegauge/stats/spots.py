"""Where the values of a batch's columns lie in memory, as Arrow tells it in two ways.

A spot is int64[4]: the address of a column's values, that of its validity bits or 0 where all are valid,
the elements to skip at both, and their number. Addresses need no alignment.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from tidegauge.stats.kernel import kernel
from tidegauge.stats.pointers import as_pointer

VALUES, VALIDITY, OFFSET, LENGTH = range(4)


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
