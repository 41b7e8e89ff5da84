"""What a collector's answers mean, told by a real one."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tidegauge.batch import Signal
from tidegauge.config import ConfigError, OtlpExporter
from tidegauge.exporters.channel import Collector
from tidegauge.exporters.outcome import Outcome, Verdict

# OTLP specification, "Failures": the table of codes.
RETRYABLE = {"CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS"}
CODES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]


def export(sink_type: Any, *failures: Any, partial: tuple[int, str] | None = None) -> Outcome:
    """The outcome of the last of as many calls as there are failures, or of one."""

    async def scene() -> Outcome:
        async with sink_type() as sink:
            sink.failures[Signal.TRACES] = list(failures)
            sink.partial = partial
            settings = OtlpExporter(endpoint=f"http://127.0.0.1:{sink.port}")
            async with Collector(settings) as collector:
                for _ in failures or (None,):
                    outcome = await collector.export(Signal.TRACES, b"")
                return outcome

    return asyncio.run(scene())


@pytest.mark.parametrize("code", CODES)
def test_codes(sink_type: Any, failure: Any, code: grpc.StatusCode) -> None:
    outcome = export(sink_type, failure(code))
    assert outcome.verdict is (Verdict.RETRY if code.name in RETRYABLE else Verdict.REJECTED)
    assert outcome.delay_s is None
    assert outcome.message == f"{code.name} as the test asks"


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_retry_info(sink_type: Any, failure: Any, code: grpc.StatusCode) -> None:
    outcome = export(sink_type, failure(code, 2.5))
    assert outcome.verdict is Verdict.RETRY
    assert outcome.delay_s == 2.5


def test_retry_info_does_not_make_bad_data_good(sink_type: Any, failure: Any) -> None:
    assert export(sink_type, failure(grpc.StatusCode.INVALID_ARGUMENT, 1.0)).verdict is Verdict.REJECTED


def test_success(sink_type: Any) -> None:
    assert export(sink_type) == Outcome(Verdict.DELIVERED)


def test_partial_success(sink_type: Any) -> None:
    outcome = export(sink_type, partial=(3, "too old"))
    assert outcome == Outcome(Verdict.DELIVERED, rejected_items=3, message="too old")


def test_partial_success_may_be_a_mere_warning(sink_type: Any) -> None:
    assert export(sink_type, partial=(0, "soon")) == Outcome(Verdict.DELIVERED, message="soon")


def test_headers_and_compression_are_sent(sink_type: Any) -> None:
    async def scene() -> None:
        async with sink_type() as sink:
            settings = OtlpExporter(
                endpoint=f"http://127.0.0.1:{sink.port}/", headers={"X-Tenant": "a b"}, compression="gzip"
            )
            async with Collector(settings) as collector:
                request = ExportTraceServiceRequest()
                request.resource_spans.add().schema_url = "x" * 1000
                await collector.export(Signal.TRACES, request.SerializeToString())
            (call,) = sink.taken
            assert call.metadata["x-tenant"] == "a b"
            assert call.metadata["user-agent"].startswith("tidegauge/")
            assert call.request == request

    asyncio.run(scene())


def test_compressing_calls_fail_like_others(sink_type: Any, failure: Any, closed_port: int) -> None:
    """They are made from threads, by gRPC's other interface."""

    async def scene() -> None:
        async with sink_type() as sink:
            sink.failures[Signal.TRACES] = [
                failure(grpc.StatusCode.RESOURCE_EXHAUSTED, 2.5),
                failure(grpc.StatusCode.INVALID_ARGUMENT),
            ]
            settings = OtlpExporter(endpoint=f"http://127.0.0.1:{sink.port}", compression="gzip", timeout=0.5)  # type: ignore[arg-type]
            async with Collector(settings) as collector:
                outcome = await collector.export(Signal.TRACES, b"")
                assert (outcome.verdict, outcome.delay_s) == (Verdict.RETRY, 2.5)
                assert (await collector.export(Signal.TRACES, b"")).verdict is Verdict.REJECTED
                sink.partial = (3, "too old")
                assert (await collector.export(Signal.TRACES, b"")).rejected_items == 3
                sink.gate.clear()
                outcome = await collector.export(Signal.TRACES, b"")
                assert outcome.message.startswith("DEADLINE_EXCEEDED")
        settings = OtlpExporter(endpoint=f"http://127.0.0.1:{closed_port}", compression="gzip")
        async with Collector(settings) as collector:
            assert (await collector.export(Signal.TRACES, b"")).message.startswith("UNAVAILABLE")

    asyncio.run(scene())


def test_leaving_ends_a_compressing_call_that_hangs(sink_type: Any) -> None:
    async def scene() -> None:
        async with sink_type() as sink:
            sink.gate.clear()
            settings = OtlpExporter(
                endpoint=f"http://127.0.0.1:{sink.port}", compression="gzip", timeout=60.0
            )  # type: ignore[arg-type]
            async with Collector(settings) as collector:
                call = asyncio.create_task(collector.export(Signal.TRACES, b""))
                await sink.until(lambda: bool(sink.calls))
            assert (await call).message.startswith("CANCELLED")

    asyncio.run(scene())


def test_a_collector_that_hangs_times_out(sink_type: Any) -> None:
    async def scene() -> None:
        async with sink_type() as sink:
            sink.gate.clear()
            settings = OtlpExporter(endpoint=f"http://127.0.0.1:{sink.port}", timeout=0.2)  # type: ignore[arg-type]
            async with Collector(settings) as collector:
                outcome = await collector.export(Signal.LOGS, b"")
            assert outcome.verdict is Verdict.RETRY
            assert outcome.message.startswith("DEADLINE_EXCEEDED")

    asyncio.run(scene())


def test_a_change_is_told_and_an_attempt_is_not(
    sink_type: Any, failure: Any, closed_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tidegauge")
    bad = failure(grpc.StatusCode.UNIMPLEMENTED)

    async def scene() -> None:
        async with Collector(OtlpExporter(endpoint=f"http://127.0.0.1:{closed_port}")) as collector:
            for signal in (Signal.TRACES, Signal.METRICS, Signal.LOGS) * 2:
                assert (await collector.export(signal, b"")).verdict is Verdict.RETRY
            sink = sink_type()
            sink.port = closed_port
            async with sink:
                sink.failures[Signal.LOGS] = [bad] * 3
                async with asyncio.timeout(10):
                    # gRPC reconnects when it will, and tells no one.
                    while (await collector.export(Signal.TRACES, b"")).verdict is Verdict.RETRY:
                        await asyncio.sleep(0.05)
                for signal in (Signal.LOGS, Signal.TRACES) * 3:
                    await collector.export(signal, b"")

    asyncio.run(scene())
    told = [record.getMessage().split(": ")[0].split(" ", 2)[2] for record in caplog.records]
    assert told == ["takes nothing", "answers again", "refuses logs"]


def test_tls(tls: Any) -> None:
    async def scene() -> None:
        server = grpc.aio.server()
        credentials = grpc.ssl_server_credentials([(tls.key.read_bytes(), tls.certificate.read_bytes())])
        port = server.add_secure_port("localhost:0", credentials)
        await server.start()
        trusting = OtlpExporter(endpoint=f"https://localhost:{port}", certificate=str(tls.certificate))
        doubting = OtlpExporter(endpoint=f"https://localhost:{port}")
        async with Collector(trusting) as collector:
            # There is no such service, but the answer came through TLS.
            assert (await collector.export(Signal.TRACES, b"")).message.startswith("UNIMPLEMENTED")
        async with Collector(doubting) as collector:
            assert (await collector.export(Signal.TRACES, b"")).message.startswith("UNAVAILABLE")
        await server.stop(0)

    asyncio.run(scene())


def test_a_ca_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    settings = OtlpExporter(endpoint="https://collector:4317", certificate=str(tmp_path / "no.pem"))
    with pytest.raises(ConfigError, match=r"exporters\.otlp\.certificate: .*no\.pem cannot be read"):
        Collector(settings)


def test_a_collector_needs_an_endpoint() -> None:
    with pytest.raises(ValueError, match="endpoint"):
        Collector(OtlpExporter())
