"""OTLP over gRPC: OpenTelemetry's exporters and raw calls against the real server, pipeline and processor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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
from tidegauge.batch import OVERHEAD, Signal
from tidegauge.receivers.grpc_server import GrpcServer
from tidegauge.receivers.otlp import OtlpReceiver
from tidegauge.receivers.outcome import Verdict
from tidegauge.units import Size
from tidegauge.wire.traces import SPAN

TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
METRICS = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
LOGS = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"


@pytest.fixture
def serving(otlp_agent: Any) -> Callable[..., Any]:
    """Starts the receiver before a pipeline that folds latency."""

    def start(max_message: str = "4MiB", **options: Any) -> Any:
        settings = config.GrpcReceiver(endpoint="127.0.0.1:0", max_message_size=Size(max_message))
        return otlp_agent("otlp_grpc", GrpcServer, settings, **options)

    return start


async def call(running: Any, method: str, raw: bytes, **options: Any) -> bytes:
    async with grpc.aio.insecure_channel(running.address) as channel:
        return bytes(await channel.unary_unary(method)(raw, timeout=20, **options))


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_the_sdk_s_spans_become_latency(serving: Any, compression: grpc.Compression) -> None:
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
        async with serving() as running:
            await asyncio.to_thread(send, f"http://{running.address}")
            await running.latency()
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

    asyncio.run(main())


def test_the_sdk_s_metrics_and_logs_are_counted_and_forwarded(serving: Any) -> None:
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
        async with serving() as running:
            await asyncio.to_thread(send, f"http://{running.address}")
            received = running.totals(Signal.METRICS)[0]
            assert received >= 3  # the SDK may add points about itself
            assert running.totals(Signal.METRICS) == (received, received, 0)
            assert running.totals(Signal.LOGS) == (4, 4, 0)
            assert {signal for signal, _ in running.forwarded} == {Signal.METRICS, Signal.LOGS}

    asyncio.run(main())


def test_success_is_an_empty_message_and_an_empty_request_succeeds(serving: Any, trace_request: Any) -> None:
    async def main() -> None:
        async with serving() as running:
            for method in (TRACES, METRICS, LOGS):
                assert await call(running, method, b"") == b""
            assert await call(running, TRACES, trace_request(3)) == b""
            assert running.totals(Signal.TRACES) == (3, 3, 0)
            assert running.forwarded == [(Signal.TRACES, trace_request(3))]

    asyncio.run(main())


@pytest.mark.parametrize("method", [TRACES, METRICS, LOGS])
def test_undecodable_is_refused_for_good_and_counted(serving: Any, method: str) -> None:
    async def main() -> None:
        async with serving() as running:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(running, method, b"\x0a\x7f")
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "a field reaches beyond the end" in (refused.value.details() or "")
            assert running.rejected("undecodable") == 1
            assert running.forwarded == []

    asyncio.run(main())


def test_a_full_queue_refuses_with_retry_info_in_both_trailers_and_never_waits(
    serving: Any, trace_request: Any
) -> None:
    async def main() -> None:
        raw = trace_request(100)
        async with serving(queue_bytes=40_000, blocked=True) as running:
            refused = None
            for _ in range(20):
                try:
                    await call(running, TRACES, raw)
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
            assert (await running.latency())["predict"] == accepted

    asyncio.run(main())


def test_the_sdk_sends_again_what_a_full_queue_refused(serving: Any, trace_request: Any) -> None:
    async def main() -> None:
        raw = trace_request(100)
        async with serving(queue_bytes=len(raw) + 100 * SPAN.itemsize + OVERHEAD, blocked=True) as running:
            await call(running, TRACES, raw)
            await running.refuses_at_first(OTLPSpanExporter(f"http://{running.address}", insecure=True))

    asyncio.run(main())


def test_what_can_never_fit_is_refused_without_retry_info(serving: Any, trace_request: Any) -> None:
    async def main() -> None:
        async with serving(queue_bytes=10_000) as running:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(running, TRACES, trace_request(500))
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "pipeline.queue_size" in (refused.value.details() or "")
            assert "grpc-status-details-bin" not in dict(refused.value.trailing_metadata())
            assert running.rejected("too_large") == 500

    asyncio.run(main())


def test_senders_wait_for_a_forwarder_that_does_not_keep_up(serving: Any, trace_request: Any) -> None:
    raw, asked = trace_request(100), []

    def keeps_up(signal: Signal, nbytes: int) -> bool:
        asked.append((signal, nbytes))
        return len(asked) > 1

    async def main() -> None:
        async with serving() as running:
            pipeline, telemetry, identity = running.pipeline, running.telemetry, config.IdentityAttributes()
            otlp = OtlpReceiver(pipeline, telemetry, identity, keeps_up=keeps_up)
            for verdict in (Verdict.QUEUE_FULL, Verdict.ACCEPTED):
                outcome = await otlp.receive(running.receiver, Signal.TRACES, raw)
                assert outcome.verdict is verdict
            assert asked == [(Signal.TRACES, len(raw))] * 2
            assert running.totals(Signal.TRACES) == (200, 100, 100)

    asyncio.run(main())


def test_what_never_fits_for_its_marks_is_refused_without_retry_info(serving: Any) -> None:
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for _ in range(100):
        attributes = scope.spans.add().attributes
        for key in ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "faas.coldstart"):
            attributes.add(key=key).value.int_value = 1
    raw = request.SerializeToString()

    async def main() -> None:
        async with serving(queue_bytes=len(raw) + 100 * SPAN.itemsize + OVERHEAD + 100) as running:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(running, TRACES, raw)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert running.totals(Signal.TRACES) == (100, 0, 100)

    asyncio.run(main())


def test_many_tiny_spans_are_refused_before_their_columns_are_made(serving: Any) -> None:
    """Two bytes a span on the wire would become 72 in memory."""

    async def main() -> None:
        async with serving(queue_bytes=2**22) as running:
            spans = b"\x12\x00" * 500_000
            scope = b"\x12" + _length(spans) + spans
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(running, TRACES, b"\x0a" + _length(scope) + scope)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert running.rejected("too_large") == 500_000

    asyncio.run(main())


def _length(payload: bytes) -> bytes:
    size, out = len(payload), bytearray()
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    return bytes([*out, size])


def test_a_message_over_the_limit_is_refused_also_when_it_is_compressed(
    serving: Any, trace_request: Any
) -> None:
    async def main() -> None:
        async with serving(max_message="64KiB") as running:
            for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call(running, TRACES, bytes(100_000), compression=compression)
                assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await call(running, TRACES, trace_request(10)) == b""

    asyncio.run(main())


def test_large_requests_are_read_off_the_loop_and_all_counted(serving: Any, trace_request: Any) -> None:
    async def main() -> None:
        raw = trace_request(40_000)
        assert len(raw) > 2**20
        async with serving(queue_bytes=2**26) as running:
            await asyncio.gather(*(call(running, TRACES, raw) for _ in range(5)))
            assert (await running.latency())["predict"] == 200_000
            assert running.totals(Signal.TRACES) == (200_000, 200_000, 0)

    asyncio.run(main())


def test_large_requests_that_find_no_room_are_refused_unread(serving: Any, trace_request: Any) -> None:
    async def main() -> None:
        raw = trace_request(40_000)
        async with serving(queue_bytes=9 * 2**20, blocked=True) as running:
            outcomes = await asyncio.gather(
                *(call(running, TRACES, raw) for _ in range(6)), return_exceptions=True
            )
            codes = [one.code() for one in outcomes if isinstance(one, grpc.aio.AioRpcError)]
            assert codes == [grpc.StatusCode.UNAVAILABLE] * 5
            _, accepted, rejected = running.totals(Signal.TRACES)
            assert accepted == 40_000
            assert rejected == running.rejected("queue_full") >= 5

    asyncio.run(main())


def test_the_port_that_is_taken_is_named_with_its_setting(serving: Any) -> None:
    async def main() -> None:
        async with serving() as running:
            endpoint = running.address
            otlp = OtlpReceiver(running.pipeline, running.telemetry, config.IdentityAttributes())
            second = GrpcServer(config.GrpcReceiver(endpoint=endpoint), otlp)
            with pytest.raises(config.ConfigError, match=rf"receivers\.grpc\.endpoint: .*{endpoint}"):
                await second.__aenter__()

    asyncio.run(main())


def test_further_services_share_the_port(serving: Any, trace_request: Any) -> None:
    async def echo(raw: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return raw

    async def main() -> None:
        method: Any = grpc.unary_unary_rpc_method_handler(echo)
        service = grpc.method_handlers_generic_handler("test.Echo", {"Say": method})
        async with serving() as running:
            otlp = OtlpReceiver(running.pipeline, running.telemetry, config.IdentityAttributes())
            settings = config.GrpcReceiver(endpoint="127.0.0.1:0")
            async with (
                GrpcServer(settings, otlp, [service], grace_s=0.2) as server,
                grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
            ):
                assert await channel.unary_unary("/test.Echo/Say")(b"hello") == b"hello"
                assert await channel.unary_unary(TRACES)(trace_request(2)) == b""
            assert running.totals(Signal.TRACES) == (2, 2, 0)

    asyncio.run(main())


def test_a_receiver_that_has_stopped_no_longer_listens(serving: Any, trace_request: Any) -> None:
    async def main() -> None:
        async with serving() as running:
            await call(running, TRACES, trace_request(1))
        with pytest.raises(grpc.aio.AioRpcError) as gone:
            await call(running, TRACES, trace_request(1))
        assert gone.value.code() is grpc.StatusCode.UNAVAILABLE

    asyncio.run(main())
