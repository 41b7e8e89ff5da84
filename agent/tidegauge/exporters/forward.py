"""Received OTLP, passed on to a collector as the bytes it came in."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import time
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Self

from tidegauge.batch import Signal
from tidegauge.config import Destination
from tidegauge.exporters.backoff import Backoff
from tidegauge.exporters.channel import Collector
from tidegauge.exporters.journal import SIGNALS, Extent, Place
from tidegauge.exporters.lane import Batch, Entry, Lane
from tidegauge.exporters.outcome import Outcome, Verdict
from tidegauge.exporters.segment import HEADER_BYTES, Position
from tidegauge.exporters.spool import PATIENCE_S, Spool
from tidegauge.telemetry import Telemetry

log = logging.getLogger(__name__)

LINGER_S = 0.2
"""How long a request waits for others to share its call: the Collector's batch timeout."""

EXPORTER = "forwarder"
"""Its name on the agent's own metrics."""

DEFAULT = "default"
"""The name there of the collector that `exporters.otlp` is about."""

_DRAINING_S = 0.5  # between attempts while the agent stops, when a full backoff would waste the time
_LEAST_S = 0.1  # where the collector asks for no wait at all


class Forwarder:
    """Hands every request to one collector, or counts it as dropped.

    Requests wait in memory, `queue_size` bytes in all; beyond that the oldest are dropped that no
    call is just carrying. With a disk queue (`folder`) they are on disk before the sender is answered;
    memory has what is being written, what calls carry and a tail of what came last.

    Concatenated Export requests are one request, so a call carries up to `batch_size` bytes. Each
    signal has its own lane and waits for no other. In a lane up to `in_flight` calls are under way.
    One that fails for a passing reason is repeated, for `max_elapsed` seconds from its first attempt,
    and with no other beside it until the collector takes something again; one that was not done in time
    is repeated in halves. One that the collector rejects is halved until what it rejects is found, and
    only that is dropped. The order is kept but for this: at most `in_flight` - 1 newer calls overtake an
    older one.

    For each signal, at every instant, in items:
    offered + restored = exported + export.dropped + pending.
    `restored` was found on disk at the start, and what is left there at the end is still pending.

    An async context manager: leaving it sends what it can within `drain_s` seconds.
    """

    def __init__(
        self,
        collector: Collector,
        telemetry: Telemetry,
        settings: Destination,
        *,
        name: str = DEFAULT,
        folder: Path | None = None,
        drain_s: float = 5.0,
        linger_s: float = LINGER_S,
        backoff_s: tuple[float, float] = (5.0, 30.0),
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._collector = collector
        self._telemetry = telemetry
        self._labels = {"exporter": EXPORTER, "collector": name}
        self._limit = int(settings.queue_size)
        # Three lanes' calls, which cannot be dropped, leave a quarter of the queue for what is new.
        self._batch_bytes = min(int(settings.batch_size), self._limit // (4 * settings.in_flight))
        self._longest_s = float(settings.max_elapsed)
        self._max_elapsed_s = self._longest_s
        self._when_full = settings.disk_queue.when_full
        self._spool: Spool | None = None
        if folder is not None:
            closing_s, drain_s = drain_s / 3, drain_s * 2 / 3
            self._spool = Spool(
                folder, settings.disk_queue, self._saved, patience_s=patience_s, closing_s=closing_s
            )
            self._max_elapsed_s = float(settings.disk_queue.max_elapsed)
        self._drain_s = drain_s
        self._linger_s = linger_s
        self._lanes = {
            signal: Lane(signal, Backoff(*backoff_s), self._batch_bytes, settings.in_flight)
            for signal in SIGNALS
            if str(signal) in settings.signals
        }
        self._unwanted: list[tuple[Signal, int]] = []  # segments of signals not forwarded any more
        self._sequence = 0
        self._closing = asyncio.Event()
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    def offer(self, signal: Signal, raw: bytes, items: int) -> asyncio.Future[None] | None:
        """Take a serialised Export request of `items` items. Call on the event loop; never waits.

        Where a future is returned, the sender is to be answered when it is done: then the request is
        on disk or, where the disk has failed or taken too long, in memory like without a disk queue.
        """
        lane = self._lanes.get(signal)
        if lane is None:
            return None
        self._sequence += 1
        entry = Entry(signal, self._sequence, raw, items)
        if self._closed or not self._has_room(entry):
            self._drop(signal, items, "shutdown" if self._closed else "queue_full")
            return None
        lane.begin(entry)
        if self._spool is not None:
            return self._spool.append(entry)
        lane.push(entry, time.monotonic())
        return None

    def keeps_up(self, signal: Signal, nbytes: int) -> bool:
        """Whether the disk has written enough of what came for a request of so many bytes not to be dropped.

        A sender that is asked to wait loses nothing, and one whose request is dropped does. A disk that
        hangs is waited for no longer than `patience_s`: then nothing is on its way there.
        """
        queued = 0 if self._spool is None or signal not in self._lanes else self._spool.queued
        return not queued or queued + HEADER_BYTES + nbytes <= self._limit // 2

    @property
    def pending_bytes(self) -> int:
        """Bytes in memory of the requests whose fate is open, overhead included."""
        return sum(lane.nbytes for lane in self._lanes.values())

    def pending_items(self, signal: Signal) -> int:
        """Items offered or restored, and neither exported nor dropped yet."""
        return self._lanes[signal].items

    def observe(self) -> None:
        """Write the queue's gauges to the agent's own telemetry."""
        labels, gauge = self._labels, self._telemetry.set_gauge
        for signal, lane in self._lanes.items():
            gauge("export.pending", "{item}", "Items not yet handed on.", lane.items, signal=signal, **labels)
        usage, limit, failing = 0, 0, False
        if self._spool is not None:
            usage, limit, failing = self._spool.usage, self._spool.limit, self._spool.failing
        gauge("export.queue.usage", "By", "Bytes in memory, not yet handed on.", self.pending_bytes, **labels)
        gauge("export.queue.limit", "By", "Bytes that may wait in memory.", self._limit, **labels)
        gauge("export.disk.usage", "By", "Bytes of the disk queue.", usage, **labels)
        gauge("export.disk.limit", "By", "Bytes that the disk queue may take; 0 without.", limit, **labels)
        gauge("export.disk.failing", "", "1 while the disk refuses or hangs.", failing, **labels)

    async def __aenter__(self) -> Self:
        if self._spool is not None:
            await self._spool.__aenter__()
            for signal, (extents, end) in self._spool.restored.items():
                self._restore(signal, extents, end)
        for signal, lane in self._lanes.items():
            self._start(self._run(lane), f"forward {signal}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        for lane in self._lanes.values():
            lane.wake.set()
        deadline_s = time.monotonic() + self._drain_s
        while self._tasks and (left_s := deadline_s - time.monotonic()) > 0:
            await asyncio.wait(self._tasks, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        if late := set(self._tasks):
            for task in late:
                task.cancel()
            await asyncio.wait(late)
        self._closed = True
        if left := sum(lane.items for lane in self._lanes.values()):
            kept = "" if self._spool is None else "; those on disk wait for the next start"
            log.warning("stopped with %d items not handed on to %s%s", left, self._collector.endpoint, kept)
        for lane in self._lanes.values():
            for entry in lane.clear():
                if self._spool is None:
                    self._drop(lane.signal, lane.leave([entry]), "shutdown")
                else:
                    self._spool.append(entry)  # a disk that failed then may take it now
        if self._spool is not None:
            await self._spool.__aexit__(kind, error, trace)

    def _restore(self, signal: Signal, extents: list[Extent], end: Position) -> None:
        items = sum(extent.items for extent in extents)
        if signal in self._lanes:
            self._lanes[signal].restore(extents, end)
            self._telemetry.add("export.restored", items, signal=signal, **self._labels)
        elif items:
            log.warning("%d items of %s wait on disk, which are not forwarded any more", items, signal)
            self._unwanted += [(signal, extent.segment) for extent in extents]

    def _start(self, coroutine: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, lane: Lane) -> None:
        while lane.items or not (lane.idle and self._closing.is_set()):
            lane.wake.clear()
            try:
                wait_s = await self._advance(lane)
            except Exception:
                log.exception("forwarding %s failed", lane.signal)
                wait_s = _DRAINING_S
            if wait_s == 0:
                # Joining and handing over 4 MiB takes 2 ms: one call in each turn of the loop.
                await asyncio.sleep(0)
            else:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(lane.wake.wait(), wait_s)

    async def _advance(self, lane: Lane) -> float | None:
        """Do what is to be done next. Returns the seconds to wait before, None: until the lane wakes."""
        now_s = time.monotonic()
        self._drop(lane.signal, lane.expire(now_s - self._max_elapsed_s), "expired")
        if lane.hungry:
            await self._load(lane)
            return 0
        if not lane.sendable:
            return None
        closing = self._closing.is_set()
        wait_s = lane.pause_s(now_s, _DRAINING_S if closing else None)
        if not closing and not lane.returned and lane.kept_bytes < self._batch_bytes:
            wait_s = max(wait_s, lane.since_s + self._linger_s - now_s)
        if wait_s > 0:
            return wait_s
        batch = lane.take(now_s)
        self._start(self._call(lane, batch), f"forward {lane.signal} {batch.number}")
        return 0

    async def _load(self, lane: Lane) -> None:
        """Read what waits on disk, once memory has less than a batch."""
        assert self._spool is not None
        extent = lane.extents[0]
        try:
            chunk = await self._spool.read(lane.signal, extent, self._batch_bytes)
        except OSError as error:
            if not lane.reads(extent):
                return  # dropped meanwhile, and its segment deleted
            if error.errno not in (errno.EIO, errno.ENOENT):
                raise
            lost = lane.discard(extent)
            log.warning("%d items of %s on disk cannot be read: %s", lost, lane.signal, error)
        else:
            lost = lane.load(extent, chunk, time.monotonic()) if lane.reads(extent) else 0
        self._drop(lane.signal, lost, "corrupt")

    async def _call(self, lane: Lane, batch: Batch) -> None:
        outcome = Outcome(Verdict.RETRY)
        try:
            outcome = await self._deliver(lane, batch)
        except Exception:
            # What is not settled stays in the batch, so nothing is miscounted.
            log.exception("forwarding %s failed", lane.signal)
        finally:
            self._drop(lane.signal, lane.end_call(batch), "queue_full")
        if outcome.verdict is Verdict.RETRY:
            self._telemetry.add("export.retries", 1, signal=lane.signal, **self._labels)
            if outcome.timed_out:
                lane.halve(batch)
            asked_s = outcome.delay_s
            if asked_s is not None:
                asked_s = min(max(asked_s, _LEAST_S), self._longest_s)
            lane.fail(batch, asked_s, time.monotonic())
        else:
            lane.succeed()

    async def _deliver(self, lane: Lane, batch: Batch) -> Outcome:
        """Send a batch, in halves where its content is rejected, until all is settled or to be repeated."""
        counts = [len(batch.entries)]
        outcome = Outcome(Verdict.DELIVERED)
        while counts:
            count = counts.pop()
            entries = batch.entries[:count]
            outcome = await self._collector.export(lane.signal, b"".join(entry.raw for entry in entries))
            if outcome.verdict is Verdict.RETRY:
                break
            if outcome.verdict is Verdict.DELIVERED:
                self._settle(lane, batch, count, outcome.rejected_items)
            elif outcome.about_content and count > 1:
                counts += (count - count // 2, count // 2)
            else:
                self._settle(lane, batch, count, sum(entry.items for entry in entries))
        return outcome

    def _settle(self, lane: Lane, batch: Batch, count: int, rejected: int) -> None:
        """Take a batch's oldest entries out, `rejected` of their items as dropped, the rest as exported."""
        items = lane.settle(batch, count)
        rejected = min(rejected, items)
        self._telemetry.add("exported", items - rejected, signal=lane.signal, **self._labels)
        self._drop(lane.signal, rejected, "rejected")
        self._commit(lane)

    def _saved(self, entry: Entry, place: Place | None) -> None:
        """An entry has been written, or could not be."""
        lane = self._lanes[entry.signal]
        if place is not None:
            self._sequence = max(self._sequence, place.sequence)
            lane.note(entry, place)
            kept_bytes = sum(other.kept_bytes for other in self._lanes.values())
            # Calls carry up to three quarters of what memory may hold.
            if self._closed or lane.extents or kept_bytes + len(entry.raw) > self._limit // 4:
                lane.spill(entry, place)
            else:
                lane.push(entry, time.monotonic())
        elif self._closed:
            self._drop(entry.signal, lane.leave([entry]), "shutdown")
        else:
            self._telemetry.add("export.unsaved", entry.items, signal=entry.signal, **self._labels)
            lane.push_unsaved(entry, time.monotonic())
            while self.pending_bytes > self._limit and self._drop_oldest():
                pass

    def _commit(self, lane: Lane) -> None:
        if self._spool is not None:
            self._spool.commit(lane.signal, lane.low())

    def _has_room(self, entry: Entry) -> bool:
        """Make room for an entry, if that can be."""
        spool = self._spool
        if spool is None:
            while self.pending_bytes + entry.nbytes > self._limit:
                if entry.nbytes > self._limit or not self._drop_oldest():
                    return False
            return True
        nbytes = HEADER_BYTES + len(entry.raw)
        if nbytes > spool.limit or not self.keeps_up(entry.signal, len(entry.raw)):
            return False
        while spool.usage + spool.queued + nbytes > spool.limit:
            if self._unwanted:
                spool.drop(*self._unwanted.pop(0))
            elif self._when_full == "drop_newest" or not self._drop_segment(spool):
                return False
        return True

    def _drop_oldest(self) -> bool:
        """Drop the oldest entry in memory that no call is carrying; False where there is none."""
        found = [(oldest.sequence, lane) for lane in self._lanes.values() if (oldest := lane.oldest())]
        if not found:
            return False
        _, lane = min(found, key=lambda one: one[0])
        self._drop(lane.signal, lane.pop_oldest(), "queue_full")
        return True

    def _drop_segment(self, spool: Spool) -> bool:
        """Drop the segment of the oldest entry on disk that no call carries; False where there is none."""
        found = [(oldest, lane) for lane in self._lanes.values() if (oldest := lane.oldest_on_disk())]
        if not found:
            return False
        (_, segment), lane = min(found, key=lambda one: one[0])
        self._drop(lane.signal, lane.drop_segments(segment + 1), "queue_full")
        self._commit(lane)
        spool.drop(lane.signal, segment)
        return True

    def _drop(self, signal: Signal, items: int, reason: str) -> None:
        if items:
            self._telemetry.add("export.dropped", items, signal=signal, reason=reason, **self._labels)
