"""The OTLP receiver proper: what happens to a request, whichever transport brought it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from tidegauge.batch import Batch, Logs, Points, Signal, Spans
from tidegauge.config import IdentityAttributes, Timings
from tidegauge.receivers.outcome import RETRY_DELAY_S, Outcome, Verdict
from tidegauge.receivers.turn import Turn
from tidegauge.telemetry import Telemetry
from tidegauge.wire import logs, metrics, traces
from tidegauge.wire.attributes import Keys
from tidegauge.wire.counts import count_points, count_records

_INLINE_BYTES = 2**18
"""A smaller request, of some 600 spans, is read on the event loop; a thread hop costs 0.1 ms. Beside a
sender that keeps eight requests of 0.8 MiB in flight, a small one took 2 ms by median; with those read on
the loop too it took 20."""

_COLUMN_BYTES = {
    Signal.TRACES: traces.SPAN.itemsize,
    Signal.METRICS: metrics.POINT.itemsize,
    Signal.LOGS: logs.LOG.itemsize,
}


class Queue(Protocol):
    """What a receiver needs of the pipeline."""

    def offer(self, batch: Batch) -> bool: ...

    def fits(self, nbytes: int) -> bool: ...

    @property
    def queue_bytes(self) -> int: ...


class OtlpReceiver:
    """Reads OTLP requests into batches for the pipeline, and passes on what was accepted.

    `forward(signal, raw, items)` is called on the event loop, after the request has been accepted; what
    it returns, if anything, is waited for before the sender is answered. Where `keeps_up(signal, nbytes)` is
    false the request is refused for now. An empty request is accepted and goes nowhere.
    """

    def __init__(
        self,
        queue: Queue,
        telemetry: Telemetry,
        identity: IdentityAttributes,
        forward: Callable[[Signal, bytes, int], Awaitable[object] | None] | None = None,
        timings: Timings | None = None,
        keeps_up: Callable[[Signal, int], bool] = lambda signal, nbytes: True,
    ) -> None:
        self._queue = queue
        self._telemetry = telemetry
        self._keys = Keys.of(identity, Timings() if timings is None else timings)
        self._forward = forward
        self._keeps_up = keeps_up
        self._turn = Turn()

    @property
    def queue_bytes(self) -> int:
        """Bytes of accepted requests that are not folded yet, and of those being read."""
        return self._queue.queue_bytes + self._turn.waiting_bytes

    async def receive(self, receiver: str, signal: Signal, raw: bytes) -> Outcome:
        """Take one serialized Export request of `signal` (traces, metrics or logs)."""
        if len(raw) < _INLINE_BYTES:
            return await self._settle(receiver, signal, raw, *self._decode(receiver, signal, raw))
        if self._queue.fits(len(raw)) and not self._has_room(len(raw)):
            # Reading it first, to count its items, would let requests pile up in memory.
            return self._refuse_for_now(receiver, signal, 1)
        try:
            decoded = await self._turn.run(len(raw), self._decode, receiver, signal, raw)
        except asyncio.CancelledError:
            self.refuse(receiver, signal, Verdict.ABANDONED, "")
            raise
        return await self._settle(receiver, signal, raw, *decoded)

    def refuse(
        self, receiver: str, signal: Signal, verdict: Verdict, message: str, items: int = 1
    ) -> Outcome:
        """Count a request that is turned away; one item where nobody knows how many it holds."""
        labels = {"receiver": receiver, "signal": str(signal)}
        self._telemetry.add("received", items, **labels)
        self._telemetry.add("rejected", items, reason=str(verdict), **labels)
        return Outcome(verdict, message)

    def _decode(self, receiver: str, signal: Signal, raw: bytes) -> tuple[int, Batch | Outcome]:
        """The items of a request, and its batch or why there is none. Runs on any thread."""
        try:
            items = count_points(raw) if signal is Signal.METRICS else count_records(raw)
            nbytes = len(raw) + items * _COLUMN_BYTES[signal]
            if not self._queue.fits(nbytes):
                return items, _too_large(items, nbytes)
            if not self._queue.fits(self._queue.queue_bytes + nbytes):
                return items, Outcome(Verdict.QUEUE_FULL)  # before its columns are made
            batch = self._read(receiver, signal, raw, items)
            # Its marks may make it too large, and an empty queue would refuse it "for now" for ever.
            return items, batch if self._queue.fits(batch.nbytes) else _too_large(items, batch.nbytes)
        except ValueError as error:
            return 1, Outcome(Verdict.UNDECODABLE, f"not a valid OTLP {signal} request: {error}")

    def _read(self, receiver: str, signal: Signal, raw: bytes, items: int) -> Batch:
        match signal:
            case Signal.TRACES:
                return Spans(receiver, raw, *traces.scan(raw, items, self._keys))
            case Signal.METRICS:
                return Points(receiver, raw, metrics.scan(raw, items, self._keys.seed))
            case _:
                return Logs(receiver, raw, logs.scan(raw, items, self._keys))

    async def _settle(
        self, receiver: str, signal: Signal, raw: bytes, items: int, decoded: Batch | Outcome
    ) -> Outcome:
        if isinstance(decoded, Outcome) and decoded.verdict is not Verdict.QUEUE_FULL:
            return self.refuse(receiver, signal, decoded.verdict, decoded.message, items)
        if isinstance(decoded, Outcome) or not (
            items == 0 or (self._keeps_up(signal, len(raw)) and self._queue.offer(decoded))
        ):
            return self._refuse_for_now(receiver, signal, items)
        self._telemetry.add("received", items, receiver=receiver, signal=str(signal))
        if items and self._forward is not None and (saved := self._forward(signal, raw, items)) is not None:
            await saved
        return Outcome(Verdict.ACCEPTED)

    def _has_room(self, nbytes: int) -> bool:
        return self._queue.fits(self.queue_bytes + nbytes)

    def _refuse_for_now(self, receiver: str, signal: Signal, items: int) -> Outcome:
        message = f"the agent's queue is full; send again in {RETRY_DELAY_S} s"
        return self.refuse(receiver, signal, Verdict.QUEUE_FULL, message, items)


def _too_large(items: int, nbytes: int) -> Outcome:
    message = f"a request of {items} items takes {nbytes} bytes, more than pipeline.queue_size"
    return Outcome(Verdict.TOO_LARGE, message)
