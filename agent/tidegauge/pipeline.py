"""The bounded queue between receivers and processors, and its one consumer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Protocol, Self, TypeVar

from tidegauge.batch import Batch, Signal
from tidegauge.metric import Metric
from tidegauge.telemetry import Telemetry

log = logging.getLogger(__name__)

A = TypeVar("A")
R = TypeVar("R")


_LITTLE_BYTES, _GATHER_S = 2**20, 0.01
"""Where less than that is queued, it waits so long for more to share the hop. A hop for each batch of 100
rows took a quarter of the agent's time."""


class Processor(Protocol):
    """Folds batches into state that it alone owns. Called from one worker thread only."""

    def update(self, *batches: Batch) -> Mapping[str, int]:
        """Fold batches, or ignore those of another signal. Returns the items left out, by reason.

        They are of one receiver and one signal. One kernel call for all of them is best: a thread that
        comes back from a kernel waits for the interpreter's lock, up to 5 ms where the loop is busy.
        """

    def collect(self, now_ns: int) -> tuple[Metric, ...]:
        """The statistics as of `now_ns`, Unix nanoseconds."""


class Pipeline:
    """Takes batches without waiting, folds them on a worker thread, and never loses count.

    The queue is bounded in bytes, those being folded included. Each hop to the worker takes all
    that is queued, so the cost of a hop (about 0.1 ms) is shared by what arrived during the last, and in
    10 ms where that is little.
    An async context manager: leaving it folds what is queued, for at most `drain_s` seconds.
    """

    def __init__(
        self, processors: Sequence[Processor], telemetry: Telemetry, *, queue_bytes: int, drain_s: float = 5.0
    ) -> None:
        self._processors = processors
        self._telemetry = telemetry
        self._limit = queue_bytes
        self._little = min(_LITTLE_BYTES, queue_bytes // 8)
        self._drain_s = drain_s
        self._queue: deque[Batch] = deque()
        self._bytes = 0
        self._pending: Counter[tuple[str, str]] = Counter()
        self._closed = False
        self._wake = asyncio.Event()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="fold")
        self._busy_since: float | None = None
        self._consumer: asyncio.Task[None] | None = None

    def offer(self, batch: Batch) -> bool:
        """Queue a batch; `False`, at once, when it does not fit. Call on the event loop."""
        if self._closed or self._bytes + batch.nbytes > self._limit:
            return False
        self._bytes += batch.nbytes
        self._pending[batch.receiver, batch.signal] += batch.items
        self._telemetry.add("accepted", batch.items, receiver=batch.receiver, signal=batch.signal)
        self._queue.append(batch)
        self._wake.set()
        return True

    def fits(self, nbytes: int) -> bool:
        """Whether a batch of that size could ever be taken, on an empty queue."""
        return nbytes <= self._limit

    @property
    def queue_bytes(self) -> int:
        """Bytes queued and being folded."""
        return self._bytes

    @property
    def stalled_s(self) -> float:
        """Seconds for which the worker has been on one step; 0 while it is idle."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def alive(self) -> bool:
        """Whether the consumer still takes batches."""
        return self._consumer is not None and not self._consumer.done()

    async def collect(self, now_ns: int) -> tuple[Metric, ...]:
        """All processors' metrics, made on the worker thread between batches.

        After the end they are made here, once more; nothing if the worker never came back.
        """
        if self._consumer is None or not self._consumer.done():
            return await self._hop(self._collect, now_ns)
        return () if self._consumer.cancelled() else self._collect(now_ns)

    def observe(self) -> None:
        """Write the queue's gauges to the agent's own telemetry."""
        for (receiver, signal), items in self._pending.items():
            self._telemetry.set_gauge(
                "pending", "{item}", "Accepted items not yet folded.", items, receiver=receiver, signal=signal
            )
        self._telemetry.set_gauge("queue.usage", "By", "Bytes queued and being folded.", self._bytes)
        self._telemetry.set_gauge("queue.limit", "By", "Bytes that the queue may hold.", self._limit)

    async def __aenter__(self) -> Self:
        self._consumer = asyncio.create_task(self._consume(), name="pipeline")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._consumer is not None
        self._closed = True
        self._wake.set()
        _, late = await asyncio.wait({self._consumer}, timeout=self._drain_s)
        if late:
            self._consumer.cancel()
            await asyncio.wait(late)
            left = self._pending.total()
            log.warning("stopped with %d accepted items not folded after %.1f s", left, self._drain_s)
            for (receiver, signal), items in self._pending.items():
                self._telemetry.add("dropped", items, receiver=receiver, signal=signal, reason="shutdown")
            self._pending.clear()
            self._queue.clear()
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def _consume(self) -> None:
        while self._queue or not self._closed:
            await self._wake.wait()
            self._wake.clear()
            if self._bytes < self._little and not self._closed:
                await asyncio.sleep(_GATHER_S)
            groups = _groups(self._queue)
            self._queue.clear()
            if groups:
                self._settle(groups, await self._hop(self._fold, groups))

    async def _hop(self, step: Callable[[A], R], argument: A) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._worker, step, argument)

    def _fold(self, groups: list[list[Batch]]) -> list[Mapping[str, int]]:
        outcomes = []
        for group in groups:
            self._busy_since = time.monotonic()
            outcomes.append(self._fold_group(group))
        self._busy_since = None
        return outcomes

    def _fold_group(self, group: list[Batch]) -> Mapping[str, int]:
        left_out: Counter[str] = Counter()
        for processor in self._processors:
            try:
                left_out.update(processor.update(*group))
            except Exception:
                # One bad batch must not end the agent; what was to be folded with it counts as lost.
                log.exception(
                    "%s failed on %d %s batches", type(processor).__name__, len(group), group[0].signal
                )
                return {"error": _items(group)}
        return left_out

    def _settle(self, groups: list[list[Batch]], outcomes: list[Mapping[str, int]]) -> None:
        for group, left_out in zip(groups, outcomes, strict=True):
            receiver, signal, items = group[0].receiver, group[0].signal, _items(group)
            labels = {"receiver": receiver, "signal": str(signal)}
            for reason, lost in left_out.items():
                self._telemetry.add("dropped", lost, reason=reason, **labels)
            self._telemetry.add("folded", items - sum(left_out.values()), **labels)
            self._pending[receiver, signal] -= items
            self._bytes -= sum(batch.nbytes for batch in group)

    def _collect(self, now_ns: int) -> tuple[Metric, ...]:
        metrics: list[Metric] = []
        for processor in self._processors:
            self._busy_since = time.monotonic()
            try:
                metrics.extend(processor.collect(now_ns))
            except Exception:
                log.exception("%s could not be collected", type(processor).__name__)
        self._busy_since = None
        return tuple(metrics)


def _groups(batches: Iterable[Batch]) -> list[list[Batch]]:
    """The batches by receiver and signal, each group in the order of arrival."""
    groups: dict[tuple[str, Signal], list[Batch]] = {}
    for batch in batches:
        groups.setdefault((batch.receiver, batch.signal), []).append(batch)
    return list(groups.values())


def _items(group: Iterable[Batch]) -> int:
    return sum(batch.items for batch in group)
