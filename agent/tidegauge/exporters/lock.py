"""One agent per `state_dir`."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from tidegauge.config import ConfigError, Problem


class StateLock:
    """Holds `state_dir` for this process, until it is left or the process ends, however it does.

    Raises on entering:
        ConfigError: where another process holds it, or the folder cannot be written.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._descriptor = -1

    def __enter__(self) -> Self:
        path = self._state_dir / "lock"
        try:
            self._state_dir.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            reason = f"{self._state_dir} cannot be written: {error.strerror}"
            raise ConfigError([Problem("state_dir", reason)]) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(self._descriptor, 20, 0).decode(errors="replace").strip()
            os.close(self._descriptor)
            reason = f"{self._state_dir} is in use by another agent (process {owner or 'unknown'})"
            raise ConfigError([Problem("state_dir", reason, "give each agent its own")]) from error
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
