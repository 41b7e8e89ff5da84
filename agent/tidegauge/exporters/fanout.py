"""One forwarder for each collector, given the same bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from tidegauge.batch import Signal
from tidegauge.exporters.forward import Forwarder


class Fanout:
    """Offers each request to every forwarder. They share its bytes, and wait for none of the others.

    An async context manager: leaving it leaves all of them at the same time.
    """

    def __init__(self, forwarders: Sequence[Forwarder]) -> None:
        self._forwarders = tuple(forwarders)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for forwarder in self._forwarders:
                await stack.enter_async_context(forwarder)
            stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(one.__aexit__(kind, error, trace) for one in self._forwarders))

    def offer(self, signal: Signal, raw: bytes, items: int) -> Awaitable[object] | None:
        """As `Forwarder.offer`: what is returned is done when every disk queue has answered."""
        answers = [forwarder.offer(signal, raw, items) for forwarder in self._forwarders]
        waits = [answer for answer in answers if answer is not None]
        if len(waits) > 1:
            return asyncio.gather(*waits)
        return waits[0] if waits else None

    def keeps_up(self, signal: Signal, nbytes: int) -> bool:
        """Whether every disk queue does, as `Forwarder.keeps_up`."""
        return all(forwarder.keeps_up(signal, nbytes) for forwarder in self._forwarders)

    def observe(self) -> None:
        """Write all queues' gauges to the agent's own telemetry."""
        for forwarder in self._forwarders:
            forwarder.observe()
