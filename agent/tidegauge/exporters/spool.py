"""A disk queue beside the event loop: what is offered is on disk before the sender is answered."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from tidegauge.batch import Signal
from tidegauge.config import ConfigError, DiskQueue, Problem
from tidegauge.disk_thread import DiskThread
from tidegauge.exporters.journal import Chunk, Extent, Journal, Place, Request
from tidegauge.exporters.lane import Entry
from tidegauge.exporters.segment import HEADER_BYTES, Position

log = logging.getLogger(__name__)

PATIENCE_S = 1.0
"""How long a write may take before the sender is answered all the same."""

GROUP_BYTES = 2**23
"""What one write carries at most: a disk that does 8 MB/s takes it in time."""

_SEGMENT_BYTES = 2**25


class _Waiting(NamedTuple):
    entry: Entry
    answer: asyncio.Future[None]


class Spool:
    """Appends in groups, on a thread; reads on another, and syncs on a third.

    `saved(entry, place)` is called for each entry, in the order of `append`: with its place on disk,
    or None where the disk refused it or was not done with it within `patience_s`. What is told None is
    not on the disk (a kill at that moment may leave it there, to be sent once more).

    A write that has returned is in the kernel's hands: it survives the end of the process, however
    sudden. A power cut may lose what was written since the last sync.

    An async context manager. Entering raises ConfigError where the folder cannot be used; leaving
    writes what is waiting, within `closing_s`.
    """

    def __init__(
        self,
        folder: Path,
        settings: DiskQueue,
        saved: Callable[[Entry, Place | None], None],
        *,
        patience_s: float = PATIENCE_S,
        closing_s: float = PATIENCE_S,
    ) -> None:
        self.limit = int(settings.size)
        self.usage = 0  # bytes of all segments
        self.queued = 0  # bytes on their way into them
        self._folder = folder
        self._settings = settings
        self._saved = saved
        self._patience_s = patience_s
        self._closing_s = closing_s
        self._journal = Journal(folder, min(_SEGMENT_BYTES, max(self.limit // 16, 1)))
        self._segments: dict[int, tuple[Signal, int]] = {}
        self._dropped: dict[int, Signal] = {}  # not deleted yet
        self._waiting: list[_Waiting] = []
        self._writing: list[_Waiting] = []
        self._marks: dict[Signal, Position] = {}
        self._unsynced: set[tuple[int, Signal]] = set()
        self._stuck = False
        self._problems: dict[str, str] = {}
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def failing(self) -> bool:
        """Whether the disk did not take the last that it was given."""
        return bool(self._problems)

    async def __aenter__(self) -> Self:
        self._writer, self._reader = DiskThread("spool-write"), DiskThread("spool-read")
        self._syncer = DiskThread("spool-sync")
        try:
            self.restored = await self._writer.submit(self._journal.open)
            sizes = await self._writer.submit(self._journal.sizes)
        except OSError as error:
            reason = f"the disk queue {self._folder} cannot be used: {error.strerror}"
            raise ConfigError([Problem("state_dir", reason)]) from error
        self._segments = sizes
        self.usage = sum(size for _, size in sizes.values())
        self._tasks = [asyncio.create_task(self._run(), name="spool")]
        if self._settings.sync == "interval":
            self._tasks.append(asyncio.create_task(self._sync_at_intervals(), name="spool sync"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        deadline_s = time.monotonic() + self._closing_s
        if answers := [one.answer for one in (*self._writing, *self._waiting)]:
            await asyncio.wait(answers, timeout=self._closing_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        last = self._writer.submit(partial(self._finish, dict(self._marks)))
        done, _ = await asyncio.wait({last}, timeout=max(0.0, deadline_s - time.monotonic()))
        if not done or last.exception():
            log.warning(
                "the disk was not done with %s at the end: only a power cut can harm it", self._folder
            )
        for thread in (self._writer, self._reader, self._syncer):
            thread.stop()

    def append(self, entry: Entry) -> asyncio.Future[None] | None:
        """Write an entry; what is returned is done once `saved` has been called. None: it was already."""
        if self._stuck:
            self._saved(entry, None)
            return None
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(entry, answer))
        self.queued += HEADER_BYTES + len(entry.raw)
        self._wake.set()
        return answer

    async def read(self, signal: Signal, extent: Extent, nbytes: int) -> Chunk:
        """The extent's next records. Raises OSError where the segment cannot be read."""
        return await self._reader.submit(partial(self._journal.read, signal, replace(extent), nbytes))

    def commit(self, signal: Signal, mark: Position) -> None:
        """Note that all before `mark` is settled."""
        before = self._marks.get(signal)
        self._marks[signal] = mark
        if before is None or before.segment != mark.segment:
            for number in [n for n, (its, _) in self._segments.items() if its == signal and n < mark.segment]:
                self.usage -= self._segments.pop(number)[1]
        self._wake.set()

    def drop(self, signal: Signal, number: int) -> None:
        """Delete a segment, once the mark that passes it is written."""
        self._dropped[number] = signal
        _, size = self._segments.pop(number, (signal, 0))
        self.usage -= size
        self._wake.set()

    async def _run(self) -> None:
        told: dict[Signal, Position] = {}
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting or self._dropped or self._marks != told:
                marks, gone = dict(self._marks), dict(self._dropped)
                await self._write({} if marks == told else marks, gone)
                told = marks
                for number in gone:
                    del self._dropped[number]

    def _begin(self) -> list[Request]:
        """Take the next group to write."""
        nbytes, requests = 0, []
        for entry, _ in self._waiting:
            requests.append(Request(entry.signal, entry.raw, entry.items))
            nbytes += len(entry.raw)
            if nbytes >= GROUP_BYTES:
                break
        self._writing, self._waiting = self._waiting[: len(requests)], self._waiting[len(requests) :]
        return requests

    async def _write(self, marks: Mapping[Signal, Position], gone: Mapping[int, Signal]) -> None:
        # Whoever takes it first decides: the thread, that the group is on disk, or the loop, that it is not.
        claim = partial(threading.Lock().acquire, blocking=False)
        job = self._writer.submit(partial(self._step, self._begin(), marks, gone, claim))
        done, _ = await asyncio.wait({job}, timeout=self._patience_s)
        if not done and claim():
            self._tell("write", f"it takes longer than {self._patience_s:g} s")
            self._stuck = True
            self._settle(None)
            self._writing, self._waiting = self._waiting, []
            self._settle(None)
        places, problem = None, ""
        try:
            places = await job
        except OSError as error:
            problem = str(error)
        except Exception as error:
            log.exception("the disk queue %s", self._folder)
            problem = repr(error)
        self._tell("write", problem)
        self._stuck = False
        self._settle(places)

    def _step(
        self,
        requests: list[Request],
        marks: Mapping[Signal, Position],
        gone: Mapping[int, Signal],
        claim: Callable[[], bool],
    ) -> list[Place] | None:
        if marks:
            self._journal.commit(marks)
        for number, signal in gone.items():
            self._journal.drop(number, signal)
        return self._journal.append(requests, claim) if requests else None

    def _settle(self, places: Sequence[Place] | None) -> None:
        """Tell what became of the group."""
        group, self._writing = self._writing, []
        told: Sequence[Place | None] = places or [None] * len(group)
        for (entry, answer), place in zip(group, told, strict=True):
            self.queued -= HEADER_BYTES + len(entry.raw)
            if place is None or place.position.segment in self._dropped:
                # Refused, or its segment was dropped while it was written.
                self._saved(entry, None)
            else:
                number = place.position.segment
                _, size = self._segments.get(number, (entry.signal, 0))
                self._segments[number] = (entry.signal, place.end)
                self.usage += place.end - size
                self._unsynced.add((number, entry.signal))
                self._saved(entry, place)
            if not answer.done():
                answer.set_result(None)

    async def _sync_at_intervals(self) -> None:
        while True:
            await asyncio.sleep(self._settings.sync_interval)
            segments, self._unsynced = self._unsynced, set()
            if not segments:
                continue
            try:
                await self._syncer.submit(partial(self._journal.sync, segments))
            except OSError as error:
                # The kernel has given those pages up, and would call a second try a success.
                self._tell("sync", str(error))
            else:
                self._tell("sync", "")

    def _finish(self, marks: Mapping[Signal, Position]) -> None:
        self._journal.commit(marks)
        if self._settings.sync == "interval":
            self._journal.sync(self._unsynced)
        self._journal.close()

    def _tell(self, what: str, problem: str) -> None:
        """Log a change, and not each attempt."""
        if problem and what not in self._problems:
            log.warning("the disk queue %s fails to %s: %s", self._folder, what, problem)
        elif not problem and what in self._problems:
            log.info("the disk queue %s can %s again", self._folder, what)
        if problem:
            self._problems[what] = problem
        else:
            self._problems.pop(what, None)
