"""Looks at the files of `references`, and hands over those that have changed."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Generic, Self, TypeVar

from tidegauge.config import Reference as Settings
from tidegauge.disk_thread import DiskThread
from tidegauge.profile import ProfileError, Reference

P = TypeVar("P")

log = logging.getLogger(__name__)

Stamp = tuple[int, int, int]
"""Of a file: when it was changed, its size, and which one it is. A mounted ConfigMap is a symbolic link that
comes to point to another file."""


class ReferenceFiles(Generic[P]):
    """Every `interval_s` seconds looks whether a file is another one, and reads it, under the model and
    version that the configuration names.

    What `prepare` makes of it, on a thread of its own, is given to `switch`, unless that is None: it is
    no change. Each file is read once after the start, for it may have changed since it was read for that.
    One that cannot be read costs a warning, once, and the agent goes on with what it has. A disk that hangs,
    hangs the thread.
    """

    def __init__(
        self,
        references: Sequence[Settings],
        prepare: Callable[[Reference], P | None],
        switch: Callable[[P], Awaitable[None]],
        *,
        interval_s: float,
    ) -> None:
        self._references = references
        self._prepare = prepare
        self._switch = switch
        self._interval_s = interval_s
        self._stamps: dict[str, Stamp | str] = {}

    async def __aenter__(self) -> Self:
        self._disk = DiskThread("references")
        self._task = asyncio.create_task(self._run(), name="reference files")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._disk.stop()

    async def _run(self) -> None:
        while self._references:
            await asyncio.sleep(self._interval_s)
            for wanted in self._references:
                try:
                    await self._look(wanted)
                except Exception:
                    # Of whatever kind: the other files are to be looked at all the same.
                    log.exception("the reference of %s %s was not changed", wanted.model, wanted.version)

    async def _look(self, wanted: Settings) -> None:
        prepared = await self._disk.submit(lambda: self._take(wanted))
        if prepared is not None:
            await self._switch(prepared)

    def _take(self, wanted: Settings) -> P | None:
        reference = self._read(wanted.path)
        if reference is None:
            return None
        return self._prepare(replace(reference, model=wanted.model, version=wanted.version))

    def _read(self, path: str) -> Reference | None:
        """What is in the file, if it is another one than at the last time."""
        try:
            found = os.stat(path)
            # Taken before the file is read: what is written meanwhile is seen next time.
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            if self._stamps.get(path) == stamp:
                return None
            self._stamps[path] = stamp
            return Reference.load(path)
        except ProfileError as error:
            log.warning("the reference goes on as it is: %s", error)
        except OSError as error:
            if self._stamps.get(path) != str(error):
                log.warning("the reference goes on as it is: %s cannot be read: %s", path, error.strerror)
            self._stamps[path] = str(error)
        return None
