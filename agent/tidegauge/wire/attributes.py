"""Finds the configured attributes of spans and resources: whose they are, and what marks they set."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from numba import types

from tidegauge.config import IdentityAttributes, Timings
from tidegauge.stats.kernel import INLINE, KERNEL, kernel
from tidegauge.wire.marks import BOOL, DOUBLE, INT, STRING, number
from tidegauge.wire.protobuf import BYTES, NOT_UTF8, field, is_ascii, is_utf8, tail, varint, word
from tidegauge.wire.words import fold

ATTRIBUTE = np.dtype(
    [
        ("tail", np.uint64),  # the key's last eight bytes, as `tail` reads them
        ("offset", np.int32),  # of the key in the text of all keys
        ("slot", np.int32),  # which of the identity's four values, or MARK_SLOTS and a Mark
        ("rank", np.int32),  # of the keys present, the one of the lowest rank counts
        ("on_span", np.bool_),
        ("on_resource", np.bool_),
    ],
    align=True,
)

FOUND = np.dtype(
    [
        ("rank", np.int32),
        ("offset", np.uint32),  # of an identity's value, one field of an AnyValue
        ("length", np.uint32),
        ("hash", np.uint64),
        ("value", np.float64),  # of a mark
        ("time_ns", np.uint64),
    ],
    align=True,
)
"""What a slot has so far, if its bit is set among those seen."""

IDENTITY_SLOTS = MARK_SLOTS = 4

_SERVICE = 2**31 - 1
_ODD = np.uint64(0x9E37_79B9_7F4A_7C15)
_KEY, _VALUE = 0x0A, 0x12
_ARRAY, _MAP, _BINARY, _STRING_INDEX = 0x2A, 0x32, 0x3A, 0x40

ATTRIBUTES_T = numba.from_dtype(ATTRIBUTE)[::1]
FOUND_T = numba.from_dtype(FOUND)[::1]
LENGTHS_T = types.int32[::1]


class Keys(NamedTuple):
    """The configured attributes, laid out for lookup by length.

    `attributes[by_length[n]:by_length[n + 1]]` are those whose keys have n bytes. The seed of the
    hashes is drawn anew in each process, so that no sender can aim at a collision.
    """

    text: npt.NDArray[np.uint8]
    attributes: npt.NDArray[np.void]
    by_length: npt.NDArray[np.int32]
    seed: np.uint64

    @classmethod
    def of(cls, identity: IdentityAttributes, timings: Timings) -> Keys:
        """Lay out the configured keys, and behind them a resource's service.name and service.version."""
        wanted = sorted(_wanted(identity, timings), key=lambda attribute: len(attribute[0]))
        lengths = [len(key) for key, *_ in wanted]
        offsets = np.cumsum([0, *lengths[:-1]])
        rows = [
            (int.from_bytes(key[-8:], "little"), offset, *rest)
            for offset, (key, *rest) in zip(offsets, wanted, strict=True)
        ]
        text = np.frombuffer(b"".join(key for key, *_ in wanted), np.uint8)
        by_length = np.searchsorted(lengths, np.arange(lengths[-1] + 2)).astype(np.int32)
        return cls(text, np.array(rows, ATTRIBUTE), by_length, np.uint64(secrets.randbits(64)))


def _wanted(identity: IdentityAttributes, timings: Timings) -> Iterator[tuple[bytes, int, int, bool, bool]]:
    """Key, slot, rank, and whether it counts on a span and on a resource. Timings are in Mark's order."""
    for slot, keys in enumerate((identity.model, identity.version, identity.stage, identity.data_source)):
        yield from ((key.encode(), slot, rank, True, True) for rank, key in enumerate(keys))
    for mark, keys in enumerate(getattr(timings, name) for name in timings.__struct_fields__):
        yield from ((key.encode(), MARK_SLOTS + mark, rank, True, False) for rank, key in enumerate(keys))
    yield b"service.name", 0, _SERVICE, False, True
    yield b"service.version", 1, _SERVICE, False, True


@kernel(types.uint64(BYTES, types.int64, types.int64, types.uint64), **INLINE)
def digest(buf, pos, end, seed):  # type: ignore[no-untyped-def]
    """A 64-bit hash of [pos, end), by multiplying and folding as wyhash does (Wang Yi 2019)."""
    # Every factor has a secret in it: one that a sender could make zero would wipe out the other.
    other = seed * _ODD
    hashed = seed ^ np.uint64(end - pos)
    for place in range(pos, end - 8, 8):
        hashed = fold(hashed ^ word(buf, place), other)
    return fold(hashed ^ tail(buf, pos, end), other)


@kernel(
    types.UniTuple(types.int64, 2)(BYTES, types.int64, types.int64, types.int64, types.int64, types.int64),
    **KERNEL,
)
def _merge(buf, pos, end, level, offset, length):  # type: ignore[no-untyped-def]
    """Merge a piece of an AnyValue into the value so far, (offset, length): the last member set counts.

    Only a number, a boolean or a string that is not empty has a length. A negative offset is an error.
    """
    while pos < end:
        begin = pos
        tag, _, start, pos = field(buf, pos, end, level)
        if pos < 0:
            return pos, 0
        if tag == STRING:
            if not is_utf8(buf, start, pos):
                return NOT_UTF8, 0
            offset, length = begin, pos - begin if pos > start else 0
        elif tag in (BOOL, INT, DOUBLE):
            offset, length = begin, pos - begin
        elif tag in (_ARRAY, _MAP, _BINARY, _STRING_INDEX):
            offset, length = begin, 0
    return offset, length


@kernel(types.UniTuple(types.int64, 3)(BYTES, types.int64, types.int64, types.int64), **KERNEL)
def _any_key(buf, pos, end, level):  # type: ignore[no-untyped-def]
    offset, stop, begin = 0, 0, pos
    while pos < end:
        tag, _, start, pos = field(buf, pos, end, level)
        if pos < 0:
            return pos, 0, 0
        if tag == _KEY:
            offset, stop = start, pos
    return offset, stop, begin


@kernel(types.int64(BYTES, types.int64, types.int64), **INLINE)
def _behind(buf, pos, end):  # type: ignore[no-untyped-def]
    """Where the key ends in a KeyValue as libraries write it; 0 where it is written otherwise.

    That is a key, then a value that ends the message, each of less than 128 bytes.
    """
    if pos + 4 > end:
        return 0
    length = np.int64(buf[np.uintp(pos + 1)])
    behind = pos + 2 + length
    if buf[np.uintp(pos)] != _KEY or length >= 0x80 or behind + 2 > end:
        return 0
    size = np.int64(buf[np.uintp(behind + 1)])
    return behind if buf[np.uintp(behind)] == _VALUE and size < 0x80 and behind + 2 + size == end else 0


@kernel(types.boolean(BYTES, types.int64, types.int64), **INLINE)
def _is_plain_value(buf, pos, end):  # type: ignore[no-untyped-def]
    if pos + 2 > end:
        return pos == end
    tag, size = buf[np.uintp(pos)], np.int64(buf[np.uintp(pos + 1)])
    if tag == STRING:
        return size < 0x80 and pos + 2 + size == end and is_ascii(buf, pos + 2, end)
    if tag in (INT, BOOL):
        return varint(buf, pos + 1, end)[1] == end
    return tag == DOUBLE and pos + 9 == end


@kernel(types.boolean(BYTES, types.int64, types.int64), **INLINE)
def is_plain(buf, pos, end):  # type: ignore[no-untyped-def]
    """Whether a KeyValue is one of those that are well-formed at a glance, as nearly all are."""
    behind = _behind(buf, pos, end)
    return behind > 0 and is_ascii(buf, pos + 2, behind) and _is_plain_value(buf, behind + 2, end)


@kernel(types.UniTuple(types.int64, 3)(BYTES, types.int64, types.int64, types.int64), **INLINE)
def _key(buf, pos, end, level):  # type: ignore[no-untyped-def]
    """Where the key of a KeyValue lies, the last one if there are several, and what holds its value.

    (offset, end, from where on to look for the value). A negative offset is an error.
    """
    behind = _behind(buf, pos, end)
    if behind > 0:
        return pos + 2, behind, behind
    return _any_key(buf, pos, end, level)


@kernel(types.UniTuple(types.int64, 2)(BYTES, types.int64, types.int64, types.int64), **KERNEL)
def _value(buf, pos, end, level):  # type: ignore[no-untyped-def]
    """Where the value of a well-formed KeyValue lies, (offset, length), merged from all its pieces."""
    inner = pos + 2
    is_short = inner <= end and buf[pos] == _VALUE and buf[pos + 1] < 0x80
    if is_short and inner + np.int64(buf[pos + 1]) == end and _is_plain_value(buf, inner, end):
        return inner, 0 if end - inner == 2 and buf[inner] == STRING else end - inner
    offset, length = 0, 0
    while pos < end:
        tag, _, start, pos = field(buf, pos, end, level)
        if tag == _VALUE:
            offset, length = _merge(buf, start, pos, level + 1, offset, length)
            if offset < 0:
                break
    return offset, length


@kernel(types.boolean(BYTES, types.int64, BYTES, types.int64, types.int64), **KERNEL)
def equal(buf, pos, text, offset, length):  # type: ignore[no-untyped-def]
    """Whether `length` bytes at `pos` of `buf` and at `offset` of `text` are the same."""
    for index in range(0, length - 8, 8):
        if word(buf, pos + index) != word(text, offset + index):
            return False
    return tail(buf, pos, pos + length) == tail(text, offset, offset + length)


@kernel(
    types.int64(
        BYTES,
        types.int64,
        types.int64,
        types.int64,
        types.int64,
        types.int32,
        types.int64,
        FOUND_T,
    ),
    **KERNEL,
)
def _note(buf, pos, end, level, slot, rank, seen, found):  # type: ignore[no-untyped-def]
    """Put the KeyValue's value into its slot, and return which slots are seen now. Negative: an error."""
    offset, length = _value(buf, pos, end, level)
    if offset < 0:
        return offset
    if length == 0:
        return seen
    if slot >= MARK_SLOTS:
        value = number(buf, offset, offset + length)
        if not math.isfinite(value):
            return seen
        found[slot].value = value
        found[slot].time_ns = 0
    found[slot].rank = rank
    found[slot].offset = offset
    found[slot].length = length
    return seen | 1 << slot


@kernel(
    types.int64(
        BYTES,
        types.int64,
        types.int64,
        types.int64,
        BYTES,
        ATTRIBUTES_T,
        LENGTHS_T,
        types.boolean,
        types.int64,
        FOUND_T,
    ),
    **INLINE,
)
def read(buf, pos, end, level, text, attributes, by_length, is_resource, seen, found):  # type: ignore[no-untyped-def]
    """Read a KeyValue at `level`; note its value where its key counts, and return the slots seen.

    Of two attributes with the same key the first counts. A value that cannot name anything (an array,
    a map, bytes, an empty string, nothing) is as absent, and for a mark one that is no finite number.
    Negative: an error.
    """
    key, key_end, rest = _key(buf, pos, end, level)
    if key < 0:
        return key
    length = key_end - key
    if length + 1 >= by_length.size:
        return seen
    last = tail(buf, key, key_end)
    for index in range(by_length[np.uintp(length)], by_length[np.uintp(length + 1)]):
        attribute = attributes[np.uintp(index)]
        if attribute.tail != last or not (attribute.on_resource if is_resource else attribute.on_span):
            continue
        slot = np.int64(attribute.slot)
        if seen >> slot & 1 and attribute.rank >= found[slot].rank:
            continue
        if length <= 8 or equal(buf, key, text, attribute.offset, length):
            seen = _note(buf, rest, end, level, slot, attribute.rank, seen, found)
            if seen < 0:
                return seen
    return seen
