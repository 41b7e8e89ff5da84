"""The connections of the HTTP port: how many there may be, and how long one may say nothing."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.http import HttpProcessingError

from tidegauge.config import HttpReceiver
from tidegauge.listening.door import Door
from tidegauge.receivers.outcome import RETRY_DELAY_S

_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: %d\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    % RETRY_DELAY_S
)

_LINGER_S = 2.0
"""How long what a sender still sends is read and forgotten, so that it gets to read its answer."""


def _is_ours(record: logging.LogRecord) -> bool:
    """aiohttp logs a stack trace of its parser for each request that is none; the answer, 400, will do."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


_log = logging.getLogger(__name__)
_log.addFilter(_is_ours)


class Connections(web.Server):
    """Makes the protocol of each connection; one over `max_connections` is answered 503 and closed.

    So is one over `max_connections_per_peer`, which a Unix socket's peers do not count for.

    A connection that has sent no whole request head within `idle_timeout`, counted from its opening or
    its last answer, is closed.
    """

    def __init__(
        self,
        respond: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        settings: HttpReceiver,
        door: Door,
    ) -> None:
        super().__init__(
            respond,
            # Bodies are inflated elsewhere, where the limit holds for what comes out.
            auto_decompress=False,
            access_log=None,
            logger=_log,
            keepalive_timeout=float(settings.idle_timeout),
            lingering_time=_LINGER_S,
        )
        self._most = settings.max_connections
        self._most_per_peer = settings.max_connections_per_peer
        self._door = door
        self._open: Counter[str] = Counter()
        self._addresses: dict[Any, str] = {}

    def __call__(self) -> Any:
        return _Full() if len(self.connections) >= self._most else super().__call__()

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:
        """A connection is there; its handshake is done, if there is TLS."""
        super().connection_made(handler, transport)
        peer = address(transport)
        if not (self._most_per_peer and peer):
            return
        self._open[peer] += 1
        self._addresses[handler] = peer
        if self._open[peer] > self._most_per_peer:
            self._door.deny("peer_connections")
            transport.write(_FULL)
            transport.close()

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        """It is gone."""
        super().connection_lost(handler, exc)
        if peer := self._addresses.pop(handler, ""):
            self._open[peer] -= 1
            if not self._open[peer]:
                del self._open[peer]


class _Full(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(_FULL)
        transport.close()


def address(transport: asyncio.BaseTransport | None) -> str:
    """The peer's IP address; empty for one of a Unix socket, or one that is gone."""
    name = None if transport is None else transport.get_extra_info("peername")
    return str(name[0]) if isinstance(name, tuple) else ""
