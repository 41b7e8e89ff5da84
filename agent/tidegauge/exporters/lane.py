"""What waits for one collector, of one signal."""

from __future__ import annotations

import asyncio
import math
from bisect import insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from tidegauge.batch import Signal
from tidegauge.exporters.backoff import Backoff
from tidegauge.exporters.journal import Chunk, Extent, Place
from tidegauge.exporters.segment import START, Position

OVERHEAD = 250
"""Bytes that a waiting request costs besides its own: the objects around it, as CPython sizes them."""


@dataclass(slots=True, eq=False)
class Entry:
    """A request in memory. `position` is its place on disk or, where it has none, one not behind it."""

    signal: Signal
    sequence: int
    raw: bytes | memoryview
    items: int
    position: Position = START
    saved: bool = False

    @property
    def nbytes(self) -> int:
        return len(self.raw) + OVERHEAD


@dataclass(slots=True, eq=False)
class Batch:
    """Entries that one call carries. One that fails is tried again as it is, or in halves if it was late."""

    number: int
    entries: list[Entry]
    nbytes: int
    first_s: float = math.inf  # monotonic time of the first attempt
    started_s: float = 0.0  # and of the latest


@dataclass(slots=True, eq=False)
class Lane:
    """Requests on their way: in calls, then returned by calls that failed, waiting, and unread on disk.

    In that order they are sent. `items` counts all of them, and those being written; `nbytes` what is
    in memory. An item leaves when its fate is known.
    """

    signal: Signal
    backoff: Backoff
    full_bytes: int  # what makes a batch
    window: int  # batches that may be on their way or returned
    calls: list[Batch] = field(default_factory=list)
    returned: list[Batch] = field(default_factory=list)
    waiting: deque[Entry] = field(default_factory=deque)
    extents: deque[Extent] = field(default_factory=deque)
    items: int = 0
    nbytes: int = 0
    kept_bytes: int = 0  # of what waits
    since_s: float = 0.0  # the time from which the first entry waits
    end: Position = START  # of what is on disk
    floor: int = 0  # segments below it have been dropped
    numbered: int = 0
    failed_s: float = -math.inf  # when a call last failed
    retry_s: float = -math.inf  # when the next may start
    asked: bool = False  # by the collector, so that it is to be kept
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to send and nothing on its way."""
        return not (self.calls or self.returned or self.waiting or self.extents)

    @property
    def sendable(self) -> bool:
        """Whether a batch may be taken: at most `window` - 1 overtake an older one.

        While the collector fails one call at a time asks it.
        """
        if self.returned or self.failing:
            return not self.calls and bool(self.returned or self.waiting)
        oldest = min((batch.number for batch in self.calls), default=self.numbered)
        return bool(self.waiting) and self.numbered < oldest + self.window

    @property
    def failing(self) -> bool:
        """Whether a call has failed and none has succeeded since."""
        return self.failed_s > -math.inf

    @property
    def hungry(self) -> bool:
        """Whether there is more on disk and less than a batch in memory."""
        return bool(self.extents) and not self.returned and self.kept_bytes < self.full_bytes

    def reads(self, extent: Extent) -> bool:
        """Whether this extent is still the first."""
        return bool(self.extents) and self.extents[0] is extent

    def pause_s(self, now_s: float, at_most_s: float | None = None) -> float:
        """Seconds until the next call may start, or less; `at_most_s` after a failure if nobody asked."""
        if at_most_s is None or self.asked:
            return self.retry_s - now_s
        return min(self.retry_s, self.failed_s + at_most_s) - now_s

    def fail(self, batch: Batch, asked_s: float | None, now_s: float) -> None:
        """A call failed for a passing reason: pause, as the collector asked or longer each time."""
        if asked_s is not None:
            self.asked = True
            self.retry_s = max(self.retry_s, now_s + asked_s)
        elif batch.started_s >= self.failed_s:
            # Calls that were under way when the first one failed say nothing new.
            self.retry_s = max(self.retry_s, now_s + self.backoff.next_s())
        self.failed_s = now_s

    def succeed(self) -> None:
        """A call was answered for good."""
        self.backoff.reset()
        self.failed_s = self.retry_s = -math.inf
        self.asked = False

    def restore(self, extents: list[Extent], end: Position) -> None:
        """Take in what an earlier process left on disk."""
        self.extents.extend(extents)
        self.items += sum(extent.items for extent in extents)
        self.end = end

    def note(self, entry: Entry, place: Place) -> None:
        """An entry is on disk."""
        entry.position, entry.sequence, entry.saved = place.position, place.sequence, True
        self.end = Position(place.position.segment, place.end, place.position.item + entry.items)

    def begin(self, entry: Entry) -> None:
        """Count an entry that is yet to be pushed or spilled."""
        self.items += entry.items
        self.nbytes += entry.nbytes

    def push(self, entry: Entry, now_s: float) -> None:
        """Have an entry wait in memory, behind all others there."""
        if not self.waiting:
            self.since_s = now_s
        before = self.kept_bytes
        self.waiting.append(entry)
        self.kept_bytes += len(entry.raw)
        if not before or before < self.full_bytes <= self.kept_bytes:
            self.wake.set()

    def push_unsaved(self, entry: Entry, now_s: float) -> None:
        """The same for one that is not on disk: ahead of what is there unread."""
        if self.waiting:
            entry.position = self.waiting[-1].position
        else:
            entry.position = self.extents[0].position if self.extents else self.end
        self.push(entry, now_s)

    def spill(self, entry: Entry, place: Place) -> None:
        """Leave an entry to the disk."""
        self.nbytes -= entry.nbytes
        segment, offset, item = place.position
        last = self.extents[-1] if self.extents else None
        if last is not None and (last.segment, last.end) == (segment, offset):
            last.end, last.end_item = place.end, item + entry.items
        else:
            self.extents.append(Extent(segment, offset, place.end, item, item + entry.items, place.sequence))
            self.wake.set()

    def load(self, extent: Extent, chunk: Chunk, now_s: float) -> int:
        """Have what was read from the first extent wait. Returns the items lost to damage."""
        lost = 0
        for record in chunk.records:
            header = record.header
            end_item = header.item + header.items
            if not extent.item <= header.item <= end_item <= extent.end_item:
                continue  # a record inside a request, laid bare by damage
            position = Position(extent.segment, chunk.start + record.offset, header.item)
            lost += header.item - extent.item
            extent.item, extent.sequence = end_item, header.sequence + 1
            if record.sound:
                entry = Entry(self.signal, header.sequence, record.body, header.items, position, saved=True)
                self.nbytes += entry.nbytes
                self.push(entry, now_s)
            else:
                lost += header.items
        self.items -= lost
        extent.start = chunk.reached
        if extent.start >= extent.end:
            lost += self.discard(extent)
        return lost

    def discard(self, extent: Extent) -> int:
        """Give up what is unread of the first extent, and return its items."""
        assert self.extents[0] is extent
        self.extents.popleft()
        items = extent.items
        self.items -= items
        return items

    def take(self, now_s: float) -> Batch:
        """The next batch to send, which is in a call from now on."""
        batch = self.returned.pop(0) if self.returned else self._gather()
        self.since_s = now_s  # what is left may linger again
        batch.first_s = min(batch.first_s, now_s)
        batch.started_s = now_s
        self.kept_bytes -= batch.nbytes
        self.calls.append(batch)
        return batch

    def _gather(self) -> Batch:
        """The oldest that wait and fit into a batch together, or the oldest one."""
        entries = [self.waiting.popleft()]
        nbytes = len(entries[0].raw)
        while self.waiting and nbytes + len(self.waiting[0].raw) <= self.full_bytes:
            nbytes += len(self.waiting[0].raw)
            entries.append(self.waiting.popleft())
        self.numbered += 1
        return Batch(self.numbered - 1, entries, nbytes)

    def settle(self, batch: Batch, count: int) -> int:
        """Take the first `count` entries of a batch out, and return their items."""
        done, batch.entries = batch.entries[:count], batch.entries[count:]
        batch.nbytes -= sum(len(entry.raw) for entry in done)
        return self.leave(done)

    def end_call(self, batch: Batch) -> int:
        """A call is over; what it did not settle is returned, but for what was dropped meanwhile.

        Returns the items of the latter.
        """
        self.calls.remove(batch)
        gone = [entry for entry in batch.entries if self._gone(entry)]
        batch.entries = [entry for entry in batch.entries if not self._gone(entry)]
        batch.nbytes -= sum(len(entry.raw) for entry in gone)
        if batch.entries:
            insort(self.returned, batch, key=lambda one: one.number)
            self.kept_bytes += batch.nbytes
        self.wake.set()
        return self.leave(gone)

    def halve(self, batch: Batch) -> None:
        """Have a returned batch be tried in two parts: whole it may never be in time, and holds all up."""
        half = len(batch.entries) // 2
        if half and batch in self.returned:
            later = batch.entries[half:]
            nbytes = sum(len(entry.raw) for entry in later)
            batch.entries, batch.nbytes = batch.entries[:half], batch.nbytes - nbytes
            second = Batch(batch.number, later, nbytes, batch.first_s, batch.started_s)
            self.returned.insert(self.returned.index(batch) + 1, second)

    def expire(self, before_s: float) -> int:
        """Give up returned batches first tried before `before_s`, and return their items."""
        expired = [batch for batch in self.returned if batch.first_s <= before_s]
        self.returned = [batch for batch in self.returned if batch.first_s > before_s]
        self.kept_bytes -= sum(batch.nbytes for batch in expired)
        return sum(self.leave(batch.entries) for batch in expired)

    def oldest(self) -> Entry | None:
        """The oldest entry in memory that no call carries."""
        return next(self._kept(), None)

    def pop_oldest(self) -> int:
        """Take that one out, and return its items."""
        if self.returned:
            batch = self.returned[0]
            entry = batch.entries.pop(0)
            batch.nbytes -= len(entry.raw)
            if not batch.entries:
                self.returned.pop(0)
        else:
            entry = self.waiting.popleft()
        self.kept_bytes -= len(entry.raw)
        self.wake.set()
        return self.leave([entry])

    def oldest_on_disk(self) -> tuple[int, int] | None:
        """Sequence and segment of the oldest on disk that no call carries."""
        for entry in self._kept():
            if entry.saved:
                return entry.sequence, entry.position.segment
        return (self.extents[0].sequence, self.extents[0].segment) if self.extents else None

    def drop_segments(self, floor: int) -> int:
        """Give up all in segments below `floor`, and return the items. What a call carries, stays in it."""
        self.floor = floor
        items = 0
        for batch in self.returned:
            gone = [entry for entry in batch.entries if self._gone(entry)]
            batch.entries = [entry for entry in batch.entries if not self._gone(entry)]
            nbytes = sum(len(entry.raw) for entry in gone)
            batch.nbytes -= nbytes
            self.kept_bytes -= nbytes
            items += self.leave(gone)
        self.returned = [batch for batch in self.returned if batch.entries]
        gone = [entry for entry in self.waiting if self._gone(entry)]
        self.waiting = deque(entry for entry in self.waiting if not self._gone(entry))
        self.kept_bytes -= sum(len(entry.raw) for entry in gone)
        items += self.leave(gone)
        while self.extents and self.extents[0].segment < floor:
            items += self.discard(self.extents[0])
        self.wake.set()
        return items

    def low(self) -> Position:
        """The position that all before is settled."""
        queues = [*(batch.entries for batch in (*self.calls, *self.returned)), self.waiting]
        oldest = (
            next((one for one in queue if one.position.segment >= self.floor), None) for queue in queues
        )
        positions = [entry.position for entry in oldest if entry is not None]
        if self.extents:
            positions.append(self.extents[0].position)
        return min(positions, default=self.end)

    def clear(self) -> list[Entry]:
        """Take out all that waits in memory, and return what is not on disk: it is still to be settled."""
        kept = list(self._kept())
        self.returned, self.kept_bytes = [], 0
        self.waiting.clear()
        self.nbytes -= sum(entry.nbytes for entry in kept if entry.saved)
        return [entry for entry in kept if not entry.saved]

    def _kept(self) -> Iterator[Entry]:
        for batch in self.returned:
            yield from batch.entries
        yield from self.waiting

    def _gone(self, entry: Entry) -> bool:
        return entry.saved and entry.position.segment < self.floor

    def leave(self, entries: list[Entry]) -> int:
        """The fate of these is known. Returns their items."""
        items = sum(entry.items for entry in entries)
        self.items -= items
        self.nbytes -= sum(entry.nbytes for entry in entries)
        return items
