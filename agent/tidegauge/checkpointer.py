"""Writes the state that a restart would lose, at a steady pace and once more at the end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable
from types import TracebackType
from typing import Protocol, Self

from tidegauge.disk_thread import DiskThread
from tidegauge.statefile import StateFile
from tidegauge.telemetry import Telemetry

log = logging.getLogger(__name__)


class State(Protocol):
    """An immutable state. Two with equal stamps are equal."""

    @property
    def stamp(self) -> Hashable: ...

    def frames(self) -> Iterable[bytes]:
        """It as bytes, made one after the other."""


class Checkpointer:
    """Captures a state and has a thread of its own encode and write it, every `interval_s` seconds.

    A state that has not changed is not written again. A disk that refuses costs a warning, and one that
    hangs a thread: the agent goes on. `capture` gives None where there is nothing to be had any more.
    To be left once nothing changes the state any more: what is then written, within `last_s`, is complete.
    """

    def __init__(
        self,
        file: StateFile,
        capture: Callable[[], Awaitable[State | None]],
        telemetry: Telemetry,
        *,
        interval_s: float,
        last_s: float,
    ) -> None:
        self._file = file
        self._capture = capture
        self._telemetry = telemetry
        self._interval_s = interval_s
        self._last_s = last_s
        self._stamp: Hashable = None
        self._failing = ""
        self._written_s, self._bytes = 0.0, 0

    def observe(self) -> None:
        """Write the gauges to the agent's own telemetry."""
        failing = float(bool(self._failing))
        self._telemetry.set_gauge(
            "checkpoint.failing", "", "1 while the drift state cannot be written.", failing
        )
        self._telemetry.set_gauge(
            "checkpoint.time", "s", "Unix time when the drift state was last written.", self._written_s
        )
        self._telemetry.set_gauge("checkpoint.size", "By", "Size of the drift state's file.", self._bytes)

    async def __aenter__(self) -> Self:
        self._disk = DiskThread("checkpoint")
        self._task = asyncio.create_task(self._run(), name="checkpointer")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        try:
            await asyncio.wait_for(self._write(complete=True), self._last_s)
        except TimeoutError:
            log.warning("stopped with the drift state not written after %.1f s", self._last_s)
        self._disk.stop()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await self._write(complete=False)

    async def _write(self, *, complete: bool) -> None:
        state = await self._capture()
        if state is None or (state.stamp == self._stamp and not complete):
            return
        stamp, reason = state.stamp, ""
        try:
            self._bytes = await self._disk.submit(lambda: self._file.write(state.frames(), complete=complete))
        except Exception as error:
            # Of whatever kind: the agent must not end for it, nor stop trying.
            reason = f"{type(error).__name__}: {error}"
            if reason != self._failing:
                log.warning("the drift state cannot be written, a restart would lose it: %s", reason)
        else:
            self._stamp, self._written_s = stamp, time.time()
            if self._failing:
                log.info("the drift state can be written again")
        self._failing = reason
