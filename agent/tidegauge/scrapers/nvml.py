"""Polls the GPUs through NVML and publishes what they tell.

NVML calls may block for as long as a driver likes, so one daemon thread makes them all: a poll
that hangs holds up neither the event loop, nor the agent's end, and no other poll starts behind it.
XID errors are waited for on a second one, which goes on meanwhile.
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
from pathlib import Path
from types import TracebackType
from typing import Self

from tidegauge import config
from tidegauge.metric import Metric
from tidegauge.scrapers.models import Models
from tidegauge.snapshot import Snapshots

log = logging.getLogger(__name__)

SOURCE = "nvml"
XID_SOURCE = "nvml-xid"
LIBRARY = "libnvidia-ml.so.1"
DEMO = Path(__file__).with_name("demo.json")
DEMO_NAME = "demo"
"""`hw.name` of what a recording shows: no dashboard can take it for a GPU."""
STALE_POLLS = 3
"""Readings are withdrawn when no poll has ended for three intervals."""
JOIN_S = 1.0
"""How long leaving waits for a poll that is under way, and for the end of the wait for XID errors."""


class Nvml:
    """Publishes `hw.*` metrics of every GPU once per interval, and XID errors as they come.

    An async context manager. All publishing is done on the event loop.
    """

    def __init__(
        self, snapshots: Snapshots, settings: config.Nvml, identity: config.IdentityAttributes
    ) -> None:
        self._snapshots = snapshots
        self._settings = settings
        self._identity = identity
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
        if self._settings.demo:
            self._play()
        else:
            try:
                # The bindings take 3 MB, which an agent without the library they bind can save.
                ctypes.CDLL(LIBRARY)
            except OSError as error:
                log.info("no GPU metrics: %s", error)
            else:
                self._poll()
        self._tell(self._end)

    def _play(self) -> None:
        from tidegauge.scrapers import recording, table
        from tidegauge.scrapers.replay import Replay

        log.warning("the GPU metrics are a demo, played from a recording: no GPU is read")
        table.install(Replay(recording.load(DEMO), loop=True))
        self._poll(DEMO_NAME)

    def _poll(self, name: str = "") -> None:
        import pynvml

        from tidegauge.scrapers.gpu import Terms
        from tidegauge.scrapers.session import Session

        settings = self._settings
        # A recording's process ids are none of this machine's.
        models = Models(settings.models, self._identity, Path("/nowhere" if name else "/proc"))
        terms = Terms(models, settings.max_processes, name=name)
        self._tell(self._watch)  # from here on it is NVML that takes the time
        try:
            with contextlib.closing(Session(terms, self._tell_xids)) as session:
                while not self._stop.is_set():
                    self._tell(self._publish, session.poll())
                    self._stop.wait(settings.interval)
        except pynvml.NVMLError as error:
            log.info("no GPU metrics: %s", error)
        except Exception:
            log.exception("GPU metrics end here")
            self._tell(self._publish, ())

    def _tell(self, step: Callable[..., None], *arguments: object) -> None:
        # The loop may be gone by the time a hung call returns.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(step, *arguments)

    def _tell_xids(self, metrics: tuple[Metric, ...]) -> None:
        self._tell(self._snapshots.publish, XID_SOURCE, metrics)

    def _publish(self, metrics: tuple[Metric, ...]) -> None:
        self._watch()
        self._snapshots.publish(SOURCE, metrics)

    def _end(self) -> None:
        self._unwatch()
        self._ended.set()

    def _watch(self) -> None:
        self._unwatch()
        self._watchdog = self._loop.call_later(STALE_POLLS * self._settings.interval, self._withdraw)

    def _unwatch(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()

    def _withdraw(self) -> None:
        log.warning("NVML has not answered for %g s: no GPU metrics", STALE_POLLS * self._settings.interval)
        self._snapshots.publish(SOURCE, ())
