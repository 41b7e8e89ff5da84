"""Protocol buffers wire format (protobuf.dev/programming-guides/encoding), read by jitted code.

A reader takes the message's bytes and a range [pos, end) in them, and never looks outside of it. It
accepts what google.protobuf's own decoder accepts: varints of at most ten bytes, tags and lengths of
at most five, groups that close in order, 100 levels of nesting. A negative position is an error.

numba's cache does not see that a kernel changed which another file calls: after an edit here, remove
`__pycache__` of the callers as well.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import types

from tidegauge.stats.kernel import INLINE, KERNEL, kernel
from tidegauge.wire.words import load

BYTES = types.Array(types.uint8, 1, "C", readonly=True)
"""A read-only contiguous message: Python's `bytes` cannot be written to."""

TRUNCATED, OVERLONG, BAD_TAG, UNBALANCED, TOO_DEEP, NOT_UTF8 = -1, -2, -3, -4, -5, -6

ERRORS = {
    TRUNCATED: "a field reaches beyond the end of its message",
    OVERLONG: "a varint has more bytes than its type allows",
    BAD_TAG: "a tag has field number 0 or an unknown wire type",
    UNBALANCED: "a group does not close where it should",
    TOO_DEEP: "messages are nested more than 100 levels deep",
    NOT_UTF8: "a string is not UTF-8",
}

MAX_DEPTH = 100
MAX_BYTES = 2**31 - 1
"""No message is larger, for the lengths in it are 32-bit and signed."""

_NOT_ASCII = np.uint64(0x8080_8080_8080_8080)

VARINT, FIXED64, LENGTH, GROUP, END_GROUP, FIXED32 = 0, 1, 2, 3, 4, 5


def view(raw: bytes) -> npt.NDArray[np.uint8]:
    """The bytes as the array that readers take, without a copy. Raises ValueError beyond 2 GiB."""
    if len(raw) > MAX_BYTES:
        raise ValueError(f"a message of {len(raw)} bytes is beyond protobuf's 2 GiB")
    return np.frombuffer(raw, np.uint8)


def check(result: int) -> int:
    """A reader's result, or ValueError with the reason where it is an error."""
    if result < 0:
        raise ValueError(ERRORS[int(result)])
    return int(result)


@kernel(types.Tuple((types.uint64, types.int64))(BYTES, types.int64, types.int64), **INLINE)
def varint(buf, pos, end):  # type: ignore[no-untyped-def]
    """Read (value, next position). Bits beyond the 64th are dropped, as protobuf does."""
    if pos < end and buf[pos] < 0x80:
        return np.uint64(buf[pos]), pos + 1
    value = np.uint64(0)
    for shift in range(0, 70, 7):
        if pos >= end:
            return value, TRUNCATED
        byte = buf[pos]
        pos += 1
        value |= np.uint64(byte & 0x7F) << np.uint64(shift)
        if byte < 0x80:
            return value, pos
    return value, OVERLONG


@kernel(types.Tuple((types.int64, types.int64))(BYTES, types.int64, types.int64), **INLINE)
def varint32(buf, pos, end):  # type: ignore[no-untyped-def]
    """Read (value, next position) of a tag or a length: 32 bits in at most five bytes."""
    value, after = varint(buf, pos, end)
    if after < 0:
        return 0, after
    if after - pos > 5 or value > np.uint64(0xFFFFFFFF):
        return 0, OVERLONG
    return np.int64(value), after


@kernel(
    types.Tuple((types.uint64, types.int64, types.int64))(BYTES, types.int64, types.int64, types.int64),
    **INLINE,
)
def payload(buf, pos, end, wire_type):  # type: ignore[no-untyped-def]
    """Read what follows the tag of any field but a group: (value of a varint, start, next position)."""
    value = np.uint64(0)
    start = pos
    if wire_type == VARINT:
        value, pos = varint(buf, pos, end)
    elif wire_type == LENGTH:
        size, start = varint32(buf, pos, end)
        pos = start if start < 0 else start + size
    elif wire_type == FIXED64:
        pos += 8
    elif wire_type == FIXED32:
        pos += 4
    else:
        pos = BAD_TAG
    return value, start, TRUNCATED if pos > end else pos


@kernel(types.int64(BYTES, types.int64, types.int64, types.int64, types.int64), **KERNEL)
def skip_group(buf, pos, end, tag, level):  # type: ignore[no-untyped-def]
    """The position behind the group that `tag` opened in a message at `level` (0: the outermost).

    Field number 0 passes in here, as in google.protobuf.
    """
    if level >= MAX_DEPTH:
        return TOO_DEEP
    number = tag >> 3
    while pos >= 0:
        tag, pos = varint32(buf, pos, end)
        if pos < 0:
            return pos
        if tag & 7 == END_GROUP:
            return pos if tag >> 3 == number else UNBALANCED
        if tag & 7 == GROUP:
            pos = skip_group(buf, pos, end, tag, level + 1)
        else:
            _, _, pos = payload(buf, pos, end, tag & 7)
    return pos


_FIELD_T = types.Tuple((types.int64, types.uint64, types.int64, types.int64))(
    BYTES, types.int64, types.int64, types.int64
)


@kernel(_FIELD_T, **KERNEL)
def _any_field(buf, pos, end, level):  # type: ignore[no-untyped-def]
    tag, pos = varint32(buf, pos, end)
    if pos < 0:
        return tag, np.uint64(0), pos, pos
    if tag >> 3 == 0:
        return tag, np.uint64(0), pos, BAD_TAG
    if tag & 7 == GROUP:
        return tag, np.uint64(0), pos, skip_group(buf, pos, end, tag, level)
    if tag & 7 == END_GROUP:
        return tag, np.uint64(0), pos, UNBALANCED
    value, start, pos = payload(buf, pos, end, tag & 7)
    return tag, value, start, pos


@kernel(_FIELD_T, **INLINE)
def field(buf, pos, end, level):  # type: ignore[no-untyped-def]
    """Read one field of a message at `level`: (tag, value of a varint, start, next position).

    The payload of a length-delimited field is [start, next). A group is skipped whole.
    """
    if pos + 2 <= end:
        # Nearly all fields: a tag of one byte, then one byte of length or value, or eight.
        tag, size = np.int64(buf[np.uintp(pos)]), np.int64(buf[np.uintp(pos + 1)])
        wire_type = tag & 0x87
        if size < 0x80 and tag > 7:
            start = pos + 2
            if wire_type == LENGTH and start + size <= end:
                return tag, np.uint64(0), start, start + size
            if wire_type == VARINT:
                return tag, np.uint64(size), start, start
        if wire_type == FIXED64 and tag > 7 and pos + 9 <= end:
            return tag, np.uint64(0), pos + 1, pos + 9
    return _any_field(buf, pos, end, level)


@kernel(types.uint64(BYTES, types.int64), **INLINE)
def word(buf, pos):  # type: ignore[no-untyped-def]
    """The eight bytes at `pos`, which the caller has checked, as a little-endian number."""
    return load(buf, pos)


@kernel(types.uint64(BYTES, types.int64, types.int64), **INLINE)
def tail(buf, pos, end):  # type: ignore[no-untyped-def]
    """The last eight bytes of [pos, end), or all if there are fewer, as a little-endian number."""
    size = end - pos
    if size >= 8:
        return load(buf, end - 8)
    if size > 0 and end >= 8:
        # Reading what stands before `pos` and dropping it takes no loop.
        return load(buf, end - 8) >> np.uint64(64 - 8 * size)
    value = np.uint64(0)
    for index in range(size):
        value |= np.uint64(buf[pos + index]) << np.uint64(8 * index)
    return value


@kernel(types.boolean(BYTES, types.int64, types.int64), **KERNEL)
def _is_any_utf8(buf, pos, end):  # type: ignore[no-untyped-def]
    while pos < end:
        lead = buf[pos]
        pos += 1
        if lead < 0x80:
            continue
        low, high = 0x80, 0xBF
        if 0xC2 <= lead <= 0xDF:
            more = 1
        elif 0xE0 <= lead <= 0xEF:
            more = 2
            low = 0xA0 if lead == 0xE0 else 0x80
            high = 0x9F if lead == 0xED else 0xBF
        elif 0xF0 <= lead <= 0xF4:
            more = 3
            low = 0x90 if lead == 0xF0 else 0x80
            high = 0x8F if lead == 0xF4 else 0xBF
        else:
            return False
        if pos + more > end or not low <= buf[pos] <= high:
            return False
        for index in range(pos + 1, pos + more):
            if buf[index] & 0xC0 != 0x80:
                return False
        pos += more
    return True


@kernel(types.boolean(BYTES, types.int64, types.int64), **INLINE)
def is_ascii(buf, pos, end):  # type: ignore[no-untyped-def]
    """Whether every byte of [pos, end) is below 128."""
    bits = tail(buf, pos, end)
    for place in range(pos, end - 8, 8):
        bits |= load(buf, place)
    return bits & _NOT_ASCII == 0


@kernel(types.boolean(BYTES, types.int64, types.int64), **INLINE)
def is_utf8(buf, pos, end):  # type: ignore[no-untyped-def]
    """Whether [pos, end) is well-formed UTF-8 (RFC 3629: shortest forms only, no surrogates)."""
    return is_ascii(buf, pos, end) or _is_any_utf8(buf, pos, end)
