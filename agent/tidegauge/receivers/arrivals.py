"""Messages that are still arriving on the gRPC port: how long they may take, and how much memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Self, TypeAlias

import grpc

from tidegauge import memory
from tidegauge.config import GrpcReceiver
from tidegauge.receivers.outcome import RefusedError, Verdict

log = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"

_TICK_S = 0.05
"""How often memory is looked at while many messages are arriving; a look takes 20 us."""


class Arrivals:
    """Hands out messages as they have come, and bounds what those hold that have not.

    gRPC keeps a message that is still arriving in memory, and tells neither its size nor how much of it
    has come; the quota that its core has for that cannot be set from Python. So the process itself is
    watched while more messages are arriving than half of `receivers.grpc.max_receiving` would hold if
    each were as large as it may be: as soon as anonymous memory, without what `held` says is in the
    queue, has grown by the other half, all calls that have been waiting for their message for longer
    than a tick are refused. Beyond `max_receiving` comes only what arrives within two ticks. Where there
    is no /proc (not Linux) nothing is watched.

    An async context manager: entering it starts the watch.
    """

    def __init__(self, settings: GrpcReceiver, held: Callable[[], int]) -> None:
        self._settings = settings
        self._held = held
        self._growth = int(settings.max_receiving) // 2
        self._few = max(1, self._growth // int(settings.max_message_size))
        # When each began to wait for its message, the oldest first.
        self._calls: dict[asyncio.Timeout, float] = {}
        self._streams: dict[asyncio.Timeout, float] = {}
        self._crowded = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None

    async def message(self, context: Context) -> bytes:
        """The one message of a call.

        The context is read, not gRPC's iterator: one that is left before its end costs a task that closes
        it, 0.05 ms, and keeps the message until then.

        Raises:
            RefusedError: where there is none, or where it is too slow, too large or too much.
        """
        raw = await self._next(context.read(), self._calls, self._settings.timeout)
        if raw is None:
            raise RefusedError(Verdict.ABANDONED, "the call carried no message")
        return raw

    async def messages(self, context: Context) -> AsyncIterator[bytes]:
        """The messages of a stream, which may take as long as it likes between two of them.

        Raises:
            RefusedError: where one is too large or too much.
        """
        while (raw := await self._next(context.read(), self._streams, None)) is not None:
            yield raw

    async def _next(
        self, coming: Awaitable[Any], waiting: dict[asyncio.Timeout, float], limit_s: float | None
    ) -> bytes | None:
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(limit_s) as deadline:
                waiting[deadline] = began
                if len(self._calls) + len(self._streams) > self._few:
                    self._crowded.set()
                raw = await coming
        except TimeoutError:
            waited_s = asyncio.get_running_loop().time() - began
            if limit_s is not None and waited_s >= limit_s:
                raise RefusedError(
                    Verdict.SLOW, f"the message did not come within {limit_s:g} s (receivers.grpc.timeout)"
                ) from None
            raise RefusedError(
                Verdict.OVERLOAD, "too much is arriving at once (receivers.grpc.max_receiving)"
            ) from None
        finally:
            waiting.pop(deadline, None)
        if raw is grpc.aio.EOF:
            return None
        most = int(self._settings.max_message_size)
        if len(raw) > most:
            raise RefusedError(
                Verdict.TOO_LARGE, f"a message may have {most} bytes (receivers.grpc.max_message_size)"
            )
        return bytes(raw)

    async def __aenter__(self) -> Self:
        if memory.WATCHED:
            self._watcher = asyncio.create_task(self._watch(), name="arrivals")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait({self._watcher})

    async def _watch(self) -> None:
        while True:
            await self._crowded.wait()
            self._crowded.clear()
            least = self._memory()
            while len(self._calls) + len(self._streams) > self._few:
                await asyncio.sleep(_TICK_S)
                least = min(least, self._memory())
                if self._memory() - least > self._growth:
                    least = await self._relieve(least)

    async def _relieve(self, least: int) -> int:
        """Refuse what is arriving, streams only where calls were not it; returns what memory is then.

        A stream that waits between two messages looks like one in the midst of a message. And growth
        that this does not undo is somebody else's, and must not cost calls again.
        """
        for waiting in (self._calls, self._streams):
            refused = self._refuse(waiting)
            if refused:
                grown = (self._memory() - least) / 2**20
                log.warning("memory grew by %.0f MiB while messages arrived: refused %d", grown, refused)
                await asyncio.sleep(_TICK_S)
                await asyncio.to_thread(memory.give_back)
            if self._memory() - least < self._growth // 2:
                break
        return self._memory()

    def _refuse(self, waiting: dict[asyncio.Timeout, float]) -> int:
        now = asyncio.get_running_loop().time()
        late = [one for one, began in waiting.items() if began < now - _TICK_S and not one.expired()]
        for deadline in late:
            deadline.reschedule(now)
        return len(late)

    def _memory(self) -> int:
        """Bytes of anonymous memory that are not the queue's."""
        return memory.anonymous_bytes() - self._held()
