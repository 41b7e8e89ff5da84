"""The connection to an OpenTelemetry collector, whichever protocol it speaks."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Self

from tidegauge.batch import Signal
from tidegauge.config import Destination
from tidegauge.exporters.grpc_channel import GrpcChannel
from tidegauge.exporters.http_channel import HttpChannel
from tidegauge.exporters.outcome import Outcome, Verdict

log = logging.getLogger(__name__)


class Collector:
    """A channel to a collector. An async context manager; leaving it closes the channel.

    A change of what the collector does, and not each attempt, is worth a line in the log. Use it on
    the event loop. `path` is where the settings stand in the configuration.

    Raises:
        ConfigError: where the CA file cannot be read.
    """

    def __init__(self, settings: Destination, path: str = "exporters.otlp") -> None:
        if settings.endpoint is None:
            raise ValueError("a collector needs an endpoint")
        self.endpoint = settings.endpoint
        self._channel = (GrpcChannel if settings.protocol == "grpc" else HttpChannel)(settings, path)
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
        outcome = await self._channel.send(signal, request)
        self._tell(signal, outcome)
        return outcome

    def _tell(self, signal: Signal, outcome: Outcome) -> None:
        unreachable = outcome.verdict is Verdict.RETRY
        if unreachable and not self._unreachable:
            log.warning("collector %s takes nothing: %s", self.endpoint, outcome.message)
        elif self._unreachable and not unreachable:
            log.info("collector %s answers again", self.endpoint)
        self._unreachable = unreachable
        if unreachable:
            return
        if outcome.message and outcome.message != self._refusals.get(signal):
            log.warning("collector %s refuses %s: %s", self.endpoint, signal, outcome.message)
        self._refusals[signal] = outcome.message
