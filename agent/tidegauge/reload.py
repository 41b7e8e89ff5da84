"""The configuration, taken anew by a running agent where that costs no state."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from tidegauge.changes import changes, fingerprint, restarts
from tidegauge.config import Config, ConfigError
from tidegauge.telemetry import Telemetry

log = logging.getLogger(__name__)

Commit = Callable[[], Any]
"""Puts in force what was prepared; may be a coroutine function. It cannot fail."""

Prepare = Callable[[Config], Commit]
"""Reads what a part of the agent needs for another configuration. Runs on any thread; raises ConfigError."""


class Origin(NamedTuple):
    """Where a configuration comes from, and the wish to have it read again."""

    read: Callable[[], Config]
    asked: asyncio.Event


class Reload:
    """Watched by a FileWatch: reads the configuration, and takes it as a whole or not at all.

    A part is given by what prepares it. Where one cannot be prepared, or a setting has changed that
    needs a restart, nothing changes. `current` is what is in force.
    """

    setting = "config"

    def __init__(self, config: Config, read: Callable[[], Config], telemetry: Telemetry) -> None:
        self.current = config
        self.parts: list[Prepare] = [_log_level]
        self._read = read
        self._telemetry = telemetry
        self._failed = False
        self._taken_s = time.time()

    def read(self) -> Config:
        """The configuration as it stands now."""
        try:
            found = self._read()
        except ConfigError:
            self._failed = True
            raise
        if found == self.current:
            self._failed = False
        return found

    async def take(self, config: Config) -> None:
        """Put it in force.

        Raises:
            ConfigError: with every setting that needs a restart, or that could not be prepared.
        """
        try:
            commits = await asyncio.to_thread(self._prepared, config)
        except ConfigError:
            self._failed = True
            raise
        for commit in commits:
            done = commit()
            if inspect.isawaitable(done):
                await done
        log.info("changed: %s", ", ".join(changes(self.current, config)))
        self.current, self._failed, self._taken_s = config, False, time.time()

    def _prepared(self, config: Config) -> list[Commit]:
        if problems := restarts(self.current, config):
            raise ConfigError(problems)
        return [prepare(config) for prepare in self.parts]

    def observe(self) -> None:
        """Write which configuration is in force to the agent's own telemetry."""
        gauge = self._telemetry.set_gauge
        self._telemetry.forget_gauge("config.info")  # with the one before in it
        about = "The configuration in force, as `tidegauge check` tells it; always 1."
        gauge("config.info", "", about, 1, hash=fingerprint(self.current))
        about = "1 while the configuration in force is the one that stands in the file."
        gauge("config.last_reload_successful", "", about, not self._failed)
        about = "Unix time when the configuration in force was taken."
        gauge("config.last_reload_success_timestamp", "s", about, self._taken_s)


def _log_level(config: Config) -> Commit:
    return lambda: logging.getLogger().setLevel(config.log.level.upper())
