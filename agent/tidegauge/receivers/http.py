"""OTLP over HTTP: protobuf and JSON, plain or compressed (OTLP specification, "OTLP/HTTP")."""

from __future__ import annotations

import asyncio
import json
from types import TracebackType
from typing import Self

from aiohttp import web
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from tidegauge import config
from tidegauge.batch import Signal
from tidegauge.listening.door import Door
from tidegauge.listening.site import Site
from tidegauge.receivers.body import CODINGS, Bodies, coding
from tidegauge.receivers.connections import Connections, address
from tidegauge.receivers.otlp import OtlpReceiver
from tidegauge.receivers.outcome import RETRY_DELAY_S, Outcome, RefusedError, Verdict
from tidegauge.receivers.turn import Turn
from tidegauge.wire.otlp_json import to_protobuf

RECEIVER = "otlp_http"

_SIGNALS = {f"/v1/{signal}": signal for signal in (Signal.TRACES, Signal.METRICS, Signal.LOGS)}
_PROTOBUF, _JSON = "application/x-protobuf", "application/json"

_MAX_JSON_BYTES = 2**24
"""JSON takes some ten times its size in memory while it is read; senders of bulk use protobuf."""

_SMALL_JSON_BYTES = 2**18
"""Smaller bodies are read on any thread; larger ones one at a time."""

_STATUS = {
    Verdict.UNDECODABLE: 400,
    Verdict.QUEUE_FULL: 503,
    Verdict.OVERLOAD: 503,
    # Not 408, which a sender must not answer by sending again.
    Verdict.SLOW: 503,
    Verdict.TOO_LARGE: 413,
    Verdict.ABANDONED: 400,  # nobody is there to read it
}
_CODE = {
    400: Code.INVALID_ARGUMENT,
    401: Code.UNAUTHENTICATED,
    404: Code.NOT_FOUND,
    405: Code.UNIMPLEMENTED,
    413: Code.RESOURCE_EXHAUSTED,
    415: Code.UNIMPLEMENTED,
    503: Code.UNAVAILABLE,
}

_WHERE = (
    "OTLP is received at /v1/traces, /v1/metrics and /v1/logs. OTEL_EXPORTER_OTLP_ENDPOINT gets these "
    "appended, but OTEL_EXPORTER_OTLP_TRACES_ENDPOINT and its kin are used as written: end them so."
)


class HttpReceiver:
    """Listens on `receivers.http.endpoint` while entered; leaving it lets requests finish for `grace_s`."""

    def __init__(
        self,
        settings: config.HttpReceiver,
        otlp: OtlpReceiver,
        *,
        grace_s: float = 1.5,
        door: Door | None = None,
    ) -> None:
        self._settings = settings
        self._door = Door(settings, "receivers.http") if door is None else door
        self._otlp = otlp
        self._limit = int(settings.max_message_size)
        self._bodies = Bodies(settings, self._door)
        self._turn = Turn()
        self._grace_s = grace_s
        self._runner: web.ServerRunner | None = None
        self._site: Site | None = None

    @property
    def port(self) -> int:
        """The port it listens on, also where the endpoint's is 0."""
        return 0 if self._site is None else self._site.port

    async def __aenter__(self) -> Self:
        server = Connections(self._respond, self._settings, self._door)
        self._runner = web.ServerRunner(server, shutdown_timeout=self._grace_s)
        await self._runner.setup()
        self._site = Site(self._runner, self._door, backlog=1024)
        try:
            await self._site.start()
        except config.ConfigError:
            await self._runner.cleanup()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _respond(self, request: web.BaseRequest) -> web.Response:
        if not self._door.admits(request.headers.get("Authorization")):
            challenge = {"WWW-Authenticate": self._door.gate.challenge}
            return _error(request, 401, "this port wants credentials in Authorization", challenge)
        return await self._answer(request)

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        signal = _SIGNALS.get(request.path)
        if signal is None:
            return _error(request, 404, f"nothing at {request.path}. {_WHERE}")
        if request.method != "POST":
            return _error(request, 405, f"{request.method} is not allowed: send with POST", {"Allow": "POST"})
        if request.content_type not in (_PROTOBUF, _JSON):
            return _error(request, 415, f"{request.content_type}: send {_PROTOBUF} or {_JSON}")
        if coding(request) not in CODINGS:
            message = f"content encoding {coding(request)}: send gzip, deflate or none"
            return _error(request, 415, message)
        outcome = await self._receive(request, signal)
        if outcome.verdict is Verdict.ACCEPTED:
            body = b"{}" if request.content_type == _JSON else b""
            return web.Response(body=body, content_type=request.content_type)
        headers = {"Retry-After": str(RETRY_DELAY_S)} if outcome.verdict.passing else {}
        return _error(request, _STATUS[outcome.verdict], outcome.message, headers)

    async def _receive(self, request: web.BaseRequest, signal: Signal) -> Outcome:
        is_json = request.content_type == _JSON
        limit = min(self._limit, _MAX_JSON_BYTES) if is_json else self._limit
        try:
            with self._bodies.share(address(request.transport)) as share:
                raw = await self._bodies.read(request, share, limit)
                if is_json:
                    raw = await self._from_json(signal, raw)
        except RefusedError as error:
            return self._otlp.refuse(RECEIVER, signal, *error.outcome)
        except ValueError as error:
            message = f"not a valid OTLP {signal} request: {error}"
            return self._otlp.refuse(RECEIVER, signal, Verdict.UNDECODABLE, message)
        except asyncio.CancelledError:  # the agent is stopping
            self._otlp.refuse(RECEIVER, signal, Verdict.ABANDONED, "")
            raise
        return await self._otlp.receive(RECEIVER, signal, raw)

    async def _from_json(self, signal: Signal, body: bytes) -> bytes:
        if len(body) < _SMALL_JSON_BYTES:
            return await asyncio.to_thread(to_protobuf, signal, body)
        return await self._turn.run(len(body), to_protobuf, signal, body)


def _error(
    request: web.BaseRequest, status: int, message: str, headers: dict[str, str] | None = None
) -> web.Response:
    """A google.rpc.Status in the request's encoding, or in JSON where that is neither of the two."""
    code = _CODE[status]
    if request.content_type == _PROTOBUF:
        body, content_type = Status(code=code, message=message).SerializeToString(), _PROTOBUF
    else:
        body, content_type = json.dumps({"code": code, "message": message}).encode(), _JSON
    return web.Response(status=status, body=body, content_type=content_type, headers=headers)
