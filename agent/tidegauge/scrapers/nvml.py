"""Polls the GPUs through NVML and publishes what they tell.

NVML calls may block for as long as a driver likes, so one daemon thread makes them all: a poll
that hangs holds up neither the event loop, nor the agent's end, and no other poll starts behind it.
Without a library, a driver or a GPU the thread says so once and ends. None of the three appears
in a running container, so it does not look again: restart the agent after installing a driver.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tidegauge.metric import Metric
from tidegauge.snapshot import Snapshots

log = logging.getLogger(__name__)

SOURCE = "nvml"
LIBRARY = "libnvidia-ml.so.1"
STALE_POLLS = 3
"""Readings are withdrawn when no poll has ended for three intervals."""
JOIN_S = 1.0
"""How long leaving waits for a poll that is under way."""


class Nvml:
    """Publishes `hw.*` metrics of every GPU as the source "nvml", once per interval.

    An async context manager. All publishing is done on the event loop.
    """

    def __init__(self, snapshots: Snapshots, *, interval_s: float) -> None:
        self._snapshots = snapshots
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._ended = asyncio.Event()
        self._watchdog: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        # Not an executor: the interpreter joins its threads at exit, a hung one for ever.
        threading.Thread(target=self._run, name=SOURCE, daemon=True).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        try:
            await asyncio.wait_for(self._ended.wait(), JOIN_S)
        except TimeoutError:
            log.warning("left an NVML call behind that has not returned")
        self._unwatch()

    def _run(self) -> None:
        try:
            # The bindings take 3 MB, which an agent without the library they bind can save.
            ctypes.CDLL(LIBRARY)
        except OSError as error:
            log.info("no GPU metrics: %s", error)
        else:
            self._poll()
        self._tell(self._end)

    def _poll(self) -> None:
        import pynvml

        from tidegauge.scrapers.session import Session

        self._tell(self._watch)  # from here on it is NVML that takes the time
        try:
            with contextlib.closing(Session()) as session:
                while not self._stop.is_set():
                    self._tell(self._publish, session.poll())
                    self._stop.wait(self._interval_s)
        except pynvml.NVMLError as error:
            log.info("no GPU metrics: %s", error)
        except Exception:
            log.exception("GPU metrics end here")
            self._tell(self._publish, ())

    def _tell(self, step: Callable[..., None], *arguments: object) -> None:
        # The loop may be gone by the time a hung call returns.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(step, *arguments)

    def _publish(self, metrics: tuple[Metric, ...]) -> None:
        self._watch()
        self._snapshots.publish(SOURCE, metrics)

    def _end(self) -> None:
        self._unwatch()
        self._ended.set()

    def _watch(self) -> None:
        self._unwatch()
        self._watchdog = self._loop.call_later(STALE_POLLS * self._interval_s, self._withdraw)

    def _unwatch(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()

    def _withdraw(self) -> None:
        log.warning("NVML has not answered for %g s: no GPU metrics", STALE_POLLS * self._interval_s)
        self._snapshots.publish(SOURCE, ())
