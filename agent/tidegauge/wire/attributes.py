"""Finds the identity among OTLP attributes: which configured keys are there, and where their values lie."""

from __future__ import annotations

import secrets
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from numba import njit, types

from tidegauge.config import IdentityAttributes
from tidegauge.wire.protobuf import BYTES, KERNEL, NOT_UTF8, field, is_utf8, word

ATTRIBUTE = np.dtype(
    [
        ("offset", np.int32),  # of the key in the text of all keys
        ("slot", np.int32),  # which of the identity's four values
        ("rank", np.int32),  # of the keys present, the one of the lowest rank counts
        ("resource_only", np.bool_),
    ],
    align=True,
)

FOUND = np.dtype(
    [("rank", np.int32), ("offset", np.uint32), ("length", np.uint32), ("hash", np.uint64)], align=True
)
"""A slot's value so far: `length` bytes at `offset`, one field of an AnyValue; length 0 where absent."""

ABSENT = 2**31 - 1
"""The rank of a slot without a value."""

_SERVICE = ABSENT - 1
_KEY, _VALUE = 0x0A, 0x12
_STRING, _BOOL, _INT, _DOUBLE = 0x0A, 0x10, 0x18, 0x21
_ARRAY, _MAP, _BINARY, _STRING_INDEX = 0x2A, 0x32, 0x3A, 0x40

ATTRIBUTES_T = numba.from_dtype(ATTRIBUTE)[::1]
FOUND_T = numba.from_dtype(FOUND)[::1]
LENGTHS_T = types.int32[::1]


class Keys(NamedTuple):
    """The configured identity attributes, laid out for lookup by length.

    `attributes[by_length[n]:by_length[n + 1]]` are those whose keys have n bytes. The seed of the
    hashes is drawn anew in each process, so that no sender can aim at a collision.
    """

    text: npt.NDArray[np.uint8]
    attributes: npt.NDArray[np.void]
    by_length: npt.NDArray[np.int32]
    seed: np.uint64

    @classmethod
    def of(cls, identity: IdentityAttributes) -> Keys:
        """Lay out the configured keys, and behind them a resource's service.name and service.version."""
        slots = (identity.model, identity.version, identity.stage, identity.data_source)
        wanted = [
            (key.encode(), slot, rank, False)
            for slot, keys in enumerate(slots)
            for rank, key in enumerate(keys)
        ]
        wanted += [(b"service.name", 0, _SERVICE, True), (b"service.version", 1, _SERVICE, True)]
        wanted.sort(key=lambda attribute: len(attribute[0]))
        lengths = [len(key) for key, *_ in wanted]
        offsets = np.cumsum([0, *lengths[:-1]])
        rows = [(offset, *rest) for offset, (_, *rest) in zip(offsets, wanted, strict=True)]
        text = np.frombuffer(b"".join(key for key, *_ in wanted), np.uint8)
        by_length = np.searchsorted(lengths, np.arange(lengths[-1] + 2)).astype(np.int32)
        return cls(text, np.array(rows, ATTRIBUTE), by_length, np.uint64(secrets.randbits(64)))


@njit(types.uint64(types.uint64), **KERNEL)
def mix(value):  # type: ignore[no-untyped-def]
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@njit(types.uint64(BYTES, types.int64, types.int64, types.uint64), **KERNEL)
def digest(buf, pos, end, seed):  # type: ignore[no-untyped-def]
    """A 64-bit hash of [pos, end)."""
    hashed = mix(seed ^ np.uint64(end - pos))
    while pos + 8 <= end:
        hashed = mix(hashed ^ word(buf, pos))
        pos += 8
    tail = np.uint64(0)
    while pos < end:
        tail = (tail << np.uint64(8)) | np.uint64(buf[pos])
        pos += 1
    return mix(hashed ^ tail)


@njit(
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
        if tag == _STRING:
            if not is_utf8(buf, start, pos):
                return NOT_UTF8, 0
            offset, length = begin, pos - begin if pos > start else 0
        elif tag in (_BOOL, _INT, _DOUBLE):
            offset, length = begin, pos - begin
        elif tag in (_ARRAY, _MAP, _BINARY, _STRING_INDEX):
            offset, length = begin, 0
    return offset, length


@njit(types.UniTuple(types.int64, 2)(BYTES, types.int64, types.int64, types.int64), **KERNEL)
def _key(buf, pos, end, level):  # type: ignore[no-untyped-def]
    """Where the key of a KeyValue lies, (offset, end), the last one if there are several."""
    offset, stop = 0, 0
    while pos < end:
        tag, _, start, pos = field(buf, pos, end, level)
        if pos < 0:
            return pos, 0
        if tag == _KEY:
            offset, stop = start, pos
    return offset, stop


@njit(types.UniTuple(types.int64, 2)(BYTES, types.int64, types.int64, types.int64), **KERNEL)
def _value(buf, pos, end, level):  # type: ignore[no-untyped-def]
    """Where the value of a well-formed KeyValue lies, (offset, length), merged from all its pieces."""
    offset, length = 0, 0
    while pos < end:
        tag, _, start, pos = field(buf, pos, end, level)
        if tag == _VALUE:
            offset, length = _merge(buf, start, pos, level + 1, offset, length)
            if offset < 0:
                break
    return offset, length


@njit(types.boolean(BYTES, types.int64, BYTES, types.int64, types.int64), **KERNEL)
def _equal(buf, pos, text, offset, length):  # type: ignore[no-untyped-def]
    # From the end: keys of one length share prefixes such as gen_ai. more often than suffixes.
    while length > 0 and buf[pos + length - 1] == text[offset + length - 1]:
        length -= 1
    return length == 0


@njit(
    types.int64(
        BYTES,
        types.int64,
        types.int64,
        types.int64,
        BYTES,
        ATTRIBUTES_T,
        LENGTHS_T,
        types.boolean,
        FOUND_T,
    ),
    **KERNEL,
)
def read(buf, pos, end, level, text, attributes, by_length, is_resource, found):  # type: ignore[no-untyped-def]
    """Read a KeyValue at `level`, and note its value in `found` where its key counts. Negative: an error.

    Of two attributes with the same key the first counts. A value that cannot name anything (an array,
    a map, bytes, an empty string, nothing) is as absent.
    """
    key, key_end = _key(buf, pos, end, level)
    if key < 0:
        return key
    length = key_end - key
    if length + 1 >= by_length.size:
        return 0
    for index in range(by_length[length], by_length[length + 1]):
        attribute = attributes[index]
        slot = found[attribute.slot]
        if attribute.rank >= slot.rank or (attribute.resource_only and not is_resource):
            continue
        if not _equal(buf, key, text, attribute.offset, length):
            continue
        offset, size = _value(buf, pos, end, level)
        if offset < 0:
            return offset
        if size > 0:
            slot.rank = attribute.rank
            slot.offset = offset
            slot.length = size
    return 0
