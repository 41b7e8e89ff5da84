"""OTLP over HTTP: OpenTelemetry's exporters and raw requests against the real server and pipeline."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from google.rpc.status_pb2 import Status
from opentelemetry._logs import LogRecord
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind

from tidegauge import config
from tidegauge.batch import OVERHEAD, Signal
from tidegauge.receivers.http import HttpReceiver
from tidegauge.receivers.otlp import OtlpReceiver
from tidegauge.units import Size
from tidegauge.wire.traces import SPAN

PROTOBUF, JSON = "application/x-protobuf", "application/json"


class Reply(aiohttp.ClientResponse):
    """A response whose body has been read."""

    body: bytes

    @property
    def error(self) -> Status:
        """The google.rpc.Status of an error, whatever its encoding."""
        if self.content_type == PROTOBUF:
            return Status.FromString(self.body)
        assert self.content_type == JSON
        return Status(**json.loads(self.body))


@pytest.fixture
def serving(otlp_agent: Any) -> Callable[..., Any]:
    """Starts the receiver before a pipeline that folds latency."""

    def start(max_message: str = "1MiB", **options: Any) -> Any:
        settings = config.HttpReceiver(endpoint="127.0.0.1:0", max_message_size=Size(max_message))
        return otlp_agent("otlp_http", HttpReceiver, settings, **options)

    return start


async def post(
    running: Any, path: str, body: bytes, content_type: str = PROTOBUF, method: str = "POST", **headers: str
) -> Reply:
    headers = {"Content-Type": content_type, **{key.replace("_", "-"): headers[key] for key in headers}}
    async with (
        aiohttp.ClientSession(response_class=Reply) as session,
        session.request(method, f"http://{running.address}{path}", data=body, headers=headers) as reply,
    ):
        assert isinstance(reply, Reply)
        reply.body = await reply.read()
        return reply


def as_json(name: str = "predict") -> bytes:
    span = {
        "traceId": bytes(range(16)).hex(),
        "spanId": bytes(8).hex(),
        "name": name,
        "kind": 2,
        "startTimeUnixNano": str(10**18),
        "endTimeUnixNano": str(10**18 + 10**6),
        "notYetInvented": {"a": [1, 2]},
    }
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}).encode()


@pytest.mark.parametrize("compression", list(Compression))
def test_the_sdk_s_spans_become_latency(serving: Any, compression: Compression) -> None:
    def send(url: str) -> None:
        exporter = OTLPSpanExporter(f"{url}/v1/traces", compression=compression)
        provider = TracerProvider(resource=Resource({"service.name": "fraud"}))
        provider.add_span_processor(BatchSpanProcessor(exporter))
        for _ in range(600):
            with provider.get_tracer("test").start_as_current_span("POST /predict", kind=SpanKind.SERVER):
                pass
        provider.shutdown()

    async def main() -> None:
        async with serving() as running:
            await asyncio.to_thread(send, f"http://{running.address}")
            assert await running.latency() == {"POST /predict": 600}
            assert running.totals(Signal.TRACES) == (600, 600, 0)
            assert [signal for signal, _ in running.forwarded] == [Signal.TRACES] * 2

    asyncio.run(main())


def test_the_sdk_s_metrics_and_logs_are_counted_and_forwarded(serving: Any) -> None:
    def send(url: str) -> None:
        reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{url}/v1/metrics"))
        meters = MeterProvider(metric_readers=[reader])
        meters.get_meter("test").create_counter("requests").add(1)
        meters.shutdown()
        loggers = LoggerProvider()
        loggers.add_log_record_processor(SimpleLogRecordProcessor(OTLPLogExporter(f"{url}/v1/logs")))
        loggers.get_logger("test").emit(LogRecord(timestamp=1, body="line"))
        loggers.shutdown()

    async def main() -> None:
        async with serving() as running:
            await asyncio.to_thread(send, f"http://{running.address}")
            received = running.totals(Signal.METRICS)[0]
            assert received >= 1  # the SDK may add points about itself
            assert running.totals(Signal.METRICS) == (received, received, 0)
            assert running.totals(Signal.LOGS) == (1, 1, 0)
            assert {signal for signal, _ in running.forwarded} == {Signal.METRICS, Signal.LOGS}

    asyncio.run(main())


def test_json_is_taken_forwarded_as_protobuf_and_answered_in_json(serving: Any) -> None:
    async def main() -> None:
        async with serving() as running:
            reply = await post(running, "/v1/traces", as_json("explain"), "application/json; charset=utf-8")
            assert (reply.status, reply.content_type, reply.body) == (200, JSON, b"{}")
            assert await running.latency() == {"explain": 1}
            ((_, raw),) = running.forwarded
            span = ExportTraceServiceRequest.FromString(raw).resource_spans[0].scope_spans[0].spans[0]
            assert span.trace_id == bytes(range(16))

    asyncio.run(main())


def test_success_in_protobuf_is_an_empty_body(serving: Any, trace_request: Any) -> None:
    async def main() -> None:
        async with serving() as running:
            for path in ("/v1/traces", "/v1/metrics", "/v1/logs"):
                for body in (b"", trace_request(2) if path == "/v1/traces" else b""):
                    reply = await post(running, path, body, f"{PROTOBUF}; foo=bar")
                    assert (reply.status, reply.content_type, reply.body) == (200, PROTOBUF, b"")
            assert running.totals(Signal.TRACES) == (2, 2, 0)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("coding", "compress"), [("gzip", gzip.compress), ("GZIP", gzip.compress), ("deflate", zlib.compress)]
)
def test_compressed_bodies(
    serving: Any, trace_request: Any, coding: str, compress: Callable[[bytes], bytes]
) -> None:
    async def main() -> None:
        async with serving() as running:
            protobuf = compress(trace_request(7))
            assert (await post(running, "/v1/traces", protobuf, Content_Encoding=coding)).status == 200
            reply = await post(running, "/v1/traces", compress(as_json()), JSON, Content_Encoding=coding)
            assert reply.status == 200
            assert await running.latency() == {"predict": 8}

    asyncio.run(main())


@pytest.mark.parametrize(
    ("path", "method", "content_type", "status", "code", "words"),
    [
        ("/v1/traces", "GET", PROTOBUF, 405, 12, "send with POST"),
        ("/v1/traces", "PUT", JSON, 405, 12, "send with POST"),
        ("/v1/logs", "POST", "text/plain", 415, 12, "application/x-protobuf"),
        ("/v1/logs", "POST", "application/grpc", 415, 12, "application/x-protobuf"),
        ("/", "POST", PROTOBUF, 404, 5, "/v1/traces"),
        ("/", "POST", JSON, 404, 5, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
        ("/v1/traces/", "POST", PROTOBUF, 404, 5, "/v1/traces"),
        ("/v1development/profiles", "POST", PROTOBUF, 404, 5, "/v1/traces"),
    ],
)
def test_what_is_no_export_is_explained(
    serving: Any, path: str, method: str, content_type: str, status: int, code: int, words: str
) -> None:
    async def main() -> None:
        async with serving() as running:
            reply = await post(running, path, b"", content_type, method)
            assert reply.status == status
            assert reply.content_type == (PROTOBUF if content_type == PROTOBUF else JSON)
            assert reply.error.code == code
            assert words in reply.error.message
            assert (reply.headers.get("Allow") == "POST") == (status == 405)
            assert running.telemetry.total("received") == 0

    asyncio.run(main())


ONE_SPAN = ExportTraceServiceRequest(resource_spans=[{"scope_spans": [{"spans": [{"name": "predict"}]}]}])
GZIPPED = gzip.compress(ONE_SPAN.SerializeToString())


@pytest.mark.parametrize(
    ("body", "content_type", "coding", "words"),
    [
        (b"\x0a\x7f", PROTOBUF, "identity", "a field reaches beyond the end"),
        (b"{", JSON, "identity", "truncated"),
        (b'{"resourceSpans": 5}', JSON, "identity", "resourceSpans"),
        (b"not gzip", PROTOBUF, "gzip", "cannot be decompressed"),
        (GZIPPED[:-9], PROTOBUF, "gzip", "not one whole compressed stream"),
        (GZIPPED + b"rest", PROTOBUF, "gzip", "not one whole compressed stream"),
        (b"", JSON, "deflate", "not one whole compressed stream"),
    ],
)
def test_undecodable_is_400_and_counted(
    serving: Any, body: bytes, content_type: str, coding: str, words: str
) -> None:
    async def main() -> None:
        async with serving() as running:
            reply = await post(running, "/v1/traces", body, content_type, Content_Encoding=coding)
            assert (reply.status, reply.content_type, reply.error.code) == (400, content_type, 3)
            assert words in reply.error.message
            assert running.totals(Signal.TRACES) == (1, 0, 1)
            assert running.rejected("undecodable") == 1

    asyncio.run(main())


def test_an_unknown_content_encoding_is_415(serving: Any) -> None:
    async def main() -> None:
        async with serving() as running:
            reply = await post(running, "/v1/traces", b"x", Content_Encoding="zstd")
            assert reply.status == 415
            assert "gzip" in reply.error.message

    asyncio.run(main())


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        (bytes(70_000), "identity"),
        (gzip.compress(bytes(70_000)), "gzip"),
        (zlib.compress(bytes(2**26)), "deflate"),
    ],
)
def test_over_the_limit_is_413_also_when_decompressed(
    serving: Any, trace_request: Any, body: bytes, coding: str
) -> None:
    async def main() -> None:
        async with serving(max_message="64KiB") as running:
            reply = await post(running, "/v1/metrics", body, Content_Encoding=coding)
            assert (reply.status, reply.error.code) == (413, 8)
            assert "65536 bytes" in reply.error.message
            assert running.rejected("too_large") == 1
            exact = trace_request(1, name="x" * 60_000)
            assert (await post(running, "/v1/traces", exact, Content_Encoding="identity")).status == 200

    asyncio.run(main())


def test_what_can_never_fit_the_queue_is_413(serving: Any, trace_request: Any) -> None:
    async def main() -> None:
        async with serving(queue_bytes=10_000) as running:
            reply = await post(running, "/v1/traces", trace_request(500))
            assert reply.status == 413
            assert "pipeline.queue_size" in reply.error.message
            assert running.rejected("too_large") == 500

    asyncio.run(main())


@pytest.mark.parametrize("content_type", [PROTOBUF, JSON])
def test_a_full_queue_is_503_with_retry_after(serving: Any, trace_request: Any, content_type: str) -> None:
    async def main() -> None:
        raw = trace_request(100)
        async with serving(queue_bytes=len(raw) + 100 * SPAN.itemsize + OVERHEAD, blocked=True) as running:
            assert (await post(running, "/v1/traces", raw)).status == 200
            body = trace_request(9) if content_type == PROTOBUF else as_json()
            reply = await post(running, "/v1/traces", body, content_type)
            assert (reply.status, reply.content_type, reply.error.code) == (503, content_type, 14)
            assert reply.headers["Retry-After"] == "1"
            assert running.rejected("queue_full") == (9 if content_type == PROTOBUF else 1)
            assert len(running.forwarded) == 1

    asyncio.run(main())


def test_the_sdk_sends_again_what_a_full_queue_refused(serving: Any, trace_request: Any) -> None:
    async def main() -> None:
        raw = trace_request(100)
        async with serving(queue_bytes=len(raw) + 100 * SPAN.itemsize + OVERHEAD, blocked=True) as running:
            assert (await post(running, "/v1/traces", raw)).status == 200
            await running.refuses_at_first(OTLPSpanExporter(f"http://{running.address}/v1/traces"))

    asyncio.run(main())


def test_the_port_that_is_taken_is_named_with_its_setting(serving: Any) -> None:
    async def main() -> None:
        async with serving() as running:
            endpoint = running.address
            otlp = OtlpReceiver(running.pipeline, running.telemetry, config.IdentityAttributes())
            second = HttpReceiver(config.HttpReceiver(endpoint=endpoint), otlp)
            with pytest.raises(config.ConfigError, match=rf"receivers\.http\.endpoint: .*{endpoint}"):
                await second.__aenter__()

    asyncio.run(main())
