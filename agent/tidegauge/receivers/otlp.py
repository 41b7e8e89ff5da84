"""The OTLP receiver proper: what happens to a request, whichever transport brought it."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

from tidegauge.batch import Batch, Otlp, Signal, Spans
from tidegauge.config import IdentityAttributes
from tidegauge.telemetry import Telemetry
from tidegauge.wire.attributes import Keys
from tidegauge.wire.counts import count_points, count_records
from tidegauge.wire.traces import SPAN, scan

RETRY_DELAY_S = 1
"""What a sender is asked to wait when the queue is full: a few folds, and less than its own timeout."""

_INLINE_BYTES = 2**20
"""A smaller request is read on the event loop, in about a millisecond; a thread hop costs 0.1 ms."""


class Queue(Protocol):
    """What a receiver needs of the pipeline."""

    def offer(self, batch: Batch) -> bool: ...

    def fits(self, nbytes: int) -> bool: ...

    @property
    def queue_bytes(self) -> int: ...


class Verdict(enum.StrEnum):
    """What became of a request. All but the first are reasons on `tidegauge.rejected`."""

    ACCEPTED = "accepted"
    UNDECODABLE = "undecodable"  # the sender must not send it again
    QUEUE_FULL = "queue_full"  # the sender should, after RETRY_DELAY_S
    TOO_LARGE = "too_large"  # the sender must send less at a time


class Outcome(NamedTuple):
    """A verdict, and why in words for the sender."""

    verdict: Verdict
    message: str = ""


class OtlpReceiver:
    """Reads OTLP requests into batches for the pipeline, and passes on what was accepted.

    `forward(signal, raw, items)` is called on the event loop, after the request has been accepted; what
    it returns, if anything, is waited for before the sender is answered. An empty request is accepted
    and goes nowhere.
    """

    def __init__(
        self,
        queue: Queue,
        telemetry: Telemetry,
        identity: IdentityAttributes,
        forward: Callable[[Signal, bytes, int], Awaitable[object] | None] | None = None,
    ) -> None:
        self._queue = queue
        self._telemetry = telemetry
        self._keys = Keys.of(identity)
        self._forward = forward
        # One large request is read at a time, for its columns may be larger than the request itself.
        self._turn = asyncio.Lock()
        self._waiting_bytes = 0

    async def receive(self, receiver: str, signal: Signal, raw: bytes) -> Outcome:
        """Take one serialized Export request of `signal` (traces, metrics or logs)."""
        if len(raw) < _INLINE_BYTES:
            return await self._settle(receiver, signal, raw, *self._decode(receiver, signal, raw))
        if self._queue.fits(len(raw)) and not self._has_room(len(raw)):
            # Reading it first, to count its items, would let requests pile up in memory.
            return self._refuse_for_now(receiver, signal, 1)
        self._waiting_bytes += len(raw)
        try:
            async with self._turn:
                decoded = await asyncio.to_thread(self._decode, receiver, signal, raw)
        finally:
            self._waiting_bytes -= len(raw)
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
            nbytes = len(raw) + (items * SPAN.itemsize if signal is Signal.TRACES else 0)
            if not self._queue.fits(nbytes):
                message = f"a request of {items} items takes {nbytes} bytes, more than pipeline.queue_size"
                return items, Outcome(Verdict.TOO_LARGE, message)
            if not self._queue.fits(self._queue.queue_bytes + nbytes):
                return items, Outcome(Verdict.QUEUE_FULL)  # before its columns are made
            if signal is Signal.TRACES:
                return items, Spans(receiver, raw, *scan(raw, items, self._keys))
            return items, Otlp(receiver, signal, items, nbytes)
        except ValueError as error:
            return 1, Outcome(Verdict.UNDECODABLE, f"not a valid OTLP {signal} request: {error}")

    async def _settle(
        self, receiver: str, signal: Signal, raw: bytes, items: int, decoded: Batch | Outcome
    ) -> Outcome:
        if isinstance(decoded, Outcome) and decoded.verdict is not Verdict.QUEUE_FULL:
            return self.refuse(receiver, signal, decoded.verdict, decoded.message, items)
        if isinstance(decoded, Outcome) or not (items == 0 or self._queue.offer(decoded)):
            return self._refuse_for_now(receiver, signal, items)
        self._telemetry.add("received", items, receiver=receiver, signal=str(signal))
        if items and self._forward is not None and (saved := self._forward(signal, raw, items)) is not None:
            await saved
        return Outcome(Verdict.ACCEPTED)

    def _has_room(self, nbytes: int) -> bool:
        return self._queue.fits(self._queue.queue_bytes + self._waiting_bytes + nbytes)

    def _refuse_for_now(self, receiver: str, signal: Signal, items: int) -> Outcome:
        message = f"the agent's queue is full; send again in {RETRY_DELAY_S} s"
        return self.refuse(receiver, signal, Verdict.QUEUE_FULL, message, items)
