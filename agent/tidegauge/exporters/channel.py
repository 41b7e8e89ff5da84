"""The connection to an OpenTelemetry collector, whichever protocol it speaks."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from tidegauge.batch import Signal
from tidegauge.config import Destination
from tidegauge.exporters.credentials import Credentials, read
from tidegauge.exporters.grpc_channel import GrpcChannel
from tidegauge.exporters.http_channel import HttpChannel
from tidegauge.exporters.outcome import Outcome, Verdict

log = logging.getLogger(__name__)


class Collector:
    """A channel to a collector, a new one where its files or settings change.

    An async context manager; leaving it closes the channel. Calls under way end on the channel that
    they began on.

    A change of what the collector does, and not each attempt, is worth a line in the log. Use it on
    the event loop. `path` is where the settings stand in the configuration.

    Raises:
        ConfigError: where a file that the settings name cannot be read.
    """

    def __init__(self, settings: Destination, path: str = "exporters.otlp") -> None:
        if settings.endpoint is None:
            raise ValueError("a collector needs an endpoint")
        self.endpoint = settings.endpoint
        self.setting = path
        self._settings = settings
        self.current: Credentials = read(settings, path)
        self._channel = _channel(settings, self.current)
        self._calls: Counter[GrpcChannel | HttpChannel] = Counter()
        self._unreachable = False
        self._refusals: dict[Signal, str] = {}

    async def __aenter__(self) -> Self:
        await self._channel.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.__aexit__(kind, error, trace)

    async def export(self, signal: Signal, request: bytes) -> Outcome:
        """Send a serialised Export request once. Never raises for what the collector does."""
        channel = self._channel
        self._calls[channel] += 1
        try:
            outcome = await channel.send(signal, request)
        finally:
            self._calls[channel] -= 1
            await self._retire(channel)
        self._tell(signal, outcome)
        return outcome

    def read(self) -> Credentials:
        """Read the files that the settings name. Runs on any thread."""
        return read(self._settings, self.setting, self.current)

    async def take(self, credentials: Credentials) -> None:
        """Use these from the next call on."""
        await self._reopen(self._settings, credentials)

    def prepare(self, settings: Destination) -> Callable[[], Awaitable[None]]:
        """Read the files of other settings; what is returned puts these in force. Runs on any thread.

        Raises:
            ConfigError: for those that cannot be read.
        """
        credentials = read(settings, self.setting)

        async def commit() -> None:
            if settings != self._settings or credentials != self.current:
                await self._reopen(settings, credentials)

        return commit

    async def _reopen(self, settings: Destination, credentials: Credentials) -> None:
        channel = _channel(settings, credentials)
        await channel.__aenter__()
        old, self._channel = self._channel, channel
        self.endpoint = str(settings.endpoint)
        self._settings, self.current = settings, credentials
        await self._retire(old)

    async def _retire(self, channel: GrpcChannel | HttpChannel) -> None:
        """Close a channel that is not the present one, when its last call has ended."""
        if channel is self._channel or self._calls[channel] > 0:
            return
        del self._calls[channel]
        await asyncio.shield(channel.__aexit__(None, None, None))

    def _tell(self, signal: Signal, outcome: Outcome) -> None:
        unreachable = outcome.verdict is Verdict.RETRY
        message = self.current.withheld(self._settings, outcome.message)
        if unreachable and not self._unreachable:
            log.warning("collector %s takes nothing: %s", self.endpoint, message)
        elif self._unreachable and not unreachable:
            log.info("collector %s answers again", self.endpoint)
        self._unreachable = unreachable
        if unreachable:
            return
        if message and message != self._refusals.get(signal):
            log.warning("collector %s refuses %s: %s", self.endpoint, signal, message)
        self._refusals[signal] = message


def _channel(settings: Destination, credentials: Credentials) -> GrpcChannel | HttpChannel:
    return (GrpcChannel if settings.protocol == "grpc" else HttpChannel)(settings, credentials)
