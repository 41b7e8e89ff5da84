"""OTLP over HTTP against a real server that answers as a script says."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from tidegauge.batch import Signal
from tidegauge.config import ConfigError, Destination, OtlpExporter
from tidegauge.exporters.channel import Collector
from tidegauge.exporters.forward import Forwarder
from tidegauge.exporters.http_channel import retry_after_s
from tidegauge.exporters.outcome import Outcome, Verdict
from tidegauge.telemetry import Telemetry

Answer = Callable[[web.Request], Any]


class Server:
    """Keeps what it gets; `answers` are used up one a request, then it takes everything."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[str, bytes, dict[str, str]]] = []
        self.port = 0

    async def serve(self, request: web.Request) -> web.StreamResponse:
        # aiohttp has inflated a body with Content-Encoding already.
        self.requests.append((request.path, await request.read(), dict(request.headers)))
        answer = self.answers.pop(0) if self.answers else taken
        found = answer(request)
        return await found if asyncio.iscoroutine(found) else found


@asynccontextmanager
async def serving(*answers: Answer, context: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server(*answers)
    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{path:.*}", server.serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    server.port = runner.addresses[0][1]
    try:
        yield server
    finally:
        await runner.cleanup()


def taken(_: web.Request) -> web.Response:
    return web.Response(content_type="application/x-protobuf")


def refusal(status: int, message: str = "", **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = Status(message=message).SerializeToString()
    return lambda _: web.Response(
        status=status, body=body, headers=named, content_type="application/x-protobuf"
    )


def dropped(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def hung(_: web.Request) -> web.Response:
    await asyncio.sleep(30)
    return web.Response()


def outcome_of(answer: Answer, signal: Signal = Signal.TRACES, **settings: Any) -> Outcome:
    async def scene() -> Outcome:
        async with serving(answer) as server:
            given = settings_for(server, **settings)
            async with Collector(given) as collector:
                return await collector.export(signal, b"")

    return asyncio.run(scene())


def settings_for(server: Server, path: str = "", **settings: Any) -> Destination:
    endpoint = f"http://127.0.0.1:{server.port}{path}"
    return Destination(endpoint=endpoint, protocol="http/protobuf", **settings)


@pytest.mark.parametrize("status", [300, 301, 302, 307, 308, *range(400, 431), 451, *range(500, 509), 599])
def test_statuses(status: int) -> None:
    outcome = outcome_of(refusal(status, "as the test\nasks"))
    # OTLP specification, "Retryable Response Codes".
    assert outcome.verdict is (Verdict.RETRY if status in (429, 502, 503, 504) else Verdict.REJECTED)
    assert outcome.timed_out is (status == 504)
    assert outcome.delay_s is None
    assert outcome.message == f"{status} as the test asks"
    assert outcome.about_content == (status in (400, 413, 422, 500))


def test_what_says_nothing_is_named() -> None:
    assert outcome_of(lambda _: web.Response(status=404, body=b"\xff<html>")).message == "404 Not Found"
    assert outcome_of(lambda _: web.Response(status=599)).message == "599"


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_in_seconds_and_as_a_date(status: int) -> None:
    assert outcome_of(refusal(status, Retry_After="7")).delay_s == 7.0
    delay_s = outcome_of(refusal(status, Retry_After=formatdate(time.time() + 60, usegmt=True))).delay_s
    assert delay_s is not None
    assert 0 < delay_s <= 60


@pytest.mark.parametrize(
    ("text", "delay_s"),
    [
        ("0", 0.0),
        (" 12 ", 12.0),
        ("9" * 40, 999999999.0),
        ("Thu, 01 Jan 1970 00:00:10 GMT", 0.0),
        ("Thu, 01 Jan 1970 00:01:45 GMT", 5.0),
        ("-1", None),
        ("1.5", None),
        ("²", None),
        ("soon", None),
        ("Thu, 99 Jan 1970 00:00:10 GMT", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after(text: str | None, delay_s: float | None) -> None:
    assert retry_after_s(text, 100.0) == delay_s


def test_success_and_partial_success() -> None:
    assert outcome_of(taken) == Outcome(Verdict.DELIVERED)
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = 3
    response.partial_success.error_message = "too old"
    for compressed in (False, True):
        outcome = outcome_of(lambda _, gz=compressed: protobuf(response.SerializeToString(), gz))
        assert outcome == Outcome(Verdict.DELIVERED, rejected_items=3, message="too old")
    logs = ExportLogsServiceResponse()
    logs.partial_success.rejected_log_records = 2
    outcome = outcome_of(lambda _: protobuf(logs.SerializeToString()), Signal.LOGS)
    assert outcome == Outcome(Verdict.DELIVERED, 2, message="2 items, without saying why")
    assert outcome_of(lambda _: protobuf(b"\xff")).message == "its response cannot be decoded"
    # The collector answers {"partialSuccess":{}} to JSON; some answer HTML to everything.
    assert outcome_of(lambda _: web.Response(text="ok")).verdict is Verdict.DELIVERED


def protobuf(body: bytes, compressed: bool = False) -> web.Response:
    headers = {"Content-Encoding": "gzip"} if compressed else {}
    return web.Response(
        body=gzip.compress(body) if compressed else body,
        headers=headers,
        content_type="application/x-protobuf",
    )


def test_a_response_without_end_is_not_read_to_the_end() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=503)
        await response.prepare(request)
        try:
            while True:
                await response.write(b"\0" * 2**16)
        except ConnectionError:
            return response

    assert outcome_of(endless, timeout=10.0).message == "503 Service Unavailable"


def test_a_connection_that_drops_or_hangs_is_tried_again() -> None:
    outcome = outcome_of(dropped)
    assert outcome.verdict is Verdict.RETRY
    assert outcome.message.startswith("ServerDisconnectedError")
    outcome = outcome_of(hung, timeout=0.2)
    assert outcome == Outcome(Verdict.RETRY, message="no answer within 0.2 s", timed_out=True)


def test_nobody_there(closed_port: int) -> None:
    async def scene() -> Outcome:
        settings = Destination(endpoint=f"http://127.0.0.1:{closed_port}", protocol="http/protobuf")
        async with Collector(settings) as collector:
            return await collector.export(Signal.TRACES, b"")

    assert asyncio.run(scene()).verdict is Verdict.RETRY


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_the_request_as_it_arrives(compression: Any) -> None:
    request = ExportTraceServiceRequest()
    for n in range(200_000):  # more than a piece, and more than aiohttp likes to have at once
        request.resource_spans.add().schema_url = f"{n}"
    raw = request.SerializeToString()

    async def scene() -> None:
        async with serving() as server:
            settings = settings_for(server, "/base/", headers={"X-Tenant": "a b"}, compression=compression)
            async with Collector(settings) as collector:
                for signal in (Signal.TRACES, Signal.METRICS, Signal.LOGS):
                    assert (await collector.export(signal, raw)).verdict is Verdict.DELIVERED
        paths = [path for path, _, _ in server.requests]
        assert paths == ["/base/v1/traces", "/base/v1/metrics", "/base/v1/logs"]
        for _, body, headers in server.requests:
            assert body == raw
            assert headers["X-Tenant"] == "a b"
            assert headers["Content-Type"] == "application/x-protobuf"
            assert headers["User-Agent"].startswith("tidegauge/")
            assert headers.get("Content-Encoding") == ("gzip" if compression == "gzip" else None)
            assert "Content-Length" in headers

    asyncio.run(scene())


def test_the_forwarder_over_http() -> None:
    """413 halves, 429 and a drop are repeated, what is rejected is counted: nothing else is lost."""

    async def scene() -> None:
        def judge(request: web.Request) -> web.Response:
            size = len(server.requests[-1][1])
            return refusal(413)(request) if size > 60 else taken(request)

        async with serving(refusal(429, Retry_After="0"), dropped, *[judge] * 100) as server:
            settings = settings_for(server)
            telemetry = Telemetry()
            async with (
                Collector(settings) as collector,
                Forwarder(collector, telemetry, settings, linger_s=0.0, backoff_s=(0.01, 0.02)) as forwarder,
            ):
                for n in range(20):
                    forwarder.offer(Signal.TRACES, spans(n), 1)
                forwarder.offer(Signal.TRACES, spans(100, padding=100), 1)
        names = [
            span.name
            for _, body, _ in server.requests
            if len(body) <= 60
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for span in resource.scope_spans[0].spans
        ]
        assert names == [str(n) for n in range(20)]
        assert telemetry.total("exported", exporter="forwarder") == 20
        assert telemetry.total("export.dropped", exporter="forwarder", reason="rejected") == 1
        assert telemetry.total("export.retries", exporter="forwarder") == 2

    asyncio.run(scene())


def spans(n: int, padding: int = 0) -> bytes:
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add(schema_url="x" * padding).spans.add(name=str(n))
    return request.SerializeToString()


def test_a_ca_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("no certificate")
    for name in ("no.pem", "bad.pem"):
        settings = OtlpExporter(
            endpoint="https://c", protocol="http/protobuf", certificate=str(tmp_path / name)
        )
        with pytest.raises(ConfigError, match=rf"exporters\.collectors\[0\]\.certificate: .*{name} cannot"):
            Collector(settings, "exporters.collectors[0]")


def test_a_certificate_is_checked(tls: Any) -> None:
    async def scene() -> None:
        async with serving(context=tls.context) as server:
            trusting, doubting = (
                Destination(
                    endpoint=f"https://localhost:{server.port}",
                    protocol="http/protobuf",
                    certificate=certificate,
                )
                for certificate in (str(tls.certificate), None)
            )
            async with Collector(trusting) as collector:
                assert (await collector.export(Signal.TRACES, b"")).verdict is Verdict.DELIVERED
            async with Collector(doubting) as collector:
                outcome = await collector.export(Signal.TRACES, b"")
            assert outcome.verdict is Verdict.RETRY
            assert "certificate" in outcome.message

    asyncio.run(scene())
