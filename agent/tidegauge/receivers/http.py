"""OTLP over HTTP: protobuf and JSON, plain or compressed (OTLP specification, "OTLP/HTTP")."""

from __future__ import annotations

import asyncio
import json
import zlib
from types import TracebackType
from typing import Self

from aiohttp import web
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from tidegauge import config
from tidegauge.batch import Signal
from tidegauge.receivers.otlp import RETRY_DELAY_S, OtlpReceiver, Outcome, Verdict
from tidegauge.units import parse_endpoint
from tidegauge.wire.otlp_json import to_protobuf

RECEIVER = "otlp_http"

_SIGNALS = {f"/v1/{signal}": signal for signal in (Signal.TRACES, Signal.METRICS, Signal.LOGS)}
_PROTOBUF, _JSON = "application/x-protobuf", "application/json"
_CODINGS = ("", "identity", "gzip", "deflate")

_MAX_JSON_BYTES = 2**24
"""JSON takes some ten times its size in memory while it is read; senders of bulk use protobuf."""

_STATUS = {Verdict.UNDECODABLE: 400, Verdict.QUEUE_FULL: 503, Verdict.TOO_LARGE: 413}
_CODE = {
    400: Code.INVALID_ARGUMENT,
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

    def __init__(self, settings: config.HttpReceiver, otlp: OtlpReceiver, *, grace_s: float = 1.5) -> None:
        self._settings = settings
        self._otlp = otlp
        self._limit = int(settings.max_message_size)
        application = web.Application(client_max_size=self._limit)
        application.router.add_route("*", "/{path:.*}", self._respond)
        # Bodies are inflated here, where the limit holds for what comes out.
        self._runner = web.AppRunner(
            application, access_log=None, shutdown_timeout=grace_s, auto_decompress=False
        )

    @property
    def port(self) -> int:
        """The port it listens on, also where the endpoint's is 0."""
        return int(self._runner.addresses[0][1])

    async def __aenter__(self) -> Self:
        host, port = parse_endpoint(self._settings.endpoint)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            await self._runner.cleanup()
            problem = config.Problem(
                "receivers.http.endpoint",
                f"cannot listen on {self._settings.endpoint}: {error.strerror}",
                "the port is taken, or the address is not this machine's",
            )
            raise config.ConfigError([problem]) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    async def _respond(self, request: web.Request) -> web.Response:
        signal = _SIGNALS.get(request.path)
        if signal is None:
            return _error(request, 404, f"nothing at {request.path}. {_WHERE}")
        if request.method != "POST":
            return _error(request, 405, f"{request.method} is not allowed: send with POST", {"Allow": "POST"})
        if request.content_type not in (_PROTOBUF, _JSON):
            return _error(request, 415, f"{request.content_type}: send {_PROTOBUF} or {_JSON}")
        if _coding(request) not in _CODINGS:
            message = f"content encoding {_coding(request)}: send gzip, deflate or none"
            return _error(request, 415, message)
        outcome = await self._receive(request, signal)
        if outcome.verdict is Verdict.ACCEPTED:
            body = b"{}" if request.content_type == _JSON else b""
            return web.Response(body=body, content_type=request.content_type)
        headers = {"Retry-After": str(RETRY_DELAY_S)} if outcome.verdict is Verdict.QUEUE_FULL else {}
        return _error(request, _STATUS[outcome.verdict], outcome.message, headers)

    async def _receive(self, request: web.Request, signal: Signal) -> Outcome:
        is_json = request.content_type == _JSON
        limit = min(self._limit, _MAX_JSON_BYTES) if is_json else self._limit
        try:
            raw = await request.read()
            if _coding(request) in ("gzip", "deflate"):
                raw = await asyncio.to_thread(_inflate, raw, limit)
            if len(raw) > limit:
                return self._too_large(signal, limit)
            if is_json:
                raw = await asyncio.to_thread(to_protobuf, signal, raw)
        except (web.HTTPRequestEntityTooLarge, OverflowError):
            return self._too_large(signal, limit)
        except (ValueError, web.RequestPayloadError) as error:
            message = f"not a valid OTLP {signal} request: {error}"
            return self._otlp.refuse(RECEIVER, signal, Verdict.UNDECODABLE, message)
        return await self._otlp.receive(RECEIVER, signal, raw)

    def _too_large(self, signal: Signal, limit: int) -> Outcome:
        message = f"a request may have {limit} bytes, also when decompressed"
        return self._otlp.refuse(RECEIVER, signal, Verdict.TOO_LARGE, message)


def _coding(request: web.Request) -> str:
    return request.headers.get("Content-Encoding", "").strip().lower()


def _inflate(body: bytes, limit: int) -> bytes:
    """Decompress one gzip or zlib stream.

    Raises:
        OverflowError: where more than `limit` bytes come out; no more than one byte over is made.
        ValueError: where it is not exactly one whole stream.
    """
    stream = zlib.decompressobj(wbits=47)  # 32 + 15: gzip or zlib, told by the header
    try:
        raw = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise ValueError(f"the body cannot be decompressed: {error}") from error
    if len(raw) > limit:
        raise OverflowError
    if not stream.eof or stream.unused_data:
        raise ValueError("the body is not one whole compressed stream")
    return raw


def _error(
    request: web.Request, status: int, message: str, headers: dict[str, str] | None = None
) -> web.Response:
    """A google.rpc.Status in the request's encoding, or in JSON where that is neither of the two."""
    code = _CODE[status]
    if request.content_type == _PROTOBUF:
        body, content_type = Status(code=code, message=message).SerializeToString(), _PROTOBUF
    else:
        body, content_type = json.dumps({"code": code, "message": message}).encode(), _JSON
    return web.Response(status=status, body=body, content_type=content_type, headers=headers)
