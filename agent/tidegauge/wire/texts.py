"""Arrow's columns of text, read where they lie and looked up among known texts."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types

from tidegauge.stats.kernel import INLINE, KERNEL, kernel
from tidegauge.stats.pointers import peek
from tidegauge.wire.known import INT32, INT64, KNOWN, SOUGHT, ends, hash_of, place_of
from tidegauge.wire.met import MET, OTHERS, meet, reduce, tell

TEXT, LARGE_TEXT, BOOLEAN = range(3)
"""What a column's values are: texts with offsets of 32 or of 64 bits, or bits, spelled `true` and `false`."""

_UNMAPPED = -2

_COLUMN = types.Array(types.int64, 1, "C", readonly=True)
_COLUMNS = types.Array(types.int64, 2, "C", readonly=True)

_U8, _U16, _U32, _U64, _I32, _I64 = np.uint8, np.uint16, np.uint32, np.uint64, np.int32, np.int64

_TRUE, _FALSE = (np.uint64(int.from_bytes(text.rjust(8, b"\0"), "little")) for text in (b"true", b"false"))


class _Array(NamedTuple):
    """Where an array lies: addresses, of which 0 is none, the elements to skip, and their number. Its texts
    end at `last` at most."""

    validity: Any
    first: Any
    second: Any
    dictionary: Any
    offset: Any
    length: Any
    last: Any


_ARRAY = types.NamedUniTuple(types.int64, 7, _Array)


@kernel(_ARRAY(types.int64, types.int64), **INLINE)
def _array(address: Any, kind: Any) -> Any:
    # struct ArrowArray: length, null_count, offset, n_buffers, n_children, buffers, children, dictionary, ...
    length, offset, buffers = peek(address, 0, _I64), peek(address, 2, _I64), peek(address, 5, _I64)
    validity = 0 if peek(address, 1, _I64) == 0 else peek(buffers, 0, _I64)
    first, second, last = peek(buffers, 1, _I64), np.int64(0), np.int64(0)
    if kind != BOOLEAN and length > 0:
        second = peek(buffers, 2, _I64)
        end = offset + length
        last = second + (np.int64(peek(first, end, _I32)) if kind == TEXT else peek(first, end, _I64))
    return _Array(validity, first, second, peek(address, 7, _I64), offset, length, last)


@kernel(types.boolean(types.int64, types.int64), **INLINE)
def _bit(bits, index):  # type: ignore[no-untyped-def]
    return (peek(bits, index >> 3, _U8) >> _U8(index & 7)) & 1 != 0


@kernel(types.Tuple(SOUGHT)(_ARRAY, types.int64, types.int64), **INLINE)
def _text(array, kind, index):  # type: ignore[no-untyped-def]
    """What to seek of a value; a length of -1 for a null."""
    index += array.offset
    if array.validity != 0 and not _bit(array.validity, index):
        return _U64(0), _U64(0), 0, -1
    if kind == BOOLEAN:
        if _bit(array.first, index):
            return _TRUE, _U64(0), 0, 4
        return _FALSE, _U64(0), 0, 5
    if kind == TEXT:
        begin, end = np.int64(peek(array.first, index, _I32)), np.int64(peek(array.first, index + 1, _I32))
    else:
        begin, end = peek(array.first, index, _I64), peek(array.first, index + 1, _I64)
    at, length = array.second + begin, end - begin
    low, high = ends(at, length, array.last)
    return low, high, at, length


@kernel(types.int64(_ARRAY, types.int64, types.int64, types.int64), **INLINE)
def _index(array, width, entries, row):  # type: ignore[no-untyped-def]
    """A row's place in a dictionary of so many entries, -1 for a null."""
    row += array.offset
    if array.validity != 0 and not _bit(array.validity, row):
        return -1
    if width == 1:
        found = np.int64(peek(array.first, row, _U8))
    elif width == 2:
        found = np.int64(peek(array.first, row, _U16))
    elif width == 4:
        found = np.int64(peek(array.first, row, _U32))
    else:
        found = peek(array.first, row, _I64)
    return found if 0 <= found < entries else -1


@kernel(types.int64(types.int64, types.int64), **INLINE)
def _child(batch, column):  # type: ignore[no-untyped-def]
    return peek(peek(batch, 6, _I64), column, _I64)


@kernel(types.boolean(types.int64, _COLUMNS), **KERNEL)
def _fits(batch, columns):  # type: ignore[no-untyped-def]
    """Whether columns have the buffers and dictionaries that they are to be read by."""
    for its in columns:
        address = _child(batch, its[0])
        dictionary = peek(address, 7, _I64)
        if (dictionary != 0) != (its[3] != 0):
            return False
        if dictionary != 0:
            address = dictionary
        if peek(address, 3, _I64) != (2 if its[2] == BOOLEAN else 3):
            return False
    return True


@kernel(types.UniTuple(_ARRAY, 2)(types.int64, types.int64, types.int64, types.int64), **INLINE)
def _column(batch, column, kind, width):  # type: ignore[no-untyped-def]
    """Where a column lies and where its values do, which are in its dictionary where it has one."""
    if width == 0:
        array = _array(_child(batch, column), kind)
        return array, array
    array = _array(_child(batch, column), BOOLEAN)
    return array, _array(array.dictionary, kind)


@kernel(
    types.UniTuple(types.int64, 2)(
        types.UniTuple(_ARRAY, 2),
        _COLUMN,
        KNOWN,
        MET,
        INT32,
        INT64,
        types.int64,
        INT64,
        INT32,
    ),
    **KERNEL,
)
def _count(arrays, its, known, met, mapped, total, most, head, places):  # type: ignore[no-untyped-def]
    """What `count` does of one column; returns its nulls, and how many texts of `met` are to be told."""
    array, values = arrays
    column, kind, width = its[1], its[2], its[3]
    size = known.sizes[column]
    new, taken, nulls = np.int64(0), np.int64(0), np.int64(0)
    for row in range(array.length):
        value, place = np.int64(row), np.int64(_UNMAPPED)
        if width:
            value = _index(array, width, values.length, row)
            place = np.int64(mapped[np.uintp(value)]) if value >= 0 else np.int64(-1)
        if place == _UNMAPPED:
            low, high, at, length = _text(values, kind, value)
            hashed = hash_of(low, high, at, length, known.seed)
            place = place_of(known, column, hashed, low, high, at, length)
            if place == size and most > 0:
                new, more = meet(met, new, most, known.seed, hashed, low, high, at, length)
                taken += more
            elif width:  # but others are looked up each time, to be told from each other
                mapped[np.uintp(value)] = place
        if place >= 0:
            total[np.uintp(place)] += 1
        else:
            nulls += 1
        if len(places):
            places[np.uintp(row)] = place
    if most > 0:
        new, more = reduce(met, new, most, known.seed)
        head[0], head[1] = new, taken + more
    return nulls, new


@kernel(
    types.int64(
        types.int64,
        _COLUMNS,
        KNOWN,
        MET,
        INT32,
        types.int64[:, ::1],
        INT64,
        OTHERS,
        types.int32[:, ::1],
    ),
    **KERNEL,
)
def count(batch, columns, known, met, mapped, totals, missing, others, places):  # type: ignore[no-untyped-def]
    """Count the texts of some columns of a batch.

    Args:
        batch: the address of an `ArrowArray` struct (Arrow C data interface) that is valid, and is kept.
        columns: int64[n, 4]: the batch's column, its column in `known`, TEXT, LARGE_TEXT or BOOLEAN, and the
            bytes of an index of a dictionary, 0 where the column is none.
        known: texts of which a column has k.
        met, mapped: room. `mapped` is int32[the longest dictionary, or more].
        totals: int64[n, k + 1 or more], added to: rows of each known text, of all others at place k.
        missing: int64[n], added to: nulls.
        others: written to, but for columns of which nothing else was met.
        places: int32[n, rows], written to: each row's place among the known, k for others, -1 for nulls; or
            int32[n, 0].

    Returns:
        0. Or, where nothing was done, the least length of `mapped`, which is too small, or -1 for columns
        that are not what `columns` says.
    """
    if not _fits(batch, columns):
        return -1
    for its in columns:
        if its[3] != 0:
            needed = peek(peek(_child(batch, its[0]), 7, _I64), 0, _I64)
            if needed > len(mapped):
                return needed
    most, told = len(others.rows) // max(len(columns), 1), np.int64(0)
    for number in range(len(columns)):
        its, head = columns[number], others.heads[number]
        arrays = _column(batch, its[0], its[2], its[3])
        if its[3] != 0:
            mapped[: arrays[1].length] = _UNMAPPED
        nulls, new = _count(arrays, its, known, met, mapped, totals[number], most, head, places[number])
        missing[number] += nulls
        if most > 0:
            told = tell(met, new, others, told)
    return 0


@kernel(types.boolean(types.int64, _COLUMNS, KNOWN, _COLUMN, types.int64, types.float32[:, ::1]), **KERNEL)
def pick(batch, columns, known, rows, first, found):  # type: ignore[no-untyped-def]
    """Look up the texts of some rows: their places among the known, k for others and NaN for nulls.

    Args:
        batch, columns, known: as `count` takes them.
        rows: int64[n], below the batch's length.
        first, found: float32[n, ...], of which column `first` + c gets what is of column c of `known`.

    Returns:
        Whether they are what `columns` says; else nothing was done.
    """
    if not _fits(batch, columns):
        return False
    for its in columns:
        column, kind, width = its[1], its[2], its[3]
        array, values = _column(batch, its[0], kind, width)
        for index in range(len(rows)):
            value = _index(array, width, values.length, rows[index]) if width else rows[index]
            place = np.int64(-1)
            if value >= 0:
                low, high, at, length = _text(values, kind, value)
                hashed = hash_of(low, high, at, length, known.seed)
                place = place_of(known, column, hashed, low, high, at, length)
            found[index, first + column] = np.float32(place) if place >= 0 else np.float32(np.nan)
    return True


@kernel(
    types.void(types.Array(types.int32, 2, "C", readonly=True), _COLUMN, _COLUMN, types.int64[:, ::1], INT64),
    **KERNEL,
)
def tally(places, rows, columns, totals, missing):  # type: ignore[no-untyped-def]
    """Count some rows of the places that `count` tells.

    Args:
        places: int32[n, all rows].
        rows: int64[...], below the number of all.
        columns: int64[n]: the rows of `totals` and the places of `missing` that are added to.
    """
    for number in range(len(columns)):
        place, total = places[number], totals[columns[number]]
        nulls = np.int64(0)
        for index in range(len(rows)):
            its = place[np.uintp(rows[index])]
            if its >= 0:
                total[np.uintp(its)] += 1
            else:
                nulls += 1
        missing[columns[number]] += nulls
