"""The HTTP pages: /metrics, health, the status page and the snapshot as JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

import msgspec
from aiohttp import web

from tidegauge.config import ConfigError, Prometheus
from tidegauge.exporters import status
from tidegauge.exporters.prometheus import MetricsPage
from tidegauge.listening.door import Door
from tidegauge.listening.site import Site
from tidegauge.runs import plain
from tidegauge.snapshot import Snapshots

SETTING = "exporters.prometheus"

_OPEN = ("/healthz", "/readyz")
"""What the kubelet asks for, which has no credentials. It tells no more than whether all is well."""

Respond = Callable[[web.Request], Awaitable[web.StreamResponse]]

Verdict = Callable[[], list[str]]
"""Reasons why not; none means yes."""

# The page needs its own style sheet and nothing else, from nowhere else.
_SAFE = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Pages:
    """An HTTP server on `endpoint`, HOST:PORT or unix:/PATH; port 0 takes a free one, told by `port`.

    All but the probes want what the door asks for; `door` is made of `endpoint` where it is not given.

    `health` and `ready` are asked at each request of /healthz and /readyz: 200 where they give no
    reason against it, else 503 with one reason a line. An async context manager: entering listens.

    Raises (on entering):
        ConfigError: naming the setting, where the endpoint cannot be listened on.
    """

    def __init__(
        self,
        endpoint: str,
        snapshots: Snapshots,
        *,
        health: Verdict,
        ready: Verdict,
        door: Door | None = None,
    ) -> None:
        self._door = Door(Prometheus(endpoint=endpoint), SETTING) if door is None else door
        self._snapshots = snapshots
        self._health = health
        self._ready = ready
        self._metrics = MetricsPage(snapshots)
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/", self._status)
        app.router.add_get("/metrics", self._scrape)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/api/v1/snapshot", self._snapshot)
        # On stopping, a page in the making gets 2 s: one of 100 k series takes half a second from nothing.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
        self.port = 0
        """The port listened on, once entered."""

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        site = Site(self._runner, self._door)
        try:
            await site.start()
        except ConfigError:
            await self._runner.cleanup()
            raise
        self.port = site.port
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Respond) -> web.StreamResponse:
        if request.path in _OPEN or self._door.admits(request.headers.get("Authorization")):
            return await handler(request)
        challenge = {"WWW-Authenticate": self._door.gate.challenge, "Cache-Control": "no-store"}
        return web.Response(status=401, text="credentials, please\n", headers=challenge)

    async def _scrape(self, request: web.Request) -> web.Response:
        accept = ",".join(request.headers.getall("Accept", []))
        encoding = ",".join(request.headers.getall("Accept-Encoding", []))
        answer = await self._metrics.answer(accept, encoding)
        headers = {"Content-Type": answer.content_type, "Vary": "Accept, Accept-Encoding"}
        if answer.gzipped:
            headers["Content-Encoding"] = "gzip"
        return web.Response(body=answer.body, headers=headers)

    async def _healthz(self, _request: web.Request) -> web.Response:
        return _verdict(self._health())

    async def _readyz(self, _request: web.Request) -> web.Response:
        return _verdict(self._ready())

    async def _status(self, _request: web.Request) -> web.Response:
        text = await asyncio.to_thread(status.page, self._snapshots.latest(), self._health())
        return web.Response(text=text, content_type="text/html", headers=_SAFE)

    async def _snapshot(self, _request: web.Request) -> web.Response:
        # NaN and the infinities become null: JSON has no word for them, and msgspec writes them so.
        body = await asyncio.to_thread(msgspec.json.encode, self._snapshots.latest(), enc_hook=plain)
        return web.Response(body=body, content_type="application/json", headers=_SAFE)


def _verdict(reasons: list[str]) -> web.Response:
    text = "".join(f"{reason}\n" for reason in reasons)
    return web.Response(
        text=text or "ok\n", status=503 if reasons else 200, headers={"Cache-Control": "no-store"}
    )
