"""A door that aiohttp listens at."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from tidegauge.listening.door import Door
from tidegauge.listening.unix_socket import Owned, bound
from tidegauge.units import parse_endpoint

_HANDSHAKE_S = 10
"""asyncio would wait for a TLS handshake for a minute."""


class Site(web.BaseSite):
    """Listens at `door`, a TCP port or a Unix socket, with TLS where the door has a certificate."""

    def __init__(self, runner: web.BaseRunner, door: Door, *, backlog: int = 128) -> None:
        certificate = door.certificate
        context = None if certificate is None else certificate.context()
        super().__init__(runner, ssl_context=context, backlog=backlog)
        self._door = door
        self._owned: Owned | None = None
        self.port = 0
        """Of TCP, once started."""

    @property
    def name(self) -> str:
        """Where it listens, which is unique within a runner."""
        return self._door.settings.endpoint

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: naming the setting, where that cannot be.
        """
        await super().start()
        try:
            await self._listen()
        except OSError as error:
            raise self._door.cannot_listen(error) from error

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        factory: Any = self._runner.server
        tls = None if self._ssl_context is None else _HANDSHAKE_S
        options: Any = {"ssl": self._ssl_context, "backlog": self._backlog, "ssl_handshake_timeout": tls}
        if self._door.path is None:
            host, port = parse_endpoint(self._door.settings.endpoint)
            self._server = await loop.create_server(factory, host, port, **options)
            self.port = int(self._server.sockets[0].getsockname()[1])
        else:
            listening = bound(self._door.path, self._door.mode)
            self._owned = Owned(self._door.path)
            self._server = await loop.create_unix_server(factory, sock=listening, **options)

    async def stop(self) -> None:
        """Listen no more; the socket's name goes first."""
        if self._owned is not None:
            self._owned.remove()
        await super().stop()
