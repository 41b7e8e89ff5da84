"""Arrow Flight's framing and Arrow's message headers, as far as a `DoPut` server needs them.

Read from the wire before pyarrow does, because its reader can neither refuse compressed buffers nor
cap what a message declares: it allocates that first. What passes here takes no more memory once read
than its sender paid for in bytes, `check_schema`'s own limit aside.

Sources: Apache Arrow's Flight.proto, Message.fbs and Schema.fbs and the columnar format's section on
encapsulated messages; FlatBuffers' internals for the layout of tables and vectors.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidegauge.wire.protobuf import check, field, view

SCHEMA, DICTIONARY, RECORDS = 1, 2, 3
"""Message headers that a record stream may hold."""

_V5 = 4
"""The metadata version since Arrow 1.0 (2020). V4 could hide compression in a message's metadata."""

_DESCRIPTOR, _HEADER, _BODY, _PATH = 1 << 3 | 2, 2 << 3 | 2, 1000 << 3 | 2, 3 << 3 | 2

_ENTRY_BYTES = 256
"""About what a field or an entry of metadata takes once read, its text aside."""

_MESSAGE_METADATA_BYTES = 2**16
"""Metadata of single messages, of which the agent reads none."""

_TIMESTAMP, _UNION = 10, 14
"""Types with a parameter of any length: a time zone, and the type ids."""


class ArrowError(ValueError):
    """Bytes that are no Flight or Arrow message, or one that the agent refuses to read."""


class FlightMessage(NamedTuple):
    """One FlightData: the descriptor's path where it carries one, and the two parts of its message."""

    path: tuple[str, ...] | None
    header: memoryview
    body: memoryview


class MessageHeader(NamedTuple):
    """What a message's FlatBuffer says of it; `rows` and what follows is not said of a schema."""

    kind: int
    rows: int = 0
    compressed: bool = False
    dictionary: int = 0
    delta: bool = False


def flight_message(raw: bytes) -> FlightMessage:
    """Split a serialized FlightData without copying.

    Raises:
        ArrowError: for bytes that are no protobuf message of this kind.
    """
    path: tuple[str, ...] | None = None
    whole = memoryview(raw)
    header = body = whole[:0]
    try:
        for tag, start, end in _fields(raw, 0, len(raw), 0):
            if tag == _HEADER:
                header = whole[start:end]
            elif tag == _BODY:
                body = whole[start:end]
            elif tag == _DESCRIPTOR:
                path = (*(path or ()), *_path(raw, start, end))
    except ValueError as error:
        raise ArrowError(f"not a FlightData message: {error}") from error
    return FlightMessage(path, header, body)


def put_result(metadata: bytes) -> bytes:
    """A serialized PutResult, whose one field is `app_metadata`."""
    size, rest = [], len(metadata)
    while rest > 0x7F:
        size.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes((1 << 3 | 2, *size, rest)) + metadata


def _path(raw: bytes, start: int, end: int) -> Iterator[str]:
    for tag, begin, behind in _fields(raw, start, end, 1):
        if tag == _PATH:
            yield raw[begin:behind].decode()


def _fields(raw: bytes, position: int, end: int, level: int) -> Iterator[tuple[int, int, int]]:
    """Tag, start and end of each field; start and end are a payload's where it has a length."""
    octets = view(raw)
    while position < end:
        tag, _, start, position = field(octets, position, end, level)
        yield tag, start, check(position)


def message_header(message: FlightMessage) -> MessageHeader:
    """Read what kind of message it is and what it declares.

    Raises:
        ArrowError: for a header that is no schema, dictionary or record batch, points outside itself,
            contradicts the body, or would have the reader take more memory than there are bytes.
    """
    try:
        table = _Table(message.header, _unsigned(message.header, 0))
        kind, body_length, header = table.byte(1), table.long(3), table.table(2)
        if kind not in (SCHEMA, DICTIONARY, RECORDS) or header is None:
            raise ArrowError(f"message kind {kind} has no place in a stream of records")
        if table.byte(0) != _V5:
            raise ArrowError("only metadata version V5 is taken, which is Arrow's since 1.0 (2020)")
        if body_length != len(message.body):
            raise ArrowError(f"a body of {body_length} bytes is declared, one of {len(message.body)} came")
        _metadata_bytes(table, 4, _MESSAGE_METADATA_BYTES)
        if kind == SCHEMA:
            return MessageHeader(kind)
        batch = header.table(1) if kind == DICTIONARY else header
        if batch is None:
            raise ArrowError("a dictionary message without values")
        _check_buffers(batch.pairs(2), body_length)
        rows, compressed = batch.long(0), batch.table(3) is not None
        if kind == DICTIONARY:
            return MessageHeader(kind, rows, compressed, header.long(0), header.byte(2) != 0)
        return MessageHeader(kind, rows, compressed)
    except (struct.error, IndexError) as error:
        raise ArrowError("not an Arrow message header") from error


def is_little_endian(flatbuffer: memoryview) -> bool:
    """Whether a schema that has passed `check_schema` says so (Schema.fbs, Endianness)."""
    schema = _Table(flatbuffer, _unsigned(flatbuffer, 0)).table(2)
    return schema is None or schema.byte(0) == 0


def check_schema(flatbuffer: memoryview, most: int) -> None:
    """Refuse a schema that takes more than `most` bytes once read.

    A FlatBuffer's offsets may all lead to one place, so that a header of 1 MiB reads as 1 TB of
    metadata, or of columns.

    Raises:
        ArrowError: for such a one, or one that points outside itself.
    """
    try:
        schema = _Table(flatbuffer, _unsigned(flatbuffer, 0)).table(2)
        waiting = [] if schema is None else [(schema, 1, 2)]
        left = most
        while waiting:
            table, fields, metadata = waiting.pop()
            left -= _metadata_bytes(table, metadata, left)
            left -= _ENTRY_BYTES * table.count(fields)
            if left < 0:
                raise ArrowError("a schema is too large once read")
            for column in table.tables(fields):
                left -= column.count(0)
                kind = column.table(3)
                if kind is not None and column.byte(2) in (_TIMESTAMP, _UNION):
                    left -= 4 * kind.count(1)
                waiting.append((column, 5, 6))
    except (struct.error, IndexError) as error:
        raise ArrowError("not an Arrow schema") from error


def _metadata_bytes(table: _Table, slot: int, most: int) -> int:
    size = _ENTRY_BYTES * table.count(slot)
    if size <= most:
        size += sum(entry.count(0) + entry.count(1) for entry in table.tables(slot))
    if size > most:
        raise ArrowError("a schema or a message's metadata is too large once read")
    return size


def _check_buffers(buffers: npt.NDArray[np.uint64], body_length: int) -> None:
    """Refuse buffers that share bytes, for then the work is more than the bytes sent."""
    # Unsigned, so that a negative length is a huge one; as doubles, so that the sum cannot wrap.
    if buffers[1::2].sum(dtype=np.float64) > body_length:
        raise ArrowError(f"buffers reach outside the body of {body_length} bytes, or share parts of it")


def encapsulate(header: memoryview, body: memoryview) -> bytes:
    """The message as an IPC stream has it: continuation, length, padded header, body.

    The one copy of a batch's values. It aligns them: in a FlightData they lie anywhere.
    """
    padding = -len(header) % 8
    prefix = struct.pack("<Ii", 0xFFFF_FFFF, len(header) + padding)
    return b"".join((prefix, header, bytes(padding), body))


_unpack_offset = struct.Struct("<I").unpack_from
_unpack_vtable = struct.Struct("<i").unpack_from
_unpack_slot = struct.Struct("<H").unpack_from
_unpack_long = struct.Struct("<q").unpack_from


class _Table:
    """A FlatBuffer table: an offset to a vtable, which has the offset of each field or 0."""

    __slots__ = ("_fields", "_position", "_raw", "_vtable")

    def __init__(self, raw: memoryview, position: int) -> None:
        self._raw = raw
        self._position = position
        self._vtable = position - _unpack_vtable(raw, position)[0]
        if self._vtable < 0:
            raise IndexError
        self._fields = (_unpack_slot(raw, self._vtable)[0] - 4) // 2

    def byte(self, slot: int) -> int:
        at = self._at(slot)
        return self._raw[at] if at else 0

    def long(self, slot: int) -> int:
        at = self._at(slot)
        return int(_unpack_long(self._raw, at)[0]) if at else 0

    def table(self, slot: int) -> _Table | None:
        at = self._follow(slot)
        return _Table(self._raw, at) if at else None

    def count(self, slot: int) -> int:
        """The elements of a vector, or the bytes of a string."""
        at = self._follow(slot)
        return _unsigned(self._raw, at) if at else 0

    def tables(self, slot: int) -> Iterator[_Table]:
        """The elements of a vector of tables."""
        start = self._follow(slot) + 4
        for at in range(start, start + 4 * self.count(slot), 4):
            yield _Table(self._raw, at + _unsigned(self._raw, at))

    def pairs(self, slot: int) -> npt.NDArray[np.uint64]:
        """The elements of a vector of structs of two 64-bit numbers: uint64[2 * count]."""
        start, nbytes = self._follow(slot) + 4, 16 * self.count(slot)
        if start + nbytes > len(self._raw):
            raise IndexError
        return np.frombuffer(self._raw[start : start + nbytes], "<u8")

    def _at(self, slot: int) -> int:
        if slot >= self._fields:
            return 0
        offset: int = _unpack_slot(self._raw, self._vtable + 4 + 2 * slot)[0]
        return self._position + offset if offset else 0

    def _follow(self, slot: int) -> int:
        at = self._at(slot)
        return at + _unsigned(self._raw, at) if at else 0


def _unsigned(raw: memoryview, position: int) -> int:
    return int(_unpack_offset(raw, position)[0])
