"""OTLP over HTTP: OpenTelemetry's exporters and raw requests against the real server and pipeline."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

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
from tidegauge.batch import Batch, Signal
from tidegauge.metric import ExponentialHistogram, Metric
from tidegauge.pipeline import Pipeline
from tidegauge.processors.latency import Latency
from tidegauge.receivers.http import HttpReceiver
from tidegauge.receivers.otlp import OtlpReceiver
from tidegauge.telemetry import Telemetry
from tidegauge.units import Size
from tidegauge.wire.traces import SPAN

PROTOBUF, JSON = "application/x-protobuf", "application/json"


class Gate:
    """A processor that holds the worker until it is opened."""

    def __init__(self) -> None:
        self.open = threading.Event()

    def update(self, batch: Batch) -> Mapping[str, int]:
        self.open.wait(30)
        return {}

    def collect(self, now_ns: int) -> tuple[Metric, ...]:
        return ()


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


class Agent:
    """What a test needs of a running receiver."""

    def __init__(self, http: HttpReceiver, pipeline: Pipeline, telemetry: Telemetry, gate: Gate) -> None:
        self.http, self.pipeline, self.telemetry, self.gate = http, pipeline, telemetry, gate
        self.forwarded: list[tuple[Signal, bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.port}"

    def totals(self, signal: Signal) -> tuple[int, int, int]:
        """Items received, accepted and rejected, which must add up."""
        labels = {"receiver": "otlp_http", "signal": str(signal)}
        received, accepted, rejected = (
            self.telemetry.total(name, **labels) for name in ("received", "accepted", "rejected")
        )
        assert received == accepted + rejected
        return received, accepted, rejected

    def rejected(self, reason: str) -> int:
        return self.telemetry.total("rejected", receiver="otlp_http", reason=reason)

    async def latency(self) -> dict[str, int]:
        """Spans folded, by operation, when all are."""
        await eventually(lambda: self.pipeline.queue_bytes == 0)
        (latency, *_) = await self.pipeline.collect(0)
        return {
            dict(point.attributes)["operation"]: point.count
            for point in latency.points
            if isinstance(point, ExponentialHistogram)
        }

    async def post(
        self, path: str, body: bytes, content_type: str = PROTOBUF, method: str = "POST", **headers: str
    ) -> Reply:
        headers = {"Content-Type": content_type, **{key.replace("_", "-"): headers[key] for key in headers}}
        async with (
            aiohttp.ClientSession(response_class=Reply) as session,
            session.request(method, self.url + path, data=body, headers=headers) as reply,
        ):
            assert isinstance(reply, Reply)
            reply.body = await reply.read()
            return reply


async def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(4000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen within 20 s")


@asynccontextmanager
async def agent(
    queue_bytes: int = 2**24, max_message: str = "1MiB", *, blocked: bool = False
) -> AsyncIterator[Agent]:
    telemetry, gate = Telemetry(), Gate()
    if not blocked:
        gate.open.set()
    pipeline = Pipeline([Latency(config.Latency()), gate], telemetry, queue_bytes=queue_bytes)
    settings = config.HttpReceiver(endpoint="127.0.0.1:0", max_message_size=Size(max_message))
    forwarded: list[tuple[Signal, bytes]] = []
    otlp = OtlpReceiver(
        pipeline,
        telemetry,
        config.IdentityAttributes(),
        lambda signal, raw, items: forwarded.append((signal, raw)),
    )
    async with pipeline, HttpReceiver(settings, otlp, grace_s=0.2) as http:
        running = Agent(http, pipeline, telemetry, gate)
        running.forwarded = forwarded
        try:
            yield running
        finally:
            gate.open.set()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await test()

    asyncio.run(main())


def request(spans: int, name: str = "predict") -> ExportTraceServiceRequest:
    message = ExportTraceServiceRequest()
    scope = message.resource_spans.add().scope_spans.add()
    for number in range(spans):
        span = scope.spans.add(name=name, span_id=number.to_bytes(8, "big"), trace_id=bytes(range(16)))
        span.start_time_unix_nano, span.end_time_unix_nano = 10**18, 10**18 + 10**6
    return message


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
def test_the_sdk_s_spans_become_latency(compression: Compression) -> None:
    def send(url: str) -> None:
        exporter = OTLPSpanExporter(f"{url}/v1/traces", compression=compression)
        provider = TracerProvider(resource=Resource({"service.name": "fraud"}))
        provider.add_span_processor(BatchSpanProcessor(exporter))
        for _ in range(600):
            with provider.get_tracer("test").start_as_current_span("POST /predict", kind=SpanKind.SERVER):
                pass
        provider.shutdown()

    async def main() -> None:
        async with agent() as running:
            await asyncio.to_thread(send, running.url)
            assert await running.latency() == {"POST /predict": 600}
            assert running.totals(Signal.TRACES) == (600, 600, 0)
            assert [signal for signal, _ in running.forwarded] == [Signal.TRACES] * 2

    run(main)


def test_the_sdk_s_metrics_and_logs_are_counted_and_forwarded() -> None:
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
        async with agent() as running:
            await asyncio.to_thread(send, running.url)
            received = running.totals(Signal.METRICS)[0]
            assert received >= 1  # the SDK may add points about itself
            assert running.totals(Signal.METRICS) == (received, received, 0)
            assert running.totals(Signal.LOGS) == (1, 1, 0)
            assert {signal for signal, _ in running.forwarded} == {Signal.METRICS, Signal.LOGS}

    run(main)


def test_json_is_taken_forwarded_as_protobuf_and_answered_in_json() -> None:
    async def main() -> None:
        async with agent() as running:
            reply = await running.post("/v1/traces", as_json("explain"), "application/json; charset=utf-8")
            assert (reply.status, reply.content_type, reply.body) == (200, JSON, b"{}")
            assert await running.latency() == {"explain": 1}
            ((_, raw),) = running.forwarded
            span = ExportTraceServiceRequest.FromString(raw).resource_spans[0].scope_spans[0].spans[0]
            assert span.trace_id == bytes(range(16))

    run(main)


def test_success_in_protobuf_is_an_empty_body() -> None:
    async def main() -> None:
        async with agent() as running:
            for path in ("/v1/traces", "/v1/metrics", "/v1/logs"):
                for body in (b"", request(2).SerializeToString() if path == "/v1/traces" else b""):
                    reply = await running.post(path, body, f"{PROTOBUF}; foo=bar")
                    assert (reply.status, reply.content_type, reply.body) == (200, PROTOBUF, b"")
            assert running.totals(Signal.TRACES) == (2, 2, 0)

    run(main)


@pytest.mark.parametrize(
    ("coding", "compress"), [("gzip", gzip.compress), ("GZIP", gzip.compress), ("deflate", zlib.compress)]
)
def test_compressed_bodies(coding: str, compress: Callable[[bytes], bytes]) -> None:
    async def main() -> None:
        async with agent() as running:
            protobuf = compress(request(7).SerializeToString())
            assert (await running.post("/v1/traces", protobuf, Content_Encoding=coding)).status == 200
            reply = await running.post("/v1/traces", compress(as_json()), JSON, Content_Encoding=coding)
            assert reply.status == 200
            assert await running.latency() == {"predict": 8}

    run(main)


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
    path: str, method: str, content_type: str, status: int, code: int, words: str
) -> None:
    async def main() -> None:
        async with agent() as running:
            reply = await running.post(path, b"", content_type, method)
            assert reply.status == status
            assert reply.content_type == (PROTOBUF if content_type == PROTOBUF else JSON)
            assert reply.error.code == code
            assert words in reply.error.message
            assert (reply.headers.get("Allow") == "POST") == (status == 405)
            assert running.telemetry.total("received") == 0

    run(main)


GZIPPED = gzip.compress(request(1).SerializeToString())


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
def test_undecodable_is_400_and_counted(body: bytes, content_type: str, coding: str, words: str) -> None:
    async def main() -> None:
        async with agent() as running:
            reply = await running.post("/v1/traces", body, content_type, Content_Encoding=coding)
            assert (reply.status, reply.content_type, reply.error.code) == (400, content_type, 3)
            assert words in reply.error.message
            assert running.totals(Signal.TRACES) == (1, 0, 1)
            assert running.rejected("undecodable") == 1

    run(main)


def test_an_unknown_content_encoding_is_415() -> None:
    async def main() -> None:
        async with agent() as running:
            reply = await running.post("/v1/traces", b"x", Content_Encoding="zstd")
            assert reply.status == 415
            assert "gzip" in reply.error.message

    run(main)


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        (bytes(70_000), "identity"),
        (gzip.compress(bytes(70_000)), "gzip"),
        (zlib.compress(bytes(2**26)), "deflate"),
    ],
)
def test_over_the_limit_is_413_also_when_decompressed(body: bytes, coding: str) -> None:
    async def main() -> None:
        async with agent(max_message="64KiB") as running:
            reply = await running.post("/v1/metrics", body, Content_Encoding=coding)
            assert (reply.status, reply.error.code) == (413, 8)
            assert "65536 bytes" in reply.error.message
            assert running.rejected("too_large") == 1
            exact = request(1, name="x" * 60_000).SerializeToString()
            assert (await running.post("/v1/traces", exact, Content_Encoding="identity")).status == 200

    run(main)


def test_what_can_never_fit_the_queue_is_413() -> None:
    async def main() -> None:
        async with agent(queue_bytes=10_000) as running:
            reply = await running.post("/v1/traces", request(500).SerializeToString())
            assert reply.status == 413
            assert "pipeline.queue_size" in reply.error.message
            assert running.rejected("too_large") == 500

    run(main)


@pytest.mark.parametrize("content_type", [PROTOBUF, JSON])
def test_a_full_queue_is_503_with_retry_after(content_type: str) -> None:
    async def main() -> None:
        raw = request(100).SerializeToString()
        async with agent(queue_bytes=len(raw) + 100 * SPAN.itemsize, blocked=True) as running:
            assert (await running.post("/v1/traces", raw)).status == 200
            body = request(9).SerializeToString() if content_type == PROTOBUF else as_json()
            reply = await running.post("/v1/traces", body, content_type)
            assert (reply.status, reply.content_type, reply.error.code) == (503, content_type, 14)
            assert reply.headers["Retry-After"] == "1"
            assert running.rejected("queue_full") == (9 if content_type == PROTOBUF else 1)
            assert len(running.forwarded) == 1

    run(main)


def test_the_sdk_sends_again_what_a_full_queue_refused() -> None:
    def send(url: str) -> None:
        provider = TracerProvider(resource=Resource({"service.name": "fraud"}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{url}/v1/traces")))
        with provider.get_tracer("test").start_as_current_span("late", kind=SpanKind.SERVER):
            pass
        provider.shutdown()

    async def main() -> None:
        raw = request(100).SerializeToString()
        async with agent(queue_bytes=len(raw) + 100 * SPAN.itemsize, blocked=True) as running:
            assert (await running.post("/v1/traces", raw)).status == 200
            sending = asyncio.create_task(asyncio.to_thread(send, running.url))
            await eventually(lambda: running.rejected("queue_full") > 0)
            running.gate.open.set()
            await sending
            assert (await running.latency())["late"] == 1
            assert running.rejected("queue_full") == 1

    run(main)


def test_the_port_that_is_taken_is_named_with_its_setting() -> None:
    async def main() -> None:
        async with agent() as running:
            endpoint = f"127.0.0.1:{running.http.port}"
            otlp = OtlpReceiver(running.pipeline, running.telemetry, config.IdentityAttributes())
            second = HttpReceiver(config.HttpReceiver(endpoint=endpoint), otlp)
            with pytest.raises(config.ConfigError, match=rf"receivers\.http\.endpoint: .*{endpoint}"):
                await second.__aenter__()

    run(main)
