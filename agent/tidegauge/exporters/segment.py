"""Records in a file: what a disk queue writes, and what of it can be read again.

A record is a header of 40 bytes, then the serialised Export request as it was received. Header and
request have a CRC-32 each, so a torn or damaged record is known for one, and the next sound header
can be searched for. Each header also tells how many items (spans, data points, log records) of its
signal came before it, in the whole life of the queue: what a damaged part held is the difference
between its sound neighbours.
"""

from __future__ import annotations

import struct
from typing import NamedTuple
from zlib import crc32

_MAGIC = b"tgq\x01"
_GUARD = struct.Struct("<4sI")  # magic, CRC of what follows
_FACTS = struct.Struct("<IIQQQ")  # CRC of the request, its length, sequence, items before it, items
HEADER_BYTES = _GUARD.size + _FACTS.size


class Position(NamedTuple):
    """A place in a signal's queue: a segment's number, the offset in it, and the items before it."""

    segment: int
    offset: int
    item: int


START = Position(0, 0, 0)


class Header(NamedTuple):
    """What stands before a request. `sequence` orders the records of all signals."""

    body_crc: int
    length: int
    sequence: int
    item: int
    items: int

    @property
    def record_bytes(self) -> int:
        return HEADER_BYTES + self.length


class Record(NamedTuple):
    """A record as read: where its header is, and its request, which can be used where it is `sound`."""

    offset: int
    header: Header
    body: memoryview
    sound: bool

    @property
    def end(self) -> int:
        return self.offset + self.header.record_bytes


def encode(body: bytes | memoryview, sequence: int, item: int, items: int) -> bytes:
    """The header of a request."""
    facts = _FACTS.pack(crc32(body), len(body), sequence, item, items)
    return _GUARD.pack(_MAGIC, crc32(facts)) + facts


def decode(buffer: bytes | memoryview, offset: int = 0) -> Header | None:
    """The header at `offset`, or None where there is no sound one."""
    if offset + HEADER_BYTES > len(buffer):
        return None
    magic, crc = _GUARD.unpack_from(buffer, offset)
    start = offset + _GUARD.size
    if magic != _MAGIC or crc != crc32(buffer[start : start + _FACTS.size]):
        return None
    return Header(*_FACTS.unpack_from(buffer, start))


def find(buffer: bytes, offset: int = 0) -> int | None:
    """The offset of the first sound header at or after `offset`."""
    while (offset := buffer.find(_MAGIC, offset)) >= 0:
        if decode(buffer, offset) is not None:
            return offset
        offset += 1
    return None


def scan(buffer: bytes, *, final: bool) -> tuple[list[Record], int]:
    """Every record that is whole in `buffer`, and the offset to go on from. Damage is passed over.

    `final`: nothing follows the buffer, so that what is not whole there never will be.
    """
    found: list[Record] = []
    view = memoryview(buffer)
    offset = 0
    while True:
        header = decode(view, offset)
        if header is None:
            after = find(buffer, offset + 1)
            if after is None:
                # The last bytes may be the beginning of a header.
                rest = max(offset, len(buffer) - HEADER_BYTES + 1)
                return found, len(buffer) if final else rest
            offset = after
            continue
        record = Record(offset, header, view[offset + HEADER_BYTES :][: header.length], sound=True)
        if record.end > len(buffer):
            return found, len(buffer) if final else offset
        found.append(record._replace(sound=crc32(record.body) == header.body_crc))
        offset = record.end
