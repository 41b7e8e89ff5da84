"""Received OTLP, passed on to the collector as the bytes it came in."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from types import TracebackType
from typing import Self

from tidegauge.batch import Signal
from tidegauge.config import OtlpExporter
from tidegauge.exporters.backoff import Backoff
from tidegauge.exporters.channel import Collector, Verdict
from tidegauge.telemetry import Telemetry

log = logging.getLogger(__name__)

LINGER_S = 0.2
"""How long a request waits for others to share its call: the Collector's batch timeout."""

OVERHEAD = 200
"""Bytes that a waiting request costs besides its own: the objects around it, as CPython sizes them."""

EXPORTER = "forwarder"
"""Its name on the agent's own metrics."""

_DRAINING_S = 0.5  # between attempts while the agent stops, when a full backoff would waste the time
_LEAST_S = 0.1  # where the collector asks for no wait at all
_UNLIMITED = 1 << 30


@dataclass(slots=True)
class _Entry:
    sequence: int
    raw: bytes
    items: int
    tried_s: float = math.inf  # monotonic time of the first attempt

    @property
    def nbytes(self) -> int:
        return len(self.raw) + OVERHEAD


@dataclass(slots=True)
class _Lane:
    """What waits for the collector, of one signal. An entry leaves when its fate is known."""

    signal: Signal
    backoff: Backoff
    entries: deque[_Entry] = field(default_factory=deque)
    nbytes: int = 0
    items: int = 0
    in_flight: int = 0  # entries, from the left, whose fate a call is about to tell
    most: int = _UNLIMITED  # entries per call; halved to find the one that the collector rejects
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def batch(self, nbytes: int) -> list[_Entry]:
        """The oldest entries that fit into `nbytes` together, or the oldest one."""
        found: list[_Entry] = []
        for entry in islice(self.entries, self.most):
            nbytes -= len(entry.raw)
            if found and nbytes < 0:
                break
            found.append(entry)
        return found

    def append(self, entry: _Entry) -> None:
        self.entries.append(entry)
        self.nbytes += entry.nbytes
        self.items += entry.items
        self.wake.set()

    def pop(self, place: int = 0) -> _Entry:
        """Take out the entry at `place`."""
        entry = self.entries[place]
        del self.entries[place]
        self.nbytes -= entry.nbytes
        self.items -= entry.items
        return entry


class Forwarder:
    """Hands every request to the collector, or counts it as dropped. Never makes a receiver wait.

    Requests wait in memory, `queue_size` bytes in all; beyond that the oldest are dropped that no
    call is just carrying. Concatenated Export requests are one request, so a call carries up to
    `batch_size` bytes. A call that fails for a passing reason is tried again, for `max_elapsed`
    seconds from an entry's first attempt; one that the collector rejects is halved until what it
    rejects is found, and only that is dropped. Each signal has its own lane and waits for no other.

    For each signal, at every instant: offered = exported + export.dropped + pending, in items.
    An async context manager: leaving it sends what it can within `drain_s` seconds.
    """

    def __init__(
        self,
        collector: Collector,
        telemetry: Telemetry,
        settings: OtlpExporter,
        *,
        drain_s: float = 5.0,
        linger_s: float = LINGER_S,
        backoff_s: tuple[float, float] = (5.0, 30.0),
    ) -> None:
        self._collector = collector
        self._telemetry = telemetry
        self._limit = int(settings.queue_size)
        # Three lanes' calls, which cannot be dropped, leave a quarter of the queue for what is new.
        self._batch_bytes = min(int(settings.batch_size), self._limit // 4)
        self._max_elapsed_s = float(settings.max_elapsed)
        self._drain_s = drain_s
        self._linger_s = linger_s
        signals = (Signal.TRACES, Signal.METRICS, Signal.LOGS)
        self._lanes = {signal: _Lane(signal, Backoff(*backoff_s)) for signal in signals}
        self._sequence = 0
        self._closing = asyncio.Event()
        self._closed = False
        self._tasks: list[asyncio.Task[None]] = []

    def offer(self, signal: Signal, raw: bytes, items: int) -> None:
        """Take a serialised Export request of `items` items. Call on the event loop; never waits."""
        lane = self._lanes[signal]
        if self._closed:
            self._drop(signal, items, "shutdown")
            return
        self._sequence += 1
        entry = _Entry(self._sequence, raw, items)
        while self.pending_bytes + entry.nbytes > self._limit:
            if entry.nbytes > self._limit or not self._drop_oldest():
                self._drop(signal, items, "queue_full")
                return
        lane.append(entry)

    @property
    def pending_bytes(self) -> int:
        """Bytes of the requests whose fate is open, OVERHEAD included."""
        return sum(lane.nbytes for lane in self._lanes.values())

    def pending_items(self, signal: Signal) -> int:
        """Items offered and neither exported nor dropped yet."""
        return self._lanes[signal].items

    def observe(self) -> None:
        """Write the queue's gauges to the agent's own telemetry."""
        labels = {"exporter": EXPORTER}
        for signal, lane in self._lanes.items():
            self._telemetry.set_gauge(
                "export.pending", "{item}", "Items not yet handed on.", lane.items, signal=signal, **labels
            )
        usage, limit = self.pending_bytes, self._limit
        self._telemetry.set_gauge("export.queue.usage", "By", "Bytes not yet handed on.", usage, **labels)
        self._telemetry.set_gauge("export.queue.limit", "By", "Bytes that may wait.", limit, **labels)

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._run(lane), name=f"forward {signal}")
            for signal, lane in self._lanes.items()
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        for lane in self._lanes.values():
            lane.wake.set()
        _, late = await asyncio.wait(self._tasks, timeout=self._drain_s)
        for task in late:
            task.cancel()
        await asyncio.wait(self._tasks)
        self._closed = True
        if left := sum(lane.items for lane in self._lanes.values()):
            log.warning("stopped with %d items not handed on to %s", left, self._collector.endpoint)
        for lane in self._lanes.values():
            while lane.entries:
                self._drop(lane.signal, lane.pop().items, "shutdown")

    async def _run(self, lane: _Lane) -> None:
        while lane.entries or not self._closing.is_set():
            if not lane.entries:
                lane.wake.clear()
                await lane.wake.wait()
                continue
            if lane.nbytes < self._batch_bytes:
                await self._pause(self._linger_s)
            try:
                await self._send(lane)
            except Exception:
                # Nothing left the lane, so nothing is miscounted; the batch is tried again.
                log.exception("forwarding %s failed", lane.signal)
                await self._back_off(lane, None)

    async def _pause(self, seconds: float) -> None:
        """Sleep, no longer than until the agent begins to stop."""
        if seconds > 0 and not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), seconds)

    async def _send(self, lane: _Lane) -> None:
        """Send one batch, once, and settle it; wait where it is to be tried again."""
        self._expire(lane)
        batch = lane.batch(self._batch_bytes)
        if not batch:
            return
        now_s = time.monotonic()
        for entry in batch:
            entry.tried_s = min(entry.tried_s, now_s)
        lane.in_flight = len(batch)
        try:
            outcome = await self._collector.export(lane.signal, b"".join(entry.raw for entry in batch))
        finally:
            lane.in_flight = 0
        match outcome.verdict:
            case Verdict.DELIVERED:
                lane.most = min(2 * lane.most, _UNLIMITED)
                self._settle(lane, len(batch), outcome.rejected_items)
            case Verdict.REJECTED if outcome.about_content and len(batch) > 1:
                lane.most = len(batch) // 2
            case Verdict.REJECTED:
                self._settle(lane, len(batch), sum(entry.items for entry in batch))
            case Verdict.RETRY:
                self._telemetry.add("export.retries", 1, exporter=EXPORTER, signal=lane.signal)
                await self._back_off(lane, outcome.delay_s)

    def _settle(self, lane: _Lane, entries: int, rejected: int) -> None:
        """Take the oldest entries out, `rejected` of their items as dropped and the rest as exported."""
        items = sum(lane.pop().items for _ in range(entries))
        rejected = min(rejected, items)
        self._telemetry.add("exported", items - rejected, exporter=EXPORTER, signal=lane.signal)
        self._drop(lane.signal, rejected, "rejected")
        lane.backoff.reset()

    async def _back_off(self, lane: _Lane, asked_s: float | None) -> None:
        if asked_s is not None:
            await asyncio.sleep(min(max(asked_s, _LEAST_S), self._max_elapsed_s))
        elif self._closing.is_set():
            await asyncio.sleep(_DRAINING_S)
        else:
            await self._pause(lane.backoff.next_s())

    def _expire(self, lane: _Lane) -> None:
        expired_s = time.monotonic() - self._max_elapsed_s
        while lane.entries and lane.entries[0].tried_s <= expired_s:
            self._drop(lane.signal, lane.pop().items, "expired")

    def _drop_oldest(self) -> bool:
        """Drop the oldest entry that no call is carrying; False where there is none."""
        waiting = [lane for lane in self._lanes.values() if len(lane.entries) > lane.in_flight]
        if not waiting:
            return False
        oldest = min(waiting, key=lambda lane: lane.entries[lane.in_flight].sequence)
        self._drop(oldest.signal, oldest.pop(oldest.in_flight).items, "queue_full")
        return True

    def _drop(self, signal: Signal, items: int, reason: str) -> None:
        if items:
            self._telemetry.add("export.dropped", items, exporter=EXPORTER, signal=signal, reason=reason)
