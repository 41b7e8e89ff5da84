"""Arrow Flight's framing and Arrow's message headers, as far as a `DoPut` server needs them.

Read from the wire, because pyarrow's reader can neither refuse compressed buffers nor cap what a
message declares (and allocates it first). Sources: Apache Arrow's Flight.proto, Message.fbs and the
columnar format's section on encapsulated messages; FlatBuffers' internals for table layout.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

SCHEMA, DICTIONARY, RECORDS = 1, 2, 3
"""Message headers that a record stream may hold."""


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
    body_length: int
    rows: int = 0
    compressed: bool = False
    dictionary: int = 0
    delta: bool = False


def flight_message(raw: bytes) -> FlightMessage:
    """Split a serialized FlightData without copying.

    Raises:
        ArrowError: for bytes that are no protobuf message of this kind.
    """
    path, header, body = None, memoryview(b""), memoryview(b"")
    try:
        for number, value in _fields(memoryview(raw)):
            if number == 1:
                path = _path(value)
            elif number == 2:
                header = value
            elif number == 1000:
                body = value
    except (IndexError, UnicodeDecodeError) as error:
        raise ArrowError("not a FlightData message") from error
    return FlightMessage(path, header, body)


def _path(descriptor: memoryview) -> tuple[str, ...]:
    return tuple(bytes(value).decode() for number, value in _fields(descriptor) if number == 3)


def _fields(raw: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The length-delimited fields of a message; others are skipped."""
    position, end = 0, len(raw)
    while position < end:
        tag, position = _varint(raw, position)
        wire_type = tag & 7
        if wire_type == 0:
            _, position = _varint(raw, position)
            continue
        if wire_type in (1, 5):
            position += 8 if wire_type == 1 else 4
            continue
        if wire_type != 2:
            raise IndexError
        length, position = _varint(raw, position)
        if position + length > end:
            raise IndexError
        yield tag >> 3, raw[position : position + length]
        position += length


def _varint(raw: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = raw[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise IndexError


def message_header(flatbuffer: memoryview) -> MessageHeader:
    """Read kind, rows and body length, and whether any buffer is compressed.

    Raises:
        ArrowError: for a header that is no schema, dictionary or record batch, or points outside itself.
    """
    try:
        message = _Table(flatbuffer, _unsigned(flatbuffer, 0))
        kind = message.byte(1)
        body_length = message.long(3)
        header = message.table(2)
        if kind not in (SCHEMA, DICTIONARY, RECORDS) or header is None or body_length < 0:
            raise ArrowError(f"message kind {kind} has no place in a stream of records")
        if kind == SCHEMA:
            return MessageHeader(kind, body_length)
        batch = header.table(1) if kind == DICTIONARY else header
        if batch is None:
            raise ArrowError("a dictionary message without values")
        said = MessageHeader(kind, body_length, batch.long(0), batch.table(3) is not None)
        if kind == DICTIONARY:
            said = said._replace(dictionary=header.long(0), delta=header.byte(2) != 0)
        return said
    except (struct.error, IndexError) as error:
        raise ArrowError("not an Arrow message header") from error


def encapsulate(header: memoryview, body: memoryview) -> bytes:
    """The message as an IPC stream has it: continuation, length, padded header, body."""
    padding = -len(header) % 8
    prefix = struct.pack("<Ii", 0xFFFF_FFFF, len(header) + padding)
    return b"".join((prefix, header, bytes(padding), body))


class _Table:
    """A FlatBuffer table: an offset to a vtable, which has the offset of each field or 0."""

    def __init__(self, raw: memoryview, position: int) -> None:
        self._raw = raw
        self._position = position
        self._vtable = position - struct.unpack_from("<i", raw, position)[0]
        if self._vtable < 0:
            raise IndexError
        self._fields = (struct.unpack_from("<H", raw, self._vtable)[0] - 4) // 2

    def _at(self, field: int) -> int:
        if field >= self._fields:
            return 0
        offset: int = struct.unpack_from("<H", self._raw, self._vtable + 4 + 2 * field)[0]
        return self._position + offset if offset else 0

    def byte(self, field: int) -> int:
        at = self._at(field)
        return self._raw[at] if at else 0

    def long(self, field: int) -> int:
        at = self._at(field)
        return int(struct.unpack_from("<q", self._raw, at)[0]) if at else 0

    def table(self, field: int) -> _Table | None:
        at = self._at(field)
        return _Table(self._raw, at + _unsigned(self._raw, at)) if at else None


def _unsigned(raw: memoryview, position: int) -> int:
    return int(struct.unpack_from("<I", raw, position)[0])
