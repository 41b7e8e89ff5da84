"""Large pieces of work, one at a time and off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Turn:
    """A queue for the one thread that may read a large message.

    What reading makes of a message may be larger than the message itself, and many threads would take
    all cores. A caller that is cancelled leaves the queue, but not while its work is under way: a thread
    cannot be stopped, so its turn and its bytes end when it does.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._bytes = 0

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the messages that wait or are being read."""
        return self._bytes

    async def run(self, nbytes: int, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The result of `work` on a thread, once those before it have ended."""
        self._bytes += nbytes
        try:
            await self._lock.acquire()
        except asyncio.CancelledError:
            self._bytes -= nbytes
            raise
        working = asyncio.get_running_loop().run_in_executor(None, partial(work, *args, **kwargs))
        working.add_done_callback(lambda _: self._end(nbytes))
        return await asyncio.shield(working)

    def _end(self, nbytes: int) -> None:
        self._bytes -= nbytes
        self._lock.release()
