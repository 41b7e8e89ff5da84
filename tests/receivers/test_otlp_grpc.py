"""OTLP over gRPC: OpenTelemetry's exporters and raw calls against the real server, pipeline and processor."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry._logs import LogRecord
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode

from tidegauge import config
from tidegauge.batch import Batch, Signal
from tidegauge.metric import ExponentialHistogram, Metric
from tidegauge.pipeline import Pipeline
from tidegauge.processors.latency import Latency
from tidegauge.receivers.grpc_server import GrpcServer
from tidegauge.receivers.otlp import OtlpReceiver
from tidegauge.telemetry import Telemetry
from tidegauge.units import Size
from tidegauge.wire.traces import SPAN

TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
METRICS = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
LOGS = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"


async def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(4000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen within 20 s")


class Gate:
    """A processor that holds the worker until it is opened."""

    def __init__(self) -> None:
        self.open = threading.Event()

    def update(self, batch: Batch) -> Mapping[str, int]:
        self.open.wait(30)
        return {}

    def collect(self, now_ns: int) -> tuple[Metric, ...]:
        return ()


class Agent:
    """What a test needs of a running receiver."""

    def __init__(self, server: GrpcServer, pipeline: Pipeline, telemetry: Telemetry, gate: Gate) -> None:
        self.server, self.pipeline, self.telemetry, self.gate = server, pipeline, telemetry, gate
        self.forwarded: list[tuple[Signal, bytes]] = []

    def totals(self, signal: Signal) -> tuple[int, int, int]:
        """Items received, accepted and rejected, which must add up."""
        labels = {"receiver": "otlp_grpc", "signal": str(signal)}
        received, accepted, rejected = (
            self.telemetry.total(name, **labels) for name in ("received", "accepted", "rejected")
        )
        assert received == accepted + rejected
        return received, accepted, rejected

    def rejected(self, reason: str) -> int:
        return self.telemetry.total("rejected", receiver="otlp_grpc", reason=reason)

    async def folded(self) -> dict[str, ExponentialHistogram]:
        """The latency histograms, by operation, when all is folded."""
        await eventually(lambda: self.pipeline.queue_bytes == 0)
        (latency, *_) = await self.pipeline.collect(0)
        return {
            dict(point.attributes)["operation"]: point
            for point in latency.points
            if isinstance(point, ExponentialHistogram)
        }

    async def call(self, method: str, raw: bytes, **options: Any) -> bytes:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.server.port}") as channel:
            return bytes(await channel.unary_unary(method)(raw, timeout=20, **options))


@asynccontextmanager
async def agent(
    queue_bytes: int = 2**24, max_message: str = "4MiB", *, blocked: bool = False
) -> AsyncIterator[Agent]:
    telemetry, gate = Telemetry(), Gate()
    if not blocked:
        gate.open.set()
    pipeline = Pipeline([Latency(config.Latency()), gate], telemetry, queue_bytes=queue_bytes)
    settings = config.GrpcReceiver(endpoint="127.0.0.1:0", max_message_size=Size(max_message))
    forwarded: list[tuple[Signal, bytes]] = []
    otlp = OtlpReceiver(
        pipeline,
        telemetry,
        config.IdentityAttributes(),
        lambda signal, raw, items: forwarded.append((signal, raw)),
    )
    async with pipeline, GrpcServer(settings, otlp, grace_s=0.2) as server:
        running = Agent(server, pipeline, telemetry, gate)
        running.forwarded = forwarded
        try:
            yield running
        finally:
            gate.open.set()


def run(test: Callable[[], Any]) -> None:
    asyncio.run(test())


def request(spans: int, name: str = "predict") -> bytes:
    message = ExportTraceServiceRequest()
    scope = message.resource_spans.add().scope_spans.add()
    for number in range(spans):
        span = scope.spans.add(name=name, span_id=number.to_bytes(8, "big"), trace_id=bytes(16))
        span.start_time_unix_nano, span.end_time_unix_nano = 10**18, 10**18 + 10**6
    return message.SerializeToString()


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_the_sdk_s_spans_become_latency(compression: grpc.Compression) -> None:
    def send(endpoint: str) -> None:
        exporter = OTLPSpanExporter(endpoint, insecure=True, compression=compression)
        provider = TracerProvider(resource=Resource({"service.name": "fraud", "service.version": "2.1"}))
        provider.add_span_processor(BatchSpanProcessor(exporter))
        tracer = provider.get_tracer("test")
        for number in range(600):
            with tracer.start_as_current_span("POST /predict", kind=SpanKind.SERVER) as span:
                with tracer.start_as_current_span("POST /predict http send", kind=SpanKind.INTERNAL):
                    pass
                with tracer.start_as_current_span("forward", attributes={"model.name": "churn"}):
                    pass
                if number % 3 == 0:
                    span.set_status(StatusCode.ERROR)
        provider.shutdown()

    async def main() -> None:
        async with agent() as running:
            await asyncio.to_thread(send, f"http://127.0.0.1:{running.server.port}")
            await running.folded()
            latency, _, *_ = await running.pipeline.collect(0)
            counts = {point.attributes: point.count for point in latency.points}  # type: ignore[union-attr]
            fraud = (("model", "fraud"), ("version", "2.1"), ("operation", "POST /predict"))
            assert counts == {
                (*fraud, ("status", "ok")): 400,
                (*fraud, ("status", "error")): 200,
                (("model", "churn"), ("version", "2.1"), ("operation", "forward"), ("status", "ok")): 600,
            }
            assert running.totals(Signal.TRACES) == (1800, 1800, 0)
            again = [ExportTraceServiceRequest.FromString(raw) for _, raw in running.forwarded]
            assert sum(len(one.resource_spans[0].scope_spans[0].spans) for one in again) == 1800

    run(main)


def test_the_sdk_s_metrics_and_logs_are_counted_and_forwarded() -> None:
    def send(endpoint: str) -> None:
        reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint, insecure=True))
        meters = MeterProvider(metric_readers=[reader])
        counter = meters.get_meter("test").create_counter("requests")
        for route in ("a", "b", "c"):
            counter.add(1, {"route": route})
        meters.shutdown()
        loggers = LoggerProvider()
        loggers.add_log_record_processor(SimpleLogRecordProcessor(OTLPLogExporter(endpoint, insecure=True)))
        for number in range(4):
            loggers.get_logger("test").emit(LogRecord(timestamp=1, body=f"line {number}"))
        loggers.shutdown()

    async def main() -> None:
        async with agent() as running:
            await asyncio.to_thread(send, f"http://127.0.0.1:{running.server.port}")
            received = running.totals(Signal.METRICS)[0]
            assert received >= 3  # the SDK may add points about itself
            assert running.totals(Signal.METRICS) == (received, received, 0)
            assert running.totals(Signal.LOGS) == (4, 4, 0)
            assert {signal for signal, _ in running.forwarded} == {Signal.METRICS, Signal.LOGS}

    run(main)


def test_success_is_an_empty_message_and_an_empty_request_succeeds() -> None:
    async def main() -> None:
        async with agent() as running:
            for method in (TRACES, METRICS, LOGS):
                assert await running.call(method, b"") == b""
            assert await running.call(TRACES, request(3)) == b""
            assert running.totals(Signal.TRACES) == (3, 3, 0)
            assert running.forwarded == [(Signal.TRACES, request(3))]

    run(main)


@pytest.mark.parametrize("method", [TRACES, METRICS, LOGS])
def test_undecodable_is_refused_for_good_and_counted(method: str) -> None:
    async def main() -> None:
        async with agent() as running:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await running.call(method, b"\x0a\x7f")
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "a field reaches beyond the end" in (refused.value.details() or "")
            assert running.rejected("undecodable") == 1
            assert running.forwarded == []

    run(main)


def test_a_full_queue_refuses_with_retry_info_in_both_trailers_and_never_waits() -> None:
    async def main() -> None:
        raw = request(100)
        async with agent(queue_bytes=40_000, blocked=True) as running:
            refused = None
            for _ in range(20):
                try:
                    await running.call(TRACES, raw)
                except grpc.aio.AioRpcError as error:
                    refused = error
                    break
            assert refused is not None
            assert refused.code() is grpc.StatusCode.UNAVAILABLE
            trailers: dict[str, Any] = dict(refused.trailing_metadata())
            status = Status.FromString(trailers["grpc-status-details-bin"])
            retry = RetryInfo()
            assert status.code == grpc.StatusCode.UNAVAILABLE.value[0]
            assert status.details[0].Unpack(retry)
            assert retry.retry_delay.ToTimedelta().total_seconds() == 1
            assert RetryInfo.FromString(trailers["google.rpc.retryinfo-bin"]) == retry
            received, accepted, rejected = running.totals(Signal.TRACES)
            assert (received - accepted, rejected, running.rejected("queue_full")) == (100, 100, 100)
            assert running.pipeline.queue_bytes <= 40_000
            assert len(running.forwarded) == accepted // 100
            running.gate.open.set()
            assert (await running.folded())["predict"].count == accepted

    run(main)


def test_the_sdk_sends_again_what_a_full_queue_refused() -> None:
    def send(endpoint: str) -> None:
        provider = TracerProvider(resource=Resource({"service.name": "fraud"}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint, insecure=True)))
        with provider.get_tracer("test").start_as_current_span("late", kind=SpanKind.SERVER):
            pass
        provider.shutdown()

    async def main() -> None:
        raw = request(100)
        async with agent(queue_bytes=len(raw) + 100 * SPAN.itemsize, blocked=True) as running:
            await running.call(TRACES, raw)
            sending = asyncio.create_task(asyncio.to_thread(send, f"http://127.0.0.1:{running.server.port}"))
            await eventually(lambda: running.rejected("queue_full") > 0)
            running.gate.open.set()
            await sending
            assert (await running.folded())["late"].count == 1
            assert running.rejected("queue_full") == 1

    run(main)


def test_what_can_never_fit_is_refused_without_retry_info() -> None:
    async def main() -> None:
        async with agent(queue_bytes=10_000) as running:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await running.call(TRACES, request(500))
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "pipeline.queue_size" in (refused.value.details() or "")
            assert "grpc-status-details-bin" not in dict(refused.value.trailing_metadata())
            assert running.rejected("too_large") == 500

    run(main)


def test_many_tiny_spans_are_refused_before_their_columns_are_made() -> None:
    """Two bytes a span on the wire would become 72 in memory."""

    async def main() -> None:
        async with agent(queue_bytes=2**22) as running:
            spans = b"\x12\x00" * 500_000
            scope = b"\x12" + _length(spans) + spans
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await running.call(TRACES, b"\x0a" + _length(scope) + scope)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert running.rejected("too_large") == 500_000

    run(main)


def _length(payload: bytes) -> bytes:
    size, out = len(payload), bytearray()
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    return bytes([*out, size])


def test_a_message_over_the_limit_is_refused_also_when_it_is_compressed() -> None:
    async def main() -> None:
        async with agent(max_message="64KiB") as running:
            for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await running.call(TRACES, bytes(100_000), compression=compression)
                assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await running.call(TRACES, request(10)) == b""

    run(main)


def test_large_requests_are_read_off_the_loop_and_all_counted() -> None:
    async def main() -> None:
        raw = request(40_000)
        assert len(raw) > 2**20
        async with agent(queue_bytes=2**26) as running:
            await asyncio.gather(*(running.call(TRACES, raw) for _ in range(5)))
            assert (await running.folded())["predict"].count == 200_000
            assert running.totals(Signal.TRACES) == (200_000, 200_000, 0)

    run(main)


def test_large_requests_that_find_no_room_are_refused_unread() -> None:
    async def main() -> None:
        raw = request(40_000)
        async with agent(queue_bytes=5 * 2**20, blocked=True) as running:
            outcomes = await asyncio.gather(
                *(running.call(TRACES, raw) for _ in range(6)), return_exceptions=True
            )
            codes = [one.code() for one in outcomes if isinstance(one, grpc.aio.AioRpcError)]
            assert codes == [grpc.StatusCode.UNAVAILABLE] * 5
            _, accepted, rejected = running.totals(Signal.TRACES)
            assert accepted == 40_000
            assert rejected == running.rejected("queue_full") >= 5

    run(main)


def test_the_port_that_is_taken_is_named_with_its_setting() -> None:
    async def main() -> None:
        async with agent() as running:
            endpoint = f"127.0.0.1:{running.server.port}"
            otlp = OtlpReceiver(running.pipeline, running.telemetry, config.IdentityAttributes())
            second = GrpcServer(config.GrpcReceiver(endpoint=endpoint), otlp)
            with pytest.raises(config.ConfigError, match=rf"receivers\.grpc\.endpoint: .*{endpoint}"):
                await second.__aenter__()

    run(main)


def test_further_services_share_the_port() -> None:
    async def echo(raw: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return raw

    async def main() -> None:
        method: Any = grpc.unary_unary_rpc_method_handler(echo)
        service = grpc.method_handlers_generic_handler("test.Echo", {"Say": method})
        async with agent() as running:
            otlp = OtlpReceiver(running.pipeline, running.telemetry, config.IdentityAttributes())
            settings = config.GrpcReceiver(endpoint="127.0.0.1:0")
            async with (
                GrpcServer(settings, otlp, [service], grace_s=0.2) as server,
                grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
            ):
                assert await channel.unary_unary("/test.Echo/Say")(b"hello") == b"hello"
                assert await channel.unary_unary(TRACES)(request(2)) == b""
            assert running.totals(Signal.TRACES) == (2, 2, 0)

    run(main)


def test_a_receiver_that_has_stopped_no_longer_listens() -> None:
    async def main() -> None:
        async with agent() as running:
            await running.call(TRACES, request(1))
        with pytest.raises(grpc.aio.AioRpcError) as gone:
            await running.call(TRACES, request(1))
        assert gone.value.code() is grpc.StatusCode.UNAVAILABLE

    run(main)
