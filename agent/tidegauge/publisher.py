"""Publishes the processors' statistics and the agent's own counters at a steady pace."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from tidegauge import memory
from tidegauge.pipeline import Pipeline
from tidegauge.snapshot import Snapshots
from tidegauge.telemetry import Telemetry

log = logging.getLogger(__name__)

_GIVE_BACK_BYTES, _GIVE_BACK_S = 8 * 2**20, 30.0
"""Growth after which freed memory is given back, an eighth of what the allocator keeps; or so much time."""


class Publisher:
    """Writes to Snapshots once per interval, and once more when left.

    `observe` are called first: components write their gauges to telemetry there. The agent's own
    counters do not wait for the processors, so a stuck one can be seen on /metrics.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        telemetry: Telemetry,
        snapshots: Snapshots,
        *,
        interval_s: float,
        observe: Sequence[Callable[[], None]] = (),
    ) -> None:
        self._pipeline = pipeline
        self._observe = (self.observe, pipeline.observe, *observe)
        self._telemetry = telemetry
        self._snapshots = snapshots
        self.interval_s = interval_s
        self._published_s = time.monotonic()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def age_s(self) -> float:
        """Seconds since statistics were last published."""
        return time.monotonic() - self._published_s

    def observe(self) -> None:
        """Write how old the statistics are, and the process's memory, to the agent's own telemetry."""
        gauge = self._telemetry.set_gauge
        gauge("publication.age", "s", "Time since statistics were last published.", self.age_s)
        gauge("memory.usage", "By", "Anonymous memory of the process.", memory.anonymous_bytes())
        gauge("memory.limit", "By", "What the container may take; 0 without.", memory.limit_bytes())

    async def __aenter__(self) -> Self:
        self._count()
        self._tasks = [asyncio.create_task(self._statistics()), asyncio.create_task(self._counters())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._collect()
        self._count()

    async def _statistics(self) -> None:
        held, given_s = 0, 0.0
        while True:
            await self._collect()
            grown = memory.anonymous_bytes() - held
            if grown >= _GIVE_BACK_BYTES or time.monotonic() - given_s >= _GIVE_BACK_S:
                await asyncio.to_thread(memory.give_back)
                held, given_s = memory.anonymous_bytes(), time.monotonic()
            await asyncio.sleep(self.interval_s)

    async def _counters(self) -> None:
        while True:
            await asyncio.sleep(self.interval_s)
            self._count()

    async def _collect(self) -> None:
        metrics = await self._pipeline.collect(time.time_ns())
        self._snapshots.publish("statistics", metrics)
        self._published_s = time.monotonic()

    def _count(self) -> None:
        for observe in self._observe:
            observe()
        self._snapshots.publish("telemetry", self._telemetry.collect())
