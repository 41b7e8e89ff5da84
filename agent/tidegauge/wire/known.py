"""Known texts, laid out for kernels to look up others among them.

A text is told by its first eight bytes, its last eight and its length, and by the bytes between where it has
more than 16: two are equal exactly if these are. All known texts of a column are in a hash table (open
addressing, a quarter full at most). Hashes are keyed with a secret of the process, so that no sender can
choose texts that meet.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from numba import types

from tidegauge.stats.kernel import INLINE, KERNEL, kernel
from tidegauge.stats.pointers import peek
from tidegauge.wire.words import fold

_LEAST = 64
"""Slots of a column's table: where two of a few texts meet each second look is guessed wrong."""

WORDS = np.dtype(
    [("low", np.uint64), ("high", np.uint64), ("at", np.int64), ("length", np.int64)], align=True
)
"""A text: its first eight bytes, its last eight where it has more, its address and its length in bytes."""

WORDS_T = numba.from_dtype(WORDS)[::1]
INT32, INT64 = types.int32[::1], types.int64[::1]
_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_LENGTHS = types.Array(types.int64, 1, "C", readonly=True)

_U8, _U64 = np.uint8, np.uint64

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
            np.zeros(len(lengths), WORDS),
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


KNOWN = types.NamedTuple((WORDS_T, INT64, INT32, INT64, types.uint64[::1], _BYTES, INT64, types.int64), Known)


SOUGHT = (types.uint64, types.uint64, types.int64, types.int64)
"""What a text is sought by: low, high, at and length, as WORDS has them."""


@kernel(types.Tuple((types.uint64, types.uint64))(types.int64, types.int64, types.int64), **INLINE)
def ends(at, length, last):  # type: ignore[no-untyped-def]
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


@kernel(types.uint64(*SOUGHT, types.uint64[::1]), **INLINE)
def hash_of(low, high, at, length, seed):  # type: ignore[no-untyped-def]
    # Each factor has a secret in it: one that a sender could make zero would wipe out the other.
    hashed = fold(low ^ seed[0], high ^ seed[1] ^ _U64(length))
    for place in range(8, length - 8, 8):
        hashed = fold(hashed ^ peek(at + place, 0, _U64), seed[1])
    return hashed


@kernel(types.boolean(types.int64, types.int64, types.int64), **INLINE)
def _is_same_between(one, other, length):  # type: ignore[no-untyped-def]
    for place in range(8, length - 8, 8):
        if peek(one + place, 0, _U64) != peek(other + place, 0, _U64):
            return False
    return True


@kernel(
    types.Tuple((types.int64, types.uintp))(
        WORDS_T, types.int64, INT32, types.int64, types.int64, types.uint64, *SOUGHT
    ),
    **INLINE,
)
def search(words, first, slots, begin, end, hashed, low, high, at, length):  # type: ignore[no-untyped-def]
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


@kernel(types.void(KNOWN, types.int64, _LENGTHS), **KERNEL)
def _fill(known, at, lengths):  # type: ignore[no-untyped-def]
    last = at
    for length in lengths:
        last += length
    for column in range(len(known.firsts) - 1):
        first, begin, end = known.firsts[column], known.begins[column], known.begins[column + 1]
        for index in range(first, known.firsts[column + 1]):
            length = lengths[index]
            low, high = ends(at, length, last)
            hashed = hash_of(low, high, at, length, known.seed)
            _, slot = search(known.words, first, known.slots, begin, end, hashed, low, high, at, length)
            known.slots[slot] = index - first + 1
            word = known.words[np.uintp(index)]
            word.low, word.high, word.at, word.length = low, high, at, length
            at += length


@kernel(types.int64(KNOWN, types.int64, types.uint64, *SOUGHT), **INLINE)
def place_of(known, column, hashed, low, high, at, length):  # type: ignore[no-untyped-def]
    """The place of a text among a column's known ones, their number for others, -1 for a null."""
    if length < 0:
        return -1
    first, begin, end = known.firsts[column], known.begins[column], known.begins[column + 1]
    found, _ = search(known.words, first, known.slots, begin, end, hashed, low, high, at, length)
    return found if found >= 0 else known.sizes[column]
