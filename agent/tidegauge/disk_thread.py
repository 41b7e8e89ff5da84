"""A thread that waits for the disk, so that the event loop does not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

R = TypeVar("R")


class DiskThread:
    """Runs jobs one after the other. A disk that hangs, hangs this thread and nothing else.

    It is a daemon: the interpreter joins an executor's threads at its end, a hung one for ever.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, job: Callable[[], R]) -> asyncio.Future[R]:
        """The job's result, or what it raises. Call on the event loop."""
        future: asyncio.Future[R] = self._loop.create_future()
        self._jobs.put((job, future))
        return future

    def stop(self) -> None:
        """End once the jobs so far are done."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (work := self._jobs.get()) is not None:
            job, future = work
            try:
                result = job()
            except Exception as error:
                self._tell(_fail, future, error)
            else:
                self._tell(_succeed, future, result)

    def _tell(self, settle: Callable[..., None], future: asyncio.Future[Any], what: object) -> None:
        try:
            self._loop.call_soon_threadsafe(settle, future, what)
        except RuntimeError:
            return  # the loop is closed: the agent ended without waiting for this disk


def _succeed(future: asyncio.Future[Any], result: object) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
