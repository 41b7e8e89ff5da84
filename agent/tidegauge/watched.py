"""Files that may change under a running agent, looked at every few seconds and when asked."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from tidegauge.config import ConfigError
from tidegauge.telemetry import Telemetry

log = logging.getLogger(__name__)


class Watched(Protocol):
    """Something made of files."""

    @property
    def setting(self) -> str:
        """Which setting, or block of them, names the files."""

    @property
    def current(self) -> Any:
        """What is in force; equal to what `read` returns as long as the files say the same."""

    def read(self) -> Any:
        """Read and check the files, on another thread. Raises ConfigError where they will not do."""

    def take(self, found: Any, /) -> Any:
        """Put it in force. May be a coroutine, and raise ConfigError."""


class FileWatch:
    """Reads everything that is watched once per `interval_s`, and at once when `asked` is set.

    Contents are compared, not times: they are small, and a mounted ConfigMap changes by a symbolic link
    to another folder. What will not do is told once and counted, and what is in force stays.

    An async context manager: entering it begins to watch.
    """

    def __init__(
        self,
        watched: Sequence[Watched],
        telemetry: Telemetry,
        *,
        interval_s: float,
        asked: asyncio.Event | None = None,
    ) -> None:
        self._watched = watched
        self._telemetry = telemetry
        self.interval_s = interval_s
        self._asked = asyncio.Event() if asked is None else asked
        self._refused: dict[str, tuple[str, Any]] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.observe()
        self._task = asyncio.create_task(self._watch(), name="file watch")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait({self._task})

    def observe(self) -> None:
        """Write to the agent's own telemetry what on disk is not what is in force."""
        about = "1 while a setting's files will not do, and what they were before is in force."
        for one in self._watched:
            failing = one.setting in self._refused
            self._telemetry.set_gauge("reload.failing", "", about, failing, setting=one.setting)

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), self.interval_s)
            if self._asked.is_set():
                self._asked.clear()
                self._refused.clear()  # so that what is still wrong is told again
            await self.look()

    async def look(self) -> None:
        """Read everything, and take what has changed."""
        for one in self._watched:
            try:
                await self._look_at(one)
            except ConfigError as error:
                self._refuse(one.setting, str(error), None)
            except Exception as error:
                if self._refuse(one.setting, type(error).__name__, None):
                    log.exception("%s could not be looked at", one.setting)
        self.observe()

    async def _look_at(self, one: Watched) -> None:
        found = await asyncio.to_thread(one.read)
        if found == one.current:
            self._refused.pop(one.setting, None)
            return
        _, refused = self._refused.get(one.setting, ("", None))
        if found == refused:
            return
        try:
            taking = one.take(found)
            if inspect.isawaitable(taking):
                await taking
        except ConfigError as error:
            self._refuse(one.setting, str(error), found)
            return
        self._refused.pop(one.setting, None)
        self._telemetry.add("reloads", 1, setting=one.setting, outcome="taken")
        log.info("%s has changed, and is in force", one.setting)

    def _refuse(self, setting: str, why: str, found: Any) -> bool:
        """Returns whether that is new."""
        is_new = self._refused.get(setting, ("", None))[0] != why
        if is_new:
            self._telemetry.add("reloads", 1, setting=setting, outcome="refused")
            log.warning("%s has changed, and will not do: %s", setting, "; ".join(why.splitlines()))
        self._refused[setting] = (why, found)
        return is_new
