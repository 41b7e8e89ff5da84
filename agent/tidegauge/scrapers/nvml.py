"""Polls the GPUs through NVML and publishes what they tell.

NVML calls may block for as long as a driver likes, so one daemon thread makes them all: a poll
that hangs holds up neither the event loop, nor the agent's end, and no other poll starts behind it.
Without a library, a driver or a GPU the thread says so once and ends. None of the three appears
in a running container, so it does not look again: restart the agent after installing a driver.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import pynvml

from tidegauge.metric import Metric, Number
from tidegauge.scrapers.gpu import FAMILIES, LOST, Gpu, Sample
from tidegauge.snapshot import Snapshots

log = logging.getLogger(__name__)

SOURCE = "nvml"
REOPEN_POLLS = 6
"""While a GPU is lost, NVML is opened anew at every sixth poll: its old handle may never answer again."""
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
        self._watch()
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
            with contextlib.closing(Session()) as session:
                while not self._stop.is_set():
                    self._tell(self._publish, session.poll())
                    self._stop.wait(self._interval_s)
        except pynvml.NVMLError as error:
            log.info("no GPU metrics: %s", error)
        except Exception:
            log.exception("GPU metrics end here")
            self._tell(self._publish, ())
        finally:
            self._tell(self._end)

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


class Session:
    """NVML, open, and every GPU that it has listed so far."""

    def __init__(self) -> None:
        """Raises pynvml.NVMLError without a library, a driver or a GPU."""
        self._known: dict[str, Gpu] = {}
        self._listed: set[str] = set()
        self._silent: set[int] = set()
        self._lost: set[str] = set()
        self._polls_since_open = 0
        self._open()

    def poll(self) -> tuple[Metric, ...]:
        """One reading of every GPU; of a lost one its state alone."""
        if (self._lost or self._silent) and self._polls_since_open >= REOPEN_POLLS:
            self._reopen()
        self._polls_since_open += 1
        lost: set[str] = set()
        samples: list[Sample] = []
        for uuid, gpu in self._known.items():
            try:
                samples += self._read(gpu)
            except LOST as error:
                lost.add(uuid)
                samples += gpu.status("failed")
                if uuid not in self._lost:
                    log.warning("GPU %s is lost: %s", uuid, error)
        for uuid in self._lost - lost:
            log.info("GPU %s is back", uuid)
        self._lost = lost
        return as_metrics(samples)

    def close(self) -> None:
        """Close NVML; no GPU is listed any more."""
        self._listed.clear()
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()

    def _read(self, gpu: Gpu) -> list[Sample]:
        if gpu.uuid not in self._listed:
            raise pynvml.NVMLError_GpuNotFound
        return gpu.read()

    def _open(self) -> None:
        self._polls_since_open = 0
        pynvml.nvmlInit()
        driver = pynvml.nvmlSystemGetDriverVersion()
        count = pynvml.nvmlDeviceGetCount()
        silent = set()
        for index in range(count):
            try:
                gpu = Gpu(pynvml.nvmlDeviceGetHandleByIndex(index), driver)
            except pynvml.NVMLError as error:
                silent.add(index)
                if index not in self._silent:
                    log.warning("GPU %d does not answer: %s", index, error)
            else:
                self._known[gpu.uuid] = gpu
                self._listed.add(gpu.uuid)
        self._silent = silent
        if not count:
            self.close()
            raise pynvml.NVMLError_GpuNotFound

    def _reopen(self) -> None:
        self.close()
        # A driver that has gone altogether leaves every GPU lost until it is back.
        with contextlib.suppress(pynvml.NVMLError):
            self._open()


def as_metrics(samples: list[Sample]) -> tuple[Metric, ...]:
    """Samples grouped by family, in the order of FAMILIES."""
    points: dict[str, list[Number]] = {name: [] for name in FAMILIES}
    for name, attributes, value in samples:
        points[name].append(Number(attributes, value))
    return tuple(
        Metric(name, family.kind, family.unit, family.description, tuple(points[name]))
        for name, family in FAMILIES.items()
        if points[name]
    )
