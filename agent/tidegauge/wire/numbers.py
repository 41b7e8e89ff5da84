"""A record batch of numbers, found in its FlightData by one jitted call.

What `wire.arrow` reads in Python, told by twenty objects, takes as long as folding 100 rows of 50 columns.
Here only the ordinary message is read, and everything else is left to that: what is not understood here is
not refused.

Sources: Apache Arrow's Flight.proto, Message.fbs and Schema.fbs; FlatBuffers' internals.
"""

from __future__ import annotations

import numpy as np
from numba import types

from tidegauge.stats.kernel import kernel
from tidegauge.stats.spots import LENGTH, OFFSET, VALIDITY, VALUES
from tidegauge.wire.protobuf import BYTES, field, word

NOT_FOUND = -1

_HEADER, _BODY = 2 << 3 | 2, 1000 << 3 | 2
_V5, _RECORDS = 4, 3

_ROOM = {"cache": True, "_nrt": False}
"""Without nogil: it takes a microsecond, and whoever lets go of the GIL on the event loop waits to have it
back."""


@kernel(types.int64(BYTES, types.int64, types.int64, types.int64, types.int64), **_ROOM, forceinline=True)
def _number(buf, at, size, begin, end):  # type: ignore[no-untyped-def]
    """`size` bytes at a position as an unsigned number, or NOT_FOUND where they are not in [begin, end)."""
    if at < begin or at + size > end:
        return NOT_FOUND
    value = np.int64(0)
    for place in range(size):
        value |= np.int64(buf[at + place]) << np.int64(8 * place)
    return value


@kernel(types.int64(BYTES, types.int64, types.int64, types.int64, types.int64), **_ROOM)
def _slot(buf, table, number, begin, end):  # type: ignore[no-untyped-def]
    """Where the field `number` of a table lies; 0 where it is absent, NOT_FOUND for a table that is none."""
    back = _number(buf, table, 4, begin, end)
    if back == NOT_FOUND:
        return NOT_FOUND
    vtable = table - (back - 2**32 if back >= 2**31 else back)
    size = _number(buf, vtable, 2, begin, end)
    if size == NOT_FOUND:
        return NOT_FOUND
    if 4 + 2 * number + 2 > size:
        return 0
    offset = _number(buf, vtable + 4 + 2 * number, 2, begin, end)
    return table + offset if offset > 0 else offset


@kernel(types.int64(BYTES, types.int64, types.int64, types.int64), **_ROOM)
def _follow(buf, at, begin, end):  # type: ignore[no-untyped-def]
    """Where the offset at a position leads; NOT_FOUND for none."""
    if at <= 0:
        return NOT_FOUND
    offset = _number(buf, at, 4, begin, end)
    return NOT_FOUND if offset == NOT_FOUND else at + offset


_PARTS_T = types.Tuple((types.int64, types.int64, types.int64, types.int64))


@kernel(_PARTS_T(BYTES), **_ROOM)
def _parts(buf):  # type: ignore[no-untyped-def]
    """Where a FlightData's header begins and ends, then its body. NOT_FOUND first: one is not there once."""
    none = (np.int64(NOT_FOUND), np.int64(0), np.int64(0), np.int64(0))
    begin, end, start, stop = none[0], none[0], none[0], none[0]
    position = np.int64(0)
    while position < len(buf):
        tag, _, at, position = field(buf, position, len(buf), 0)
        if position < 0 or (tag == _HEADER and begin >= 0) or (tag == _BODY and start >= 0):
            return none
        if tag == _HEADER:
            begin, end = at, position
        elif tag == _BODY:
            start, stop = at, position
    return (begin, end, start, stop) if start >= 0 else none


@kernel(
    types.Tuple((types.int64, types.int64, types.int64))(
        BYTES, types.int64, types.int64, types.int64, types.int64
    ),
    **_ROOM,
)
def _message(buf, begin, end, body_bytes, columns):  # type: ignore[no-untyped-def]
    """Rows of a RecordBatch message, or NOT_FOUND; where the columns' nodes and their buffers lie."""
    # What is not there is passed on as NOT_FOUND, which lies in no range.
    table = _follow(buf, begin, begin, end)
    version = _number(buf, _slot(buf, table, 0, begin, end), 1, begin, end)
    kind = _number(buf, _slot(buf, table, 1, begin, end), 1, begin, end)
    length = _number(buf, _slot(buf, table, 3, begin, end), 8, begin, end)
    metadata = _slot(buf, table, 4, begin, end)
    batch = _follow(buf, _slot(buf, table, 2, begin, end), begin, end)
    rows = _number(buf, _slot(buf, batch, 0, begin, end), 8, begin, end)
    nodes = _follow(buf, _slot(buf, batch, 1, begin, end), begin, end)
    buffers = _follow(buf, _slot(buf, batch, 2, begin, end), begin, end)
    compression = _slot(buf, batch, 3, begin, end)
    if version != _V5 or kind != _RECORDS or length != body_bytes or metadata != 0 or compression != 0:
        rows = np.int64(NOT_FOUND)
    if _number(buf, nodes, 4, begin, end) != columns or _number(buf, buffers, 4, begin, end) != 2 * columns:
        rows = np.int64(NOT_FOUND)
    nodes, buffers = nodes + 4, buffers + 4
    if nodes + 16 * columns > end or buffers + 32 * columns > end:
        rows = np.int64(NOT_FOUND)
    return rows, nodes, buffers


_WIDTHS = types.Array(types.int64, 1, "C", readonly=True)


@kernel(
    types.boolean(
        BYTES, types.int64, types.int64, types.int64, types.int64, types.int64, _WIDTHS, types.int64[:, ::1]
    ),
    **_ROOM,
)
def _lay_out(buf, rows, nodes, buffers, start, size, widths, spots):  # type: ignore[no-untyped-def]
    """Write the columns' spots; whether all of it lies in the body, and is large enough."""
    base = np.int64(buf.ctypes.data) + start
    left = size
    for column in range(len(widths)):
        nulls = np.int64(word(buf, nodes + 16 * column + 8))
        if np.int64(word(buf, nodes + 16 * column)) != rows or nulls < 0 or nulls > rows:
            return False
        for part in range(2):
            place = buffers + 32 * column + 16 * part
            offset, length = np.int64(word(buf, place)), np.int64(word(buf, place + 8))
            bits = widths[column] if part == 1 else np.int64(nulls > 0)
            if min(offset, length) < 0 or offset > size or length > size - offset:
                return False
            if length < (rows * bits + 7) >> 3:
                return False
            left -= length
            spots[column, VALUES if part == 1 else VALIDITY] = base + offset
        if nulls == 0:
            spots[column, VALIDITY] = 0
        spots[column, OFFSET] = 0
        spots[column, LENGTH] = rows
    # Buffers that share bytes would make the work more than the bytes sent.
    return left >= 0


@kernel(types.int64(BYTES, _WIDTHS, types.int64[:, ::1]), cache=True)
def find_numbers(raw, widths, spots):  # type: ignore[no-untyped-def]
    """The rows of a FlightData that holds a record batch of numbers, and where their values lie.

    Args:
        raw: uint8[bytes], the message as received.
        widths: int64[columns]: bits of a value.
        spots: int64[columns, 4] (`stats.spots`), written to.

    Returns:
        The number of rows, or NOT_FOUND for any message that is not of the usual form or contradicts the
        schema or itself: the spots must not be used then. Else every value lies in the message, the
        buffers together are no larger than it, and what else a batch of numbers could violate is nothing.
    """
    begin, end, start, stop = _parts(raw)
    if begin < 0:
        return NOT_FOUND
    size = stop - start
    rows, nodes, buffers = _message(raw, begin, end, size, len(widths))
    # A row takes a bit at least; beyond that products might wrap.
    if rows < 0 or rows > 8 * size:
        return NOT_FOUND
    return rows if _lay_out(raw, rows, nodes, buffers, start, size, widths, spots) else NOT_FOUND
