"""The whole agent as a process, fed by real clients: the OpenTelemetry SDK and pyarrow.flight."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
import time

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pytest
from opentelemetry._logs import SeverityNumber
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcLogs
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetrics
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpans
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode

RESOURCE = Resource.create({"service.name": "scorer", "deployment.environment.name": "canary"})


def spans(exporter, number, model="fraud"):
    """Send that many 50 ms server spans, every tenth an error."""
    provider = TracerProvider(resource=RESOURCE)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    end = time.time_ns()
    for index in range(number):
        attributes = {"model.name": model, "model.version": "2.1"}
        span = tracer.start_span(
            "predict", kind=SpanKind.SERVER, attributes=attributes, start_time=end - 50_000_000
        )
        if index % 10 == 0:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end)
    provider.force_flush()
    provider.shutdown()


def put(agent, batches, path=("records", "fraud", "2.1")):
    """Send batches as a stock Flight client; the answers."""
    client = fl.connect(f"grpc://127.0.0.1:{agent.grpc}")
    writer, reader = client.do_put(fl.FlightDescriptor.for_path(*path), batches[0].schema)
    answers = []
    for batch in batches:
        writer.write_batch(batch)
        answer = reader.read()
        if answer is None:
            break  # refused: closing tells why
        answers.append(json.loads(answer.to_pybytes()))
    writer.done_writing()
    writer.close()
    client.close()
    return answers


def rows(n, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    return pa.RecordBatch.from_pydict(
        {
            "age": rng.normal(shift, 1, n),
            "country": pa.array(rng.choice(["de", "fr"], n)).dictionary_encode(),
            "score": rng.random(n),
        }
    )


def test_spans_over_grpc_and_http_become_latency(start_agent):
    agent = start_agent()
    spans(GrpcSpans(f"http://127.0.0.1:{agent.grpc}", insecure=True), 1_000)
    spans(HttpSpans(f"http://127.0.0.1:{agent.http}/v1/traces"), 500)
    agent.await_total(1_500, "tidegauge_folded_total", signal="traces")
    agent.await_total(1_500, "model_inference_latency_seconds_count")
    who = {"model": "fraud", "version": "2.1", "stage": "canary", "operation": "predict"}
    assert agent.total("model_inference_latency_seconds_count", status="error", **who) == 150
    assert agent.total("model_inference_latency_seconds_count", status="ok", **who) == 1_350
    assert agent.total("model_inference_latency_seconds_sum", **who) == pytest.approx(75)
    below = agent.samples("model_inference_latency_seconds_bucket", status="ok", **who)
    for labels, count in below.items():
        assert count == (1_350 if float(dict(labels)["le"]) >= 0.05 else 0)
    assert agent.stop() == 0


def test_metrics_and_logs_are_counted(start_agent):
    agent = start_agent()
    endpoint = f"http://127.0.0.1:{agent.grpc}"
    reader = PeriodicExportingMetricReader(GrpcMetrics(endpoint, insecure=True))
    meters = MeterProvider(metric_readers=[reader], resource=RESOURCE)
    counter = meters.get_meter("test").create_counter("kpi")
    for region in ("eu", "us", "apac"):
        counter.add(1, {"region": region})
    meters.shutdown()
    logs = LoggerProvider(resource=RESOURCE)
    logs.add_log_record_processor(BatchLogRecordProcessor(GrpcLogs(endpoint, insecure=True)))
    for _ in range(7):
        logs.get_logger("test").emit(body="hello", severity_number=SeverityNumber.INFO)
    logs.shutdown()
    agent.await_total(3, "tidegauge_folded_total", signal="metrics")
    agent.await_total(7, "tidegauge_folded_total", signal="logs")


def test_records_become_drift(start_agent):
    agent = start_agent(drift={"reference_rows": 2_000})
    answers = put(agent, [rows(1_000, seed) for seed in range(4)])
    assert answers == [{"accepted_rows": 1_000, "rejected_rows": 0, "reason": ""}] * 4
    agent.await_total(2_000, "feature_window_rows", feature="age")
    assert agent.total("feature_drifted") == 0
    put(agent, [rows(4_000, 9, shift=2.0)])
    agent.await_total(6_000, "feature_window_rows", feature="age")
    assert agent.total("feature_drifted", feature="age") == 1
    assert agent.total("feature_drifted", feature="country") == 0
    assert agent.total("feature_drift_score", feature="age") > 0.5
    assert agent.total("prediction_mean", output="score") == pytest.approx(0.5, abs=0.05)
    assert agent.total("reference_rows", source="first_rows") == 2_000


def test_the_pages_tell_the_truth(start_agent):
    agent = start_agent()
    assert agent.page("/healthz") == (200, "ok\n")
    assert agent.page("/readyz") == (200, "ok\n")
    put(agent, [rows(10)])
    agent.await_total(10, "reference_rows")
    names = {metric["name"] for metric in json.loads(agent.page("/api/v1/snapshot")[1])["metrics"]}
    assert {"tidegauge.received", "reference.rows", "tidegauge.queue.limit"} <= names
    status, page = agent.page("/")
    assert status == 200
    assert "<html" in page
    assert agent.page("/nowhere")[0] == 404


def test_what_is_refused_is_told_counted_and_harms_nobody(start_agent):
    agent = start_agent()
    channel = grpc.insecure_channel(f"127.0.0.1:{agent.grpc}")
    export = channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
    with pytest.raises(grpc.RpcError) as caught:
        export(b"\xff\xff\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    channel.close()
    with pytest.raises(pa.ArrowInvalid, match="the descriptor must be the path"):
        put(agent, [rows(5)], path=("elsewhere",))
    spans(GrpcSpans(f"http://127.0.0.1:{agent.grpc}", insecure=True), 10)
    agent.await_total(10, "tidegauge_folded_total")
    assert agent.total("tidegauge_rejected_total") == 2
    assert agent.total("tidegauge_received_total") == agent.total("tidegauge_accepted_total") + 2


def test_overload_is_refused_and_every_row_accounted_for(start_agent):
    """64 MB of rows against a queue of 4 MB: memory stays, the sender is answered, nothing is lost unseen."""
    agent = start_agent(pipeline={"queue_size": "4MiB"}, drift={"reference_rows": 1_000})
    columns = {f"f{number}": np.random.default_rng(number).normal(size=4_096) for number in range(20)}
    batch = pa.RecordBatch.from_pydict(columns)
    put(agent, [batch])
    agent.await_total(4_096, "tidegauge_folded_total")
    before = anonymous_bytes(agent)
    client = fl.connect(f"grpc://127.0.0.1:{agent.grpc}")
    writer, _ = client.do_put(fl.FlightDescriptor.for_path("records", "fraud", "2.1"), batch.schema)
    for _ in range(100):
        writer.write_batch(batch)  # and reads no answer
    writer.done_writing()
    writer.close()
    client.close()
    sent = 101 * 4_096
    agent.await_total(sent, "tidegauge_received_total")
    agent.await_total(0, "tidegauge_pending")
    accepted, rejected = agent.total("tidegauge_accepted_total"), agent.total("tidegauge_rejected_total")
    assert accepted + rejected == sent
    assert agent.total("tidegauge_folded_total") + agent.total("tidegauge_dropped_total") == accepted
    # What gRPC and the C library keep for the next messages included.
    assert anonymous_bytes(agent) - before < 150e6


def anonymous_bytes(agent):
    with open(f"/proc/{agent.process.pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def test_sigterm_drains_what_was_accepted(start_agent, tmp_path):
    state = tmp_path / "state"
    agent = start_agent(state_dir=str(state), drift={"reference_rows": 500})
    put(agent, [rows(500)])
    began = time.monotonic()
    assert agent.stop() == 0
    assert time.monotonic() - began < 10
    # The reference was made of rows accepted just before the signal, and survives.
    again = start_agent(state_dir=str(state), drift={"reference_rows": 500})
    assert again.samples("reference_rows", source="first_rows")
    put(again, [rows(500, 1)])
    again.await_total(500, "feature_window_rows", feature="age")


def test_an_open_stream_does_not_hold_up_the_end(start_agent):
    agent = start_agent()
    client = fl.connect(f"grpc://127.0.0.1:{agent.grpc}")
    writer, _ = client.do_put(fl.FlightDescriptor.for_path("records", "m", "1"), rows(1).schema)
    writer.write_batch(rows(5))
    agent.await_total(5, "tidegauge_folded_total")
    began = time.monotonic()
    assert agent.stop() == 0
    assert time.monotonic() - began < 10
    with pytest.raises(pa.ArrowException):
        writer.close()


def test_as_many_files_may_be_open_as_the_system_allows(start_agent):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))
    try:
        agent = start_agent()
        assert resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_port_that_is_taken_is_told_by_its_setting(start_agent):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        for environ, path in (
            ({"receivers": {"grpc": {"endpoint": where}}}, "receivers.grpc.endpoint"),
            ({"receivers": {"http": {"endpoint": where}}}, "receivers.http.endpoint"),
            ({"exporters": {"prometheus": {"endpoint": where}}}, "exporters.prometheus.endpoint"),
        ):
            with pytest.raises(AssertionError, match=f"error: {path}: cannot listen on {where}"):
                start_agent(**environ)


def test_it_runs_without_a_configuration():
    """Default ports may be taken on the machine: then the error names one, and nothing else is wrong."""
    process = subprocess.Popen([sys.executable, "-m", "tidegauge", "run"], stderr=subprocess.PIPE, text=True)
    told = ""
    for line in process.stderr:
        told += line
        if "is ready" in line:
            process.terminate()
    status = process.wait(20)
    process.stderr.close()
    assert (status == 0 and "127.0.0.1:4317" in told) or "cannot listen on 127.0.0.1:" in told, told
