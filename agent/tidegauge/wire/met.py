"""Texts that are not known, summarised as they come: what `heavy_hitters` does, in kernels and fixed room."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import types

from tidegauge.stats.kernel import INLINE, KERNEL, kernel
from tidegauge.stats.pointers import peek
from tidegauge.wire.known import INT32, INT64, SOUGHT, WORDS, WORDS_T, ends, hash_of, search

LONGEST = 64
"""Characters by which a text is told from others."""

_MOST_BYTES = 4
"""Of a character."""

MOST_MET = 1024
"""Texts of a column that are counted before all but the most frequent are let go."""

_U8, _U64 = np.uint8, np.uint64


class Met(NamedTuple):
    """Room for the texts of a column that are not known: they, their rows, and a table of slots."""

    words: npt.NDArray[np.void]
    rows: npt.NDArray[np.int64]
    slots: npt.NDArray[np.int32]

    @classmethod
    def room(cls) -> Met:
        """56 KiB."""
        return cls(np.empty(MOST_MET, WORDS), np.empty(MOST_MET, np.int64), np.empty(4 * MOST_MET, np.int32))


MET = types.NamedTuple((WORDS_T, INT64, INT32), Met)


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


OTHERS = types.NamedTuple((types.int64[:, ::1], INT64, INT32, types.uint8[::1]), Others)


@kernel(types.void(MET, types.int64, types.uint64, *SOUGHT), **INLINE)
def _put(met, index, hashed, low, high, at, length):  # type: ignore[no-untyped-def]
    _, slot = search(met.words, 0, met.slots, 0, len(met.slots), hashed, low, high, at, length)
    met.slots[slot] = index + 1
    word = met.words[np.uintp(index)]
    word.low, word.high, word.at, word.length = low, high, at, length


@kernel(types.UniTuple(types.int64, 2)(MET, types.int64, types.int64, types.uint64[::1]), **KERNEL)
def reduce(met, count, most, seed):  # type: ignore[no-untyped-def]
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
            _put(met, left, hash_of(low, high, at, length, seed), low, high, at, length)
            left += 1
    return left, least


@kernel(types.int64(types.int64, types.int64), **KERNEL)
def _cut(at, length):  # type: ignore[no-untyped-def]
    """The bytes of a text's first LONGEST characters, and of what is no UTF-8 no more than those may have."""
    characters, most = 0, min(length, LONGEST * _MOST_BYTES)
    for index in range(most):
        # Bytes that go on with a character begin with the bits 10.
        characters += (peek(at, index, _U8) & 0xC0) != 0x80
        if characters > LONGEST:
            return index
    return most


@kernel(
    types.UniTuple(types.int64, 2)(MET, types.int64, types.int64, types.uint64[::1], types.uint64, *SOUGHT),
    **INLINE,
)
def meet(met, count, most, seed, hashed, low, high, at, length):  # type: ignore[no-untyped-def]
    """Count a text that is not known; (texts met, rows off each)."""
    if count == 0:
        met.slots[:] = 0
    if length > LONGEST:
        length = _cut(at, length)
        low, high = ends(at, length, at + length)
        hashed = hash_of(low, high, at, length, seed)
    found, _ = search(met.words, 0, met.slots, 0, len(met.slots), hashed, low, high, at, length)
    if found >= 0:
        met.rows[np.uintp(found)] += 1
        return count, 0
    taken = np.int64(0)
    if count == MOST_MET:
        count, taken = reduce(met, count, most, seed)
    met.rows[np.uintp(count)] = 1
    _put(met, count, hashed, low, high, at, length)
    return count + 1, taken


@kernel(types.int64(MET, types.int64, OTHERS, types.int64), **KERNEL)
def tell(met, count, others, told):  # type: ignore[no-untyped-def]
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
