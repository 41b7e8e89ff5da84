"""One collector's disk queue: append-only segments of each signal, and how much of them was delivered."""

from __future__ import annotations

import errno
import os
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from tidegauge.batch import Signal
from tidegauge.exporters.segment import (
    HEADER_BYTES,
    START,
    Header,
    Position,
    Record,
    decode,
    encode,
    find,
    scan,
)

SIGNALS = (Signal.TRACES, Signal.METRICS, Signal.LOGS)

_CURSOR = struct.Struct("<9Q")  # a Position for each signal
_BUFFERS = 1024  # of one writev call: IOV_MAX
_MODE = 0o600


class Request(NamedTuple):
    """What is appended."""

    signal: Signal
    raw: bytes | memoryview
    items: int


class Place(NamedTuple):
    """Where a request has gone."""

    position: Position
    end: int
    sequence: int


@dataclass(slots=True)
class Extent:
    """A stretch of a segment that holds records not read yet."""

    segment: int
    start: int
    end: int
    item: int
    end_item: int
    sequence: int  # of its first record, or a lower one

    @property
    def position(self) -> Position:
        return Position(self.segment, self.start, self.item)

    @property
    def items(self) -> int:
        return self.end_item - self.item


class Chunk(NamedTuple):
    """Records read from an extent, offsets counting from `start`, and the offset to go on from."""

    start: int
    records: list[Record]
    reached: int


@dataclass(slots=True)
class _Active:
    number: int
    descriptor: int
    size: int


class Journal:
    """Blocks, so it is called from threads: `read` and `sync` from any, all else from one.

    A folder holds `NUMBER.SIGNAL` for each segment, numbers growing over all signals, and `cursor`:
    the first record of each signal that was not delivered. A segment is deleted once the cursor has
    passed it. What an earlier process wrote is read, and never appended to.
    """

    def __init__(self, folder: Path, segment_bytes: int) -> None:
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._active: dict[Signal, _Active] = {}
        self._items = dict.fromkeys(SIGNALS, 0)
        self._marks = dict.fromkeys(SIGNALS, START)
        self._sequence = 0
        self._number = 0
        self._cursor = -1

    def open(self) -> dict[Signal, tuple[list[Extent], Position]]:
        """What was appended earlier and not delivered, once torn tails are cut off, and where it ends.

        Raises:
            OSError: where the folder cannot be read or written.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._cursor = os.open(self._folder / "cursor", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
        marks = _unpack(os.pread(self._cursor, 1024, 0))
        self._marks = marks or self._marks
        numbers: dict[Signal, list[int]] = {signal: [] for signal in SIGNALS}
        for path in self._folder.iterdir():
            number, _, signal = path.name.partition(".")
            if number.isdigit() and signal in SIGNALS:
                numbers[Signal(signal)].append(int(number))
        used = [number for found in numbers.values() for number in found]
        self._number = max([*used, *(mark.segment for mark in self._marks.values())])
        return {
            signal: self._recover(signal, sorted(found), known=marks is not None)
            for signal, found in numbers.items()
        }

    def sizes(self) -> dict[int, tuple[Signal, int]]:
        """Signal and bytes of each segment, by number."""
        paths = ((signal, path) for signal in SIGNALS for path in self._folder.glob(f"*.{signal}"))
        return {int(path.stem): (signal, path.stat().st_size) for signal, path in paths}

    def append(self, requests: Sequence[Request], keep: Callable[[], bool]) -> list[Place] | None:
        """Write the requests behind all others; None where `keep`, asked when it is done, says no.

        All of them or none: whatever of them was written is cut off again, also where it raises.

        Raises:
            OSError: where the disk does not take them.
        """
        sizes: dict[Signal, int] = {}
        items, sequence = dict(self._items), self._sequence
        try:
            places = self._append(requests, sizes)
        except OSError:
            self._cut_off(sizes, items, sequence)
            raise
        if keep():
            return places
        self._cut_off(sizes, items, sequence)
        return None

    def read(self, signal: Signal, extent: Extent, nbytes: int) -> Chunk:
        """The next records of the extent, about `nbytes` of them, at least one.

        Raises:
            OSError: where the segment cannot be read.
        """
        start, room = extent.start, extent.end - extent.start
        descriptor = os.open(self._path(extent.segment, signal), os.O_RDONLY | os.O_CLOEXEC)
        try:
            want = min(room, max(nbytes, HEADER_BYTES))
            buffer = os.pread(descriptor, want, start)
            first = decode(buffer)
            if first is not None and want < first.record_bytes <= room:
                want = first.record_bytes
                buffer = os.pread(descriptor, want, start)
        finally:
            os.close(descriptor)
        final = want == room or len(buffer) < want
        found, reached = scan(buffer, final=final)
        return Chunk(start, found, extent.end if final else start + reached)

    def commit(self, marks: Mapping[Signal, Position]) -> None:
        """Note what is delivered, up to these positions, and delete the segments before them.

        Raises:
            OSError: where the disk refuses; the next call says it all again.
        """
        passed = [signal for signal, mark in marks.items() if mark.segment != self._marks[signal].segment]
        self._marks |= marks
        os.pwrite(self._cursor, _pack(self._marks), 0)
        for signal in passed:
            for path in self._folder.glob(f"*.{signal}"):
                if int(path.stem) < marks[signal].segment:
                    self._delete(int(path.stem), signal)

    def drop(self, number: int, signal: Signal) -> None:
        """Delete a segment whose records nobody wants any more. Raises OSError."""
        self._delete(number, signal)

    def sync(self, segments: Iterable[tuple[int, Signal]]) -> None:
        """Have the disk keep these segments, the cursor and the folder's list, through a power cut.

        Raises:
            OSError: where the disk does not.
        """
        for path in [*(self._path(*one) for one in segments), self._folder / "cursor"]:
            try:
                _sync(path)
            except FileNotFoundError:
                continue  # delivered and deleted meanwhile
        _sync(self._folder)

    def close(self) -> None:
        """Close the files."""
        for active in self._active.values():
            os.close(active.descriptor)
        self._active.clear()
        os.close(self._cursor)

    def _path(self, number: int, signal: Signal) -> Path:
        return self._folder / f"{number:012}.{signal}"

    def _append(self, requests: Sequence[Request], sizes: dict[Signal, int]) -> list[Place]:
        buffers: defaultdict[Signal, list[bytes | memoryview]] = defaultdict(list)
        places = []
        ends: dict[Signal, int] = {}
        for signal, raw, items in requests:
            if signal not in ends:
                ends[signal] = sizes[signal] = self._writable(signal).size
            offset, item = ends[signal], self._items[signal]
            buffers[signal] += (encode(raw, self._sequence, item, items), raw)
            ends[signal] = offset + HEADER_BYTES + len(raw)
            position = Position(self._active[signal].number, offset, item)
            places.append(Place(position, ends[signal], self._sequence))
            self._items[signal] += items
            self._sequence += 1
        for signal, pieces in buffers.items():
            _write(self._active[signal].descriptor, pieces, sizes[signal])
            self._active[signal].size = ends[signal]
        return places

    def _writable(self, signal: Signal) -> _Active:
        """The segment to append to; a new one where the last is full."""
        active = self._active.get(signal)
        if active is not None and active.size < self._segment_bytes:
            return active
        self._number += 1
        path = self._path(self._number, signal)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        if active is not None:
            os.close(active.descriptor)
        self._active[signal] = _Active(self._number, descriptor, 0)
        return self._active[signal]

    def _cut_off(self, sizes: Mapping[Signal, int], items: dict[Signal, int], sequence: int) -> None:
        self._items, self._sequence = items, sequence
        for signal, size in sizes.items():
            active = self._active[signal]
            active.size = size
            try:
                os.ftruncate(active.descriptor, size)
            except OSError:
                # What stays there is passed over by who reads; nothing may be written behind it.
                os.close(self._active.pop(signal).descriptor)

    def _delete(self, number: int, signal: Signal) -> None:
        active = self._active.get(signal)
        if active is not None and active.number == number:
            os.close(self._active.pop(signal).descriptor)
        self._path(number, signal).unlink(missing_ok=True)

    def _recover(self, signal: Signal, numbers: list[int], *, known: bool) -> tuple[list[Extent], Position]:
        mark = self._marks[signal]
        wanted = [number for number in numbers if number >= mark.segment]
        for number in numbers[: len(numbers) - len(wanted)]:
            self._delete(number, signal)
        extents: list[Extent] = []
        end_item = mark.item
        while wanted and (last := self._repair(signal, wanted[-1])) is None:
            self._delete(wanted.pop(), signal)
        for number in wanted:
            path = self._path(number, signal)
            start = mark.offset if number == mark.segment else 0
            size = path.stat().st_size
            first = _first(path, start) if start < size else None
            if first is None:
                continue  # delivered, or nothing in it is sound: the next one tells what is missing
            if extents:
                extents[-1].end_item = first.item
            item = mark.item if known and not extents and mark.item <= first.item else first.item
            extents.append(Extent(number, start, size, item, item, first.sequence))
        if wanted and last is not None:
            end_item = last.item + last.items
            self._sequence = max(self._sequence, last.sequence + 1)
            if extents:
                extents[-1].end_item = end_item
        self._items[signal] = end_item
        end = Position(extents[-1].segment, extents[-1].end, end_item) if extents else mark
        return extents, end

    def _repair(self, signal: Signal, number: int) -> Header | None:
        """Cut off what follows the last sound record of a segment, whose header is returned."""
        path = self._path(number, signal)
        found, _ = scan(path.read_bytes(), final=True)
        sound = [record for record in found if record.sound]
        if not sound:
            return None
        os.truncate(path, sound[-1].end)
        return sound[-1].header


def _first(path: Path, start: int) -> Header | None:
    """The first sound header of a segment at or after `start`."""
    with path.open("rb") as file:
        file.seek(start)
        header = decode(head := file.read(HEADER_BYTES))
        if header is not None:
            return header
        rest = head + file.read()
    offset = find(rest)
    return None if offset is None else decode(rest, offset)


def _pack(marks: Mapping[Signal, Position]) -> bytes:
    body = _CURSOR.pack(*(number for signal in SIGNALS for number in marks[signal]))
    return crc32(body).to_bytes(4, "little") + body


def _unpack(raw: bytes) -> dict[Signal, Position] | None:
    if not raw:
        return dict.fromkeys(SIGNALS, START)  # none yet, so nothing was ever deleted
    body = raw[4:]
    if len(body) != _CURSOR.size or crc32(body) != int.from_bytes(raw[:4], "little"):
        return None
    numbers = _CURSOR.unpack(body)
    return {signal: Position(*numbers[3 * n : 3 * n + 3]) for n, signal in enumerate(SIGNALS)}


def _write(descriptor: int, pieces: list[bytes | memoryview], offset: int) -> None:
    done = 0
    while done < len(pieces):
        written = os.pwritev(descriptor, pieces[done : done + _BUFFERS], offset)
        if written == 0 and any(pieces[done : done + _BUFFERS]):
            raise OSError(errno.EIO, "the disk takes nothing and does not say why")
        offset += written
        while done < len(pieces) and written >= len(pieces[done]):
            written -= len(pieces[done])
            done += 1
        if written:
            pieces[done] = memoryview(pieces[done])[written:]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor) if path.is_dir() else os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
