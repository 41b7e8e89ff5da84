"""What is on /metrics, written to a Prometheus or a long-term storage by the agent itself.

For pods that live shorter than a scrape, or that no Prometheus reaches: they lose nothing at their end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Mapping
from itertools import islice
from types import TracebackType
from typing import NamedTuple, Self

from tidegauge.config import RemoteWrite
from tidegauge.exporters.backoff import Backoff
from tidegauge.exporters.outcome import Outcome, Verdict
from tidegauge.exporters.samples import Labels, NativeHistogram, Sample, samples
from tidegauge.exporters.write_channel import WriteChannel
from tidegauge.exporters.write_request import Version, write_request
from tidegauge.snapshot import Snapshot, Snapshots
from tidegauge.telemetry import Telemetry

log = logging.getLogger(__name__)

SAMPLES = 2000
"""Series per request, as Prometheus sends by default: receivers limit requests, not snapshots."""

LONGEST_S = 300.0
"""The longest wait that a receiver may ask for."""

_LABELS = {"exporter": "remote_write", "signal": "metrics"}


class Request(NamedTuple):
    """A compressed request and the samples that it has, in the version that it is written in."""

    items: int
    body: bytes
    version: Version


class RemoteWriter:
    """Writes each snapshot that is new every `interval`, and the last one on leaving.

    What the receiver has no time for (429, 5xx, no answer) waits and is tried again, in order, up to
    `queue_size` bytes: then the oldest goes. What it refuses is not tried again (specification,
    "Retries & Backoff"). A series that is no longer there, and on leaving each one, gets a staleness
    marker, so that it ends there and not five minutes later.

    The files that the settings name are `channel`'s, which a FileWatch watches.

    A receiver that knows 1.0 alone is given that, from the snapshot on that it did not understand.

    Raises:
        ConfigError: where a certificate or the token's file cannot be read.
    """

    def __init__(
        self,
        settings: RemoteWrite,
        snapshots: Snapshots,
        telemetry: Telemetry,
        *,
        resource: Mapping[str, str],
        drain_s: float = 2.0,
    ) -> None:
        self._settings = settings
        self.channel = WriteChannel(settings)
        self._snapshots = snapshots
        self._telemetry = telemetry
        self._also = target_labels(resource) | {k: v for k, v in settings.labels.items() if v}
        self._drain_s = drain_s
        self._version: Version = settings.version
        self._waiting: deque[Request] = deque()
        self._written: dict[Labels, bool] = {}
        self._generation = 0
        self._time_ms = 0
        self._backoff = Backoff(initial_s=min(1.0, settings.interval))
        self._told = ""
        self._stopping = asyncio.Event()
        self._end = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.channel.__aenter__()
        self._telemetry.add("exported", 0, **_LABELS)
        self._task = asyncio.create_task(self._run(), name="remote write")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._end = time.monotonic() + self._drain_s
        self._stopping.set()
        _, late = await asyncio.wait({self._task}, timeout=self._drain_s)
        if late:
            self._task.cancel()
            await asyncio.wait({self._task})
        if left := sum(request.items for request in self._waiting):
            log.warning("%d samples did not reach %s in time", left, self.channel.endpoint)
            self._drop(left, "shutdown")
        await self.channel.__aexit__(kind, error, trace)

    def observe(self) -> None:
        """Set the gauges of the queue."""
        usage = sum(len(request.body) for request in self._waiting)
        for name, value in (("usage", usage), ("limit", self._settings.queue_size)):
            self._telemetry.set_gauge(
                f"export.queue.{name}",
                "By",
                f"Bytes of what waits for a collector in memory: {name}.",
                value,
                exporter="remote_write",
            )

    async def _run(self) -> None:
        interval_s = float(self._settings.interval)
        take_at, retry_at = time.monotonic() + interval_s, 0.0
        while not self._stopping.is_set():
            next_at = min(take_at, retry_at) if self._waiting else take_at
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), max(0.0, next_at - time.monotonic()))
                break
            if time.monotonic() >= take_at:
                await self._take(last=False)
                take_at = time.monotonic() + interval_s
            if time.monotonic() >= retry_at:
                retry_at = time.monotonic() + await self._send_all()
        await self._take(last=True)
        # A cancellation may come just as the event above is set, and Python 3.11's wait_for then swallows it.
        left_s = self._drain_s
        while left_s > 0 and (delay_s := await self._send_all()):
            await asyncio.sleep(min(delay_s, left_s))
            left_s = self._end - time.monotonic()

    async def _take(self, *, last: bool) -> None:
        """Queue the latest snapshot, if it is new, and on leaving that all of it has ended."""
        snapshot = self._snapshots.latest()
        try:
            if snapshot.generation != self._generation:
                self._queue(await asyncio.to_thread(self._requests, snapshot))
                self._generation = snapshot.generation
            if last and self._settings.stale_markers:
                self._queue(await asyncio.to_thread(self._ends))
        except Exception:
            log.exception("the metrics could not be written")

    def _queue(self, requests: list[Request]) -> None:
        self._waiting += requests
        over = sum(len(request.body) for request in self._waiting) - self._settings.queue_size
        while over > 0 and self._waiting:
            oldest = self._waiting.popleft()
            over -= len(oldest.body)
            self._drop(oldest.items, "queue_full")

    def _requests(self, snapshot: Snapshot) -> list[Request]:
        # Samples of one series must be in the order of their times.
        self._time_ms = max(snapshot.time_ns // 10**6, self._time_ms + 1)
        native = self._settings.native_histograms
        found = list(samples(snapshot.metrics, also=self._also, histograms=native))
        now = {one.labels: isinstance(one.value, NativeHistogram) for one in found}
        gone = {labels: kind for labels, kind in self._written.items() if labels not in now}
        self._written = now
        requests = [self._request(found[at : at + SAMPLES]) for at in range(0, len(found), SAMPLES)]
        return requests + (self._ended(gone) if self._settings.stale_markers else [])

    def _ends(self) -> list[Request]:
        self._time_ms += 1
        written, self._written = self._written, {}
        return self._ended(written)

    def _ended(self, series: Mapping[Labels, bool]) -> list[Request]:
        pairs, requests = iter(series.items()), []
        while some := list(islice(pairs, SAMPLES)):
            body = write_request((), self._time_ms, self._version, some)
            requests.append(Request(len(some), body, self._version))
        return requests

    def _request(self, found: list[Sample]) -> Request:
        return Request(len(found), write_request(found, self._time_ms, self._version), self._version)

    async def _send_all(self) -> float:
        """Send what waits, in order; returns the seconds to wait where it does not go."""
        taken = self._stopping.is_set()
        while self._waiting and self._stopping.is_set() == taken:  # else the last snapshot is to be queued
            request = self._waiting[0]
            outcome = await self.channel.send(request.body, request.version)
            self._tell(outcome)
            if outcome.verdict is Verdict.RETRY:
                return min(outcome.delay_s or self._backoff.next_s(), LONGEST_S)
            self._backoff.reset()
            if outcome.about_content:
                await self._fall_back()
                continue
            if self._waiting and self._waiting[0] is request:
                self._waiting.popleft()
            if outcome.verdict is Verdict.DELIVERED:
                self._telemetry.add("exported", request.items, **_LABELS)
            else:
                self._drop(request.items, "rejected")
        return 0.0

    async def _fall_back(self) -> None:
        """Write the latest snapshot anew in 1.0: cumulative values say what the older ones said."""
        log.warning("%s takes remote write 1.0 only; it is written so from now on", self.channel.endpoint)
        self._version = "1.0"
        ended = not self._written
        self._drop(sum(request.items for request in self._waiting), "rejected")
        self._waiting.clear()
        self._waiting += await asyncio.to_thread(self._requests, self._snapshots.latest())
        if ended and self._settings.stale_markers:
            self._waiting += await asyncio.to_thread(self._ends)

    def _drop(self, items: int, reason: str) -> None:
        if items:
            self._telemetry.add("export.dropped", items, reason=reason, **_LABELS)

    def _tell(self, outcome: Outcome) -> None:
        """A change of what the receiver does, and not each attempt, is worth a line."""
        message = "" if outcome.about_content else outcome.message
        if message and message != self._told:
            does = "takes nothing" if outcome.verdict is Verdict.RETRY else "refuses samples"
            log.warning("%s %s: %s", self.channel.endpoint, does, message)
        elif self._told and not message:
            log.info("%s takes what is written again", self.channel.endpoint)
        self._told = message


def target_labels(resource: Mapping[str, str]) -> dict[str, str]:
    """job and instance, as a scrape would set them ("Prometheus and OpenMetrics Compatibility").

    >>> target_labels({"service.name": "scorer", "service.namespace": "shop", "service.instance.id": "pod-1"})
    {'job': 'shop/scorer', 'instance': 'pod-1'}
    """
    names = (resource.get("service.namespace", ""), resource.get("service.name", ""))
    found = {"job": "/".join(filter(None, names)), "instance": resource.get("service.instance.id", "")}
    return {name: value for name, value in found.items() if value}
