"""One agent per `state_dir`."""

from __future__ import annotations

import fcntl
import logging
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tidegauge.config import ConfigError, Problem

log = logging.getLogger(__name__)


class StateLock:
    """Holds `state_dir` for this process, until it is left or the process ends, however it does.

    Raises on entering:
        ConfigError: where another process holds it, or the folder is `needed` and cannot be written. One
            that is not costs a warning.
    """

    def __init__(self, state_dir: Path, *, needed: bool = True) -> None:
        self._state_dir = state_dir
        self._needed = needed
        self._descriptor = -1

    def __enter__(self) -> Self:
        path = self._state_dir / "lock"
        try:
            self._state_dir.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            reason = f"{self._state_dir} cannot be written: {error.strerror}"
            if not self._needed:
                log.warning("state_dir: %s; a restart will lose what it was to keep", reason)
                return self
            raise ConfigError([Problem("state_dir", reason)]) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(self._descriptor, 20, 0).decode(errors="replace").strip()
            os.close(self._descriptor)
            reason = f"{self._state_dir} is in use by another agent (process {owner or 'unknown'})"
            raise ConfigError([Problem("state_dir", reason, "give each agent its own")]) from error
        with suppress(OSError):  # a full disk: whose it is, is told to people only
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
