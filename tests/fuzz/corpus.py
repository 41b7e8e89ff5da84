"""Requests of the OpenTelemetry SDK's own exporters, to start from."""

from __future__ import annotations

import logging

from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanKind, StatusCode

RESOURCE = Resource({"service.name": "fraud", "service.version": "2", "model.stage": "canary"})


def traces() -> list[bytes]:
    """A request of a framework, one of vLLM's shape and one of Triton's; together, and one by one."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=RESOURCE, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer, triton = provider.get_tracer("app", "1"), provider.get_tracer("triton-server")
    with tracer.start_as_current_span("POST /predict", kind=SpanKind.SERVER) as root:
        span = tracer.start_span("predict", links=[Link(root.get_span_context())])
        span.set_attributes({"model.name": "fraud", "model.version": 3, "tags": ["a", "b"], "ok": True})
        span.set_status(StatusCode.ERROR, "no")
        span.end()
    with tracer.start_as_current_span("llm_request", kind=SpanKind.SERVER) as span:
        span.set_attributes({"gen_ai.latency.time_to_first_token": 0.25, "gen_ai.usage.prompt_tokens": 12})
        span.set_attributes({"queue_time": "12.3ms", "faas.coldstart": False, "gen_ai.request.model": "m"})
    with triton.start_as_current_span("resnet", kind=SpanKind.SERVER) as span:
        span.set_attributes({"triton.model_name": "resnet", "triton.model_version": 1})
        for place, name in enumerate(("QUEUE_START", "COMPUTE_START", "COMPUTE_END")):
            span.add_event(name, {"n": place}, timestamp=place + 1)
    spans = exporter.get_finished_spans()
    return [encode_spans(some).SerializeToString() for some in (spans, *([span] for span in spans))]


def logs() -> list[bytes]:
    """Records of Python's logging and an event."""
    request = encode_logs([])
    resource = request.resource_logs.add()
    for key, value in RESOURCE.attributes.items():
        resource.resource.attributes.add(key=key).value.string_value = str(value)
    records = resource.scope_logs.add().log_records
    for level in (logging.INFO, logging.ERROR):
        record = records.add(time_unix_nano=1, observed_time_unix_nano=2, severity_number=level // 10 * 4 + 1)
        record.severity_text = logging.getLevelName(level)
        record.body.string_value = "scored"
        record.attributes.add(key="model.name").value.string_value = "fraud"
        record.trace_id, record.span_id, record.flags = bytes(range(16)), bytes(range(8)), 1
    event = records.add(event_name="gen_ai.choice")
    event.body.kvlist_value.values.add(key="k").value.array_value.values.add().int_value = -1
    one = ExportLogsServiceRequest()
    one.resource_logs.add().scope_logs.add().log_records.add().CopyFrom(event)
    return [request.SerializeToString(), one.SerializeToString()]


def metrics() -> list[bytes]:
    """A metric of each kind."""
    reader = InMemoryMetricReader()
    exponential = View(instrument_name="e", aggregation=ExponentialBucketHistogramAggregation())
    provider = MeterProvider([reader], RESOURCE, views=[exponential], shutdown_on_exit=False)
    meter = provider.get_meter("app")
    meter.create_counter("c").add(1, {"a": "b"})
    meter.create_gauge("g").set(1.5)
    meter.create_histogram("h").record(3)
    meter.create_histogram("e").record(4.5)
    found = reader.get_metrics_data()
    assert found is not None
    return [encode_metrics(found).SerializeToString()]
