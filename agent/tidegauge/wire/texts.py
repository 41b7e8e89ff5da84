"""Arrow's columns of text, read where they lie and looked up among known texts.

A text is told by its first eight bytes, its last eight and its length, and by the bytes between where it has
more than 16: two are equal exactly if these are. All known texts of a column are in a hash table (open
addressing, a quarter full at most). Hashes are keyed with a secret of the process, so that no sender can
choose texts that meet.

What is none of the known ones is summarised as it comes, in fixed memory, as `heavy_hitters` does it.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from numba import njit, types

from tidegauge.stats.kernel import INLINE, KERNEL
from tidegauge.stats.pointers import peek
from tidegauge.wire.words import fold

TEXT, LARGE_TEXT, BOOLEAN = range(3)
"""What a column's values are: texts with offsets of 32 or of 64 bits, or bits, spelled `true` and `false`."""

LONGEST = 64
"""Characters of a text that is not known by which it is told from others."""

_LEAST = 64
"""Slots of a column's table: where two of a few texts meet each second look is guessed wrong."""

_MOST_BYTES = 4
"""Of a character."""

MOST_MET = 1024
"""Texts that are counted besides the known ones of a column before all but the most frequent are let go."""

_UNMAPPED = -2

_WORDS = np.dtype(
    [("low", np.uint64), ("high", np.uint64), ("at", np.int64), ("length", np.int64)], align=True
)
"""A text: its first eight bytes, its last eight where it has more, its address and its length in bytes."""

_WORDS_T = numba.from_dtype(_WORDS)[::1]
_INT32, _INT64 = types.int32[::1], types.int64[::1]
_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_COLUMN = types.Array(types.int64, 1, "C", readonly=True)
_COLUMNS = types.Array(types.int64, 2, "C", readonly=True)

_U8, _U16, _U32, _U64, _I32, _I64 = np.uint8, np.uint16, np.uint32, np.uint64, np.int32, np.int64

_TRUE, _FALSE = (np.uint64(int.from_bytes(text.rjust(8, b"\0"), "little")) for text in (b"true", b"false"))

_SEED = (secrets.randbits(64), secrets.randbits(64))


class Known(NamedTuple):
    """The known texts of some columns, laid out to be searched.

    `words` are those of all columns, column c's from `firsts[c]` to `firsts[c + 1]`. In `slots`, from
    `begins[c]` to `begins[c + 1]`, a power of two, are their places + 1, and 0 where there is none. `octets`
    are the bytes that they lie in. `sizes` int64[columns]: how many a column has, `most` being the
    largest number.
    """

    words: npt.NDArray[np.void]
    firsts: npt.NDArray[np.int64]
    slots: npt.NDArray[np.int32]
    begins: npt.NDArray[np.int64]
    seed: npt.NDArray[np.uint64]
    octets: npt.NDArray[np.uint8]
    sizes: npt.NDArray[np.int64]
    most: int

    @classmethod
    def of(cls, columns: Sequence[Sequence[str]]) -> Known:
        """Lay out the texts of each column, which differ from each other."""
        encoded = [[text.encode() for text in texts] for texts in columns]
        lengths = np.array([len(text) for texts in encoded for text in texts], np.int64)
        octets = np.frombuffer(b"".join(text for texts in encoded for text in texts), np.uint8)
        sizes = [max(_LEAST, 1 << (4 * len(texts)).bit_length()) for texts in encoded]
        known = cls(
            np.zeros(len(lengths), _WORDS),
            np.cumsum([0, *map(len, encoded)]).astype(np.int64),
            np.zeros(sum(sizes), np.int32),
            np.cumsum([0, *sizes]).astype(np.int64),
            np.array(_SEED, np.uint64),
            octets,
            np.array([len(texts) for texts in encoded], np.int64),
            max(map(len, encoded), default=0),
        )
        _fill(known, octets.ctypes.data, lengths)
        return known


_KNOWN = types.NamedTuple(
    (_WORDS_T, _INT64, _INT32, _INT64, types.uint64[::1], _BYTES, _INT64, types.int64), Known
)


class Met(NamedTuple):
    """Room for the texts of a column that are not known: they, their rows, and a table of slots."""

    words: npt.NDArray[np.void]
    rows: npt.NDArray[np.int64]
    slots: npt.NDArray[np.int32]

    @classmethod
    def room(cls) -> Met:
        """56 KiB."""
        return cls(np.empty(MOST_MET, _WORDS), np.empty(MOST_MET, np.int64), np.empty(4 * MOST_MET, np.int32))


_MET = types.NamedTuple((_WORDS_T, _INT64, _INT32), Met)


class Others(NamedTuple):
    """The most frequent texts of some columns that are not known, one column after the other.

    `heads` int64[columns, 2]: how many a column has, and how many rows less these have than there were at
    most, which is at most 1 / (most + 1) of all such rows of the column. Then as many `rows` int64, and one
    more of the `offsets` int32 of the texts in `octets`, cut off after LONGEST characters, as Arrow has them.
    """

    heads: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int32]
    octets: npt.NDArray[np.uint8]

    @classmethod
    def room(cls, columns: int, most: int) -> Others:
        """For at most `most` texts of each column; 0 where nobody wants any."""
        heads, rows = np.zeros((columns, 2), np.int64), np.empty(columns * most, np.int64)
        octets = np.empty(len(rows) * LONGEST * _MOST_BYTES, np.uint8)
        return cls(heads, rows, np.zeros(len(rows) + 1, np.int32), octets)


_OTHERS = types.NamedTuple((types.int64[:, ::1], _INT64, _INT32, types.uint8[::1]), Others)

_SOUGHT = (types.uint64, types.uint64, types.int64, types.int64)


@njit(types.Tuple((types.uint64, types.uint64))(types.int64, types.int64, types.int64), **INLINE)
def _ends(at, length, last):  # type: ignore[no-untyped-def]
    """`low` and `high` of a text, where memory up to the address `last` can be read.

    Without a branch for short ones: of texts of mixed lengths it would be guessed wrong each second time.
    """
    if at + 8 > last:  # and so it has less than eight bytes, and is among the last of its buffer
        word = _U64(0)
        for index in range(length):
            word |= _U64(peek(at, index, _U8)) << _U64(64 - 8 * (length - index))
        return word, _U64(0)
    is_long = length > 8
    high = peek(at + length - 8 if is_long else at, 0, _U64)
    # In two steps, for a shift by 64 bits is none.
    half = _U64(32 - 4 * min(length, 8))
    return (peek(at, 0, _U64) << half) << half, high if is_long else _U64(0)


@njit(types.uint64(*_SOUGHT, types.uint64[::1]), **INLINE)
def _hash(low, high, at, length, seed):  # type: ignore[no-untyped-def]
    # Each factor has a secret in it: one that a sender could make zero would wipe out the other.
    hashed = fold(low ^ seed[0], high ^ seed[1] ^ _U64(length))
    for place in range(8, length - 8, 8):
        hashed = fold(hashed ^ peek(at + place, 0, _U64), seed[1])
    return hashed


@njit(types.boolean(types.int64, types.int64, types.int64), **INLINE)
def _is_same_between(one, other, length):  # type: ignore[no-untyped-def]
    for place in range(8, length - 8, 8):
        if peek(one + place, 0, _U64) != peek(other + place, 0, _U64):
            return False
    return True


@njit(
    types.Tuple((types.int64, types.uintp))(
        _WORDS_T, types.int64, _INT32, types.int64, types.int64, types.uint64, *_SOUGHT
    ),
    **INLINE,
)
def _search(words, first, slots, begin, end, hashed, low, high, at, length):  # type: ignore[no-untyped-def]
    """The place of a text among those from `first` on, -1 for none, and its slot or the one that it gets."""
    mask = np.uintp(end - begin - 1)
    slot = np.uintp(hashed) & mask
    while True:
        place = np.int64(slots[np.uintp(begin) + slot])
        if place == 0:
            return -1, np.uintp(begin) + slot
        word = words[np.uintp(first + place - 1)]
        is_same = word.low == low and word.high == high and word.length == length
        if is_same and (length <= 16 or _is_same_between(word.at, at, length)):
            return place - 1, np.uintp(begin) + slot
        slot = (slot + np.uintp(1)) & mask


@njit(types.void(_KNOWN, types.int64, _COLUMN), **KERNEL)
def _fill(known, at, lengths):  # type: ignore[no-untyped-def]
    last = at
    for length in lengths:
        last += length
    for column in range(len(known.firsts) - 1):
        first, begin, end = known.firsts[column], known.begins[column], known.begins[column + 1]
        for index in range(first, known.firsts[column + 1]):
            length = lengths[index]
            low, high = _ends(at, length, last)
            hashed = _hash(low, high, at, length, known.seed)
            _, slot = _search(known.words, first, known.slots, begin, end, hashed, low, high, at, length)
            known.slots[slot] = index - first + 1
            word = known.words[np.uintp(index)]
            word.low, word.high, word.at, word.length = low, high, at, length
            at += length


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


@njit(_ARRAY(types.int64, types.int64), **INLINE)
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


@njit(types.boolean(types.int64, types.int64), **INLINE)
def _bit(bits, index):  # type: ignore[no-untyped-def]
    return (peek(bits, index >> 3, _U8) >> _U8(index & 7)) & 1 != 0


@njit(types.Tuple(_SOUGHT)(_ARRAY, types.int64, types.int64), **INLINE)
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
    low, high = _ends(at, length, array.last)
    return low, high, at, length


@njit(types.int64(_ARRAY, types.int64, types.int64, types.int64), **INLINE)
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


@njit(types.int64(types.int64, types.int64), **INLINE)
def _child(batch, column):  # type: ignore[no-untyped-def]
    return peek(peek(batch, 6, _I64), column, _I64)


@njit(types.UniTuple(_ARRAY, 2)(types.int64, types.int64, types.int64, types.int64), **INLINE)
def _column(batch, column, kind, width):  # type: ignore[no-untyped-def]
    """Where a column lies and where its values do, which are in its dictionary where it has one."""
    if width == 0:
        array = _array(_child(batch, column), kind)
        return array, array
    array = _array(_child(batch, column), BOOLEAN)
    return array, _array(array.dictionary, kind)


@njit(types.int64(_KNOWN, types.int64, types.uint64, *_SOUGHT), **INLINE)
def _place(known, column, hashed, low, high, at, length):  # type: ignore[no-untyped-def]
    """The place of a text among a column's known ones, their number for others, -1 for a null."""
    if length < 0:
        return -1
    first, begin, end = known.firsts[column], known.begins[column], known.begins[column + 1]
    found, _ = _search(known.words, first, known.slots, begin, end, hashed, low, high, at, length)
    return found if found >= 0 else known.sizes[column]


@njit(types.void(_MET, types.int64, types.uint64, *_SOUGHT), **INLINE)
def _put(met, index, hashed, low, high, at, length):  # type: ignore[no-untyped-def]
    _, slot = _search(met.words, 0, met.slots, 0, len(met.slots), hashed, low, high, at, length)
    met.slots[slot] = index + 1
    word = met.words[np.uintp(index)]
    word.low, word.high, word.at, word.length = low, high, at, length


@njit(types.UniTuple(types.int64, 2)(_MET, types.int64, types.int64, types.uint64[::1]), **KERNEL)
def _reduce(met, count, most, seed):  # type: ignore[no-untyped-def]
    """Let all texts but `most` go, with as many rows off each as the most frequent of those has, as
    `heavy_hitters` does; (texts left, rows off each)."""
    if count <= most:
        return count, 0
    # The least number that at most so many texts have more rows than.
    least, enough = np.int64(0), np.int64(0)
    for index in range(count):
        enough = max(enough, met.rows[index])
    while least < enough:
        middle = (least + enough) // 2
        above = 0
        for index in range(count):
            above += met.rows[index] > middle
        if above <= most:
            enough = middle
        else:
            least = middle + 1
    met.slots[:] = 0
    left = np.int64(0)
    for index in range(count):
        rows = met.rows[index] - least
        if rows > 0:
            word = met.words[index]
            low, high, at, length = word.low, word.high, word.at, word.length
            met.rows[left] = rows
            _put(met, left, _hash(low, high, at, length, seed), low, high, at, length)
            left += 1
    return left, least


@njit(types.int64(types.int64, types.int64), **KERNEL)
def _cut(at, length):  # type: ignore[no-untyped-def]
    """The bytes of a text's first LONGEST characters."""
    characters = 0
    for index in range(length):
        # Bytes that go on with a character begin with the bits 10.
        characters += (peek(at, index, _U8) & 0xC0) != 0x80
        if characters > LONGEST:
            return index
    return length


@njit(
    types.UniTuple(types.int64, 2)(_MET, types.int64, types.int64, types.uint64[::1], types.uint64, *_SOUGHT),
    **INLINE,
)
def _meet(met, count, most, seed, hashed, low, high, at, length):  # type: ignore[no-untyped-def]
    """Count a text that is not known; (texts met, rows off each)."""
    if count == 0:
        met.slots[:] = 0
    if length > LONGEST:
        length = _cut(at, length)
        low, high = _ends(at, length, at + length)
        hashed = _hash(low, high, at, length, seed)
    found, _ = _search(met.words, 0, met.slots, 0, len(met.slots), hashed, low, high, at, length)
    if found >= 0:
        met.rows[np.uintp(found)] += 1
        return count, 0
    taken = np.int64(0)
    if count == MOST_MET:
        count, taken = _reduce(met, count, most, seed)
    met.rows[np.uintp(count)] = 1
    _put(met, count, hashed, low, high, at, length)
    return count + 1, taken


@njit(types.int64(_MET, types.int64, _OTHERS, types.int64), **KERNEL)
def _tell(met, count, others, told):  # type: ignore[no-untyped-def]
    """Write down so many texts after those that were `told` already; how many there are then."""
    end = np.int64(others.offsets[told])
    for index in range(count):
        word = met.words[index]
        low, at, length = word.low, word.at, word.length
        for place in range(length):
            # `true` and `false` lie nowhere.
            octet = peek(at, place, _U8) if at != 0 else _U8(low >> _U64(64 - 8 * (length - place)))
            others.octets[end + place] = octet
        end += length
        others.rows[told + index] = met.rows[index]
        others.offsets[told + index + 1] = end
    return told + count


@njit(
    types.UniTuple(types.int64, 2)(
        types.UniTuple(_ARRAY, 2),
        _COLUMN,
        _KNOWN,
        _MET,
        _INT32,
        _INT64,
        types.int64,
        _INT64,
        _INT32,
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
            hashed = _hash(low, high, at, length, known.seed)
            place = _place(known, column, hashed, low, high, at, length)
            if place == size and most > 0:
                new, more = _meet(met, new, most, known.seed, hashed, low, high, at, length)
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
        new, more = _reduce(met, new, most, known.seed)
        head[0], head[1] = new, taken + more
    return nulls, new


@njit(
    types.int64(
        types.int64,
        _COLUMNS,
        _KNOWN,
        _MET,
        _INT32,
        types.int64[:, ::1],
        _INT64,
        _OTHERS,
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
        0, or where `mapped` is too small and so nothing was done, its least length.
    """
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
            told = _tell(met, new, others, told)
    return 0


@njit(types.void(types.int64, _COLUMNS, _KNOWN, _COLUMN, types.int64, types.float32[:, ::1]), **KERNEL)
def pick(batch, columns, known, rows, first, found):  # type: ignore[no-untyped-def]
    """Look up the texts of some rows: their places among the known, k for others and NaN for nulls.

    Args:
        batch, columns, known: as `count` takes them.
        rows: int64[n], below the batch's length.
        first, found: float32[n, ...], of which column `first` + c gets what is of column c of `known`.
    """
    for its in columns:
        column, kind, width = its[1], its[2], its[3]
        array, values = _column(batch, its[0], kind, width)
        for index in range(len(rows)):
            value = _index(array, width, values.length, rows[index]) if width else rows[index]
            place = np.int64(-1)
            if value >= 0:
                low, high, at, length = _text(values, kind, value)
                hashed = _hash(low, high, at, length, known.seed)
                place = _place(known, column, hashed, low, high, at, length)
            found[index, first + column] = np.float32(place) if place >= 0 else np.float32(np.nan)


@njit(
    types.void(
        types.Array(types.int32, 2, "C", readonly=True), _COLUMN, _COLUMN, types.int64[:, ::1], _INT64
    ),
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
