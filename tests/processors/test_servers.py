"""What each model server writes for one request, in its exact shape, and what is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tidegauge import config
from tidegauge.batch import Spans
from tidegauge.metric import ExponentialHistogram, Number
from tidegauge.processors.latency import Latency
from tidegauge.processors.timings import Timings
from tidegauge.wire.attributes import Keys
from tidegauge.wire.counts import count_records
from tidegauge.wire.traces import scan

KEYS = Keys.of(config.IdentityAttributes(), config.Timings())
INTERNAL, SERVER, CLIENT = 1, 2, 3
T = 1_790_000_000 * 10**9
MS = 10**6
TRACE = bytes(range(16))

Value = str | bool | int | float


def attributes(pairs: Mapping[str, Value]) -> list[KeyValue]:
    kinds = {str: "string_value", bool: "bool_value", int: "int_value", float: "double_value"}
    return [
        KeyValue(key=key, value=AnyValue(**{kinds[type(value)]: value}))  # type: ignore[arg-type]
        for key, value in pairs.items()
    ]


def span(
    name: str,
    kind: int,
    number: int,
    parent: int = 0,
    pairs: Mapping[str, Value] | None = None,
    *,
    ms: tuple[float, float] = (0, 10),
    events: Mapping[str, float] | None = None,
) -> Span:
    """A span with id `number`; its times and its events' are milliseconds after T."""
    made = Span(
        trace_id=TRACE,
        span_id=number.to_bytes(8, "big"),
        parent_span_id=parent.to_bytes(8, "big") if parent else b"",
        name=name,
        kind=kind,  # type: ignore[arg-type]
        start_time_unix_nano=T + int(ms[0] * MS),
        end_time_unix_nano=T + int(ms[1] * MS),
        attributes=attributes(pairs or {}),
    )
    for event, at in (events or {}).items():
        made.events.add(name=event, time_unix_nano=T + int(at * MS))
    return made


def request(resource: Mapping[str, Value], scope: str, *spans: Span) -> Spans:
    made = ExportTraceServiceRequest()
    group = made.resource_spans.add()
    group.resource.attributes.extend(attributes(resource))
    scoped = group.scope_spans.add(spans=spans)
    scoped.scope.name = scope
    raw = made.SerializeToString()
    return Spans("otlp_grpc", raw, *scan(raw, count_records(raw), KEYS))


def latencies(*batches: Spans) -> dict[tuple[str, ...], int]:
    """Requests by the values of their labels."""
    latency = Latency(config.Latency())
    assert latency.update(*batches) == {}
    metric, _ = latency.collect(0)
    return {
        tuple(value for _, value in point.attributes): point.count
        for point in metric.points
        if isinstance(point, ExponentialHistogram)
    }


def timings(*batches: Spans) -> dict[tuple[str, ...], Any]:
    """One value by metric and labels' values: `pytest.approx`, for sums of one observation are exact."""
    processor = Timings(config.Latency())
    for batch in batches:
        assert processor.update(batch) == {}
    found: dict[tuple[str, ...], Any] = {}
    for metric in processor.collect(0):
        for point in metric.points:
            key = (metric.name.removeprefix("model.inference."), *(value for _, value in point.attributes))
            if isinstance(point, ExponentialHistogram):
                assert point.count == 1
                found[key] = pytest.approx(point.sum)
            elif isinstance(point, Number) and (point.value or key[0] == "cold_starts"):
                found[key] = point.value
    return found


TRITON = {"service.name": "triton-inference-server"}


def triton_model(model: str, number: int, parent: int, at: float, **more: Value) -> Span:
    return span(
        model,
        SERVER,
        number,
        parent,
        {"triton.model_name": model, "triton.model_version": 3, "triton.trace_id": number} | more,
        ms=(at, at + 8),
        events={"REQUEST_START": at, "QUEUE_START": at + 0.5, "REQUEST_END": at + 8},
    )


def triton_compute(number: int, parent: int, at: float) -> Span:
    return span(
        "compute",
        SERVER,
        number,
        parent,
        ms=(at, at + 6),
        events={
            "COMPUTE_START": at,
            "COMPUTE_INPUT_END": at + 1,
            "COMPUTE_OUTPUT_START": at + 5,
            "COMPUTE_END": at + 5.75,
        },
    )


def triton_root() -> Span:
    events = {"HTTP_RECV_START": 0, "HTTP_RECV_END": 1, "HTTP_SEND_START": 9, "HTTP_SEND_END": 10}
    return span("InferRequest", SERVER, 1, ms=(0, 10), events=events)


TRITON_PHASES = {
    ("phase.duration", "resnet", "3", "queue"): 0.0015,
    ("phase.duration", "resnet", "3", "compute_input"): 0.001,
    ("phase.duration", "resnet", "3", "compute_infer"): 0.004,
    ("phase.duration", "resnet", "3", "compute_output"): 0.00075,
}


def test_triton_counts_the_model_span_and_joins_its_compute_child() -> None:
    spans = triton_root(), triton_model("resnet", 2, 1, 0.5), triton_compute(3, 2, 2.5)
    whole = request(TRITON, "triton-server", *spans)
    apart = [request(TRITON, "triton-server", one) for one in spans]
    assert latencies(whole) == latencies(*apart) == {("resnet", "3", "resnet", "ok"): 1}
    for batches in ([whole], apart, apart[::-1]):
        assert timings(*batches) == TRITON_PHASES


def test_triton_s_ensemble_and_each_of_its_models_count_once() -> None:
    ensemble = request(
        TRITON,
        "triton-server",
        triton_compute(5, 3, 2.5),
        triton_model("resnet", 3, 2, 0.5),
        triton_model("softmax", 4, 2, 4.0),
        triton_compute(6, 4, 6.5),
        triton_model("pipeline", 2, 1, 0.25),
        triton_root(),
    )
    assert latencies(ensemble) == {
        ("resnet", "3", "resnet", "ok"): 1,
        ("softmax", "3", "softmax", "ok"): 1,
        ("pipeline", "3", "pipeline", "ok"): 1,
    }
    softmax = {(name, "softmax", *rest): value for (name, _, *rest), value in TRITON_PHASES.items()}
    softmax["phase.duration", "softmax", "3", "queue"] = 0.002
    assert timings(ensemble) == TRITON_PHASES | softmax


def test_triton_under_a_propagated_context_counts_once_too() -> None:
    root = triton_root()
    root.parent_span_id = bytes(7) + b"\x63"
    spans = root, triton_model("resnet", 2, 1, 0.5), triton_compute(3, 2, 2.5)
    assert latencies(request(TRITON, "triton-server", *spans)) == {("resnet", "3", "resnet", "ok"): 1}


VLLM = {
    "gen_ai.latency.time_to_first_token": 0.125,
    "gen_ai.latency.e2e": 1.5,
    "gen_ai.latency.time_in_queue": 0.0625,
    "gen_ai.latency.time_in_model_prefill": 0.05,
    "gen_ai.latency.time_in_model_decode": 1.25,
    "gen_ai.latency.time_in_model_inference": 1.3,
    "gen_ai.usage.prompt_tokens": 17,
    "gen_ai.usage.completion_tokens": 11,
    "gen_ai.request.id": "cmpl-0",
    "gen_ai.request.max_tokens": 16,
    "gen_ai.request.n": 1,
}


def test_vllm_s_request_goes_under_its_service_name() -> None:
    llm = span("llm_request", SERVER, 2, 1, VLLM, ms=(0, 1500))
    resource = {"service.name": "llama-3", "vllm.process_id": 7, "vllm.process_kind": "api_server"}
    batch = request(resource, "vllm.llm_engine", llm)
    assert latencies(batch) == {("llama-3", "llm_request", "ok"): 1}
    assert timings(batch) == {
        ("time_to_first_token", "llama-3"): 0.125,
        ("time_per_output_token", "llama-3"): 0.125,  # decode / (11 - 1)
        ("phase.duration", "llama-3", "queue"): 0.0625,
        ("phase.duration", "llama-3", "prefill"): 0.05,
        ("phase.duration", "llama-3", "decode"): 1.25,
        ("phase.duration", "llama-3", "inference"): 1.3,
        ("tokens", "llama-3", "input"): 17.0,
        ("tokens", "llama-3", "output"): 11.0,
    }


def test_tgi_tells_its_durations_as_text_on_an_inner_span() -> None:
    batch = request(
        {"service.name": "text-generation-inference.router"},
        "opentelemetry-otlp",
        span("async_stream", INTERNAL, 3, 2, {"busy_ns": 7, "idle_ns": 8}),
        span(
            "generate_stream",
            INTERNAL,
            2,
            1,
            {
                "parameters": "GenerateParameters { best_of: None, temperature: None }",
                "total_time": "1.25s",
                "validation_time": "455.25µs",
                "queue_time": "870ns",
                "inference_time": "1.2s",
                "time_per_token": "12.5ms",
                "seed": "None",
            },
        ),
        span("HTTP request", SERVER, 1, 0, {"http.route": "/generate_stream", "http.status_code": 200}),
    )
    router = "text-generation-inference.router"
    assert latencies(batch) == {(router, "HTTP request", "ok"): 1}
    assert timings(batch) == {
        ("time_per_output_token", router): 0.0125,
        ("phase.duration", router, "queue"): 870e-9,
        ("phase.duration", router, "validation"): 455.25e-6,
        ("phase.duration", router, "inference"): 1.2,
    }


def test_fastapi_s_inner_spans_are_no_requests() -> None:
    inner = [
        span(f"POST /predict http {way}", INTERNAL, number, 1, {"asgi.event.type": f"http.{way}"})
        for number, way in ((2, "receive"), (3, "send"), (4, "send"))
    ]
    outer = span("POST /predict", SERVER, 1, 0, {"http.route": "/predict", "http.status_code": 200})
    batch = request({"service.name": "fraud"}, "opentelemetry.instrumentation.fastapi", *inner, outer)
    assert latencies(batch) == {("fraud", "POST /predict", "ok"): 1}
    assert timings(batch) == {}


def test_mlserver_s_rest_and_grpc_requests_count_once_each() -> None:
    resource = {"service.name": "mlserver", "service.version": "1.7.1"}
    rest = span("POST /v2/models/{model_name}/infer", SERVER, 1, 0, {"http.method": "POST"})
    send = span("POST /v2/models/{model_name}/infer http send", INTERNAL, 2, 1)
    name = "/inference.GRPCInferenceService/ModelInfer"
    grpc = span(name, SERVER, 3, 9, {"rpc.system": "grpc", "rpc.grpc.status_code": 0})
    assert latencies(
        request(resource, "opentelemetry.instrumentation.fastapi", send, rest),
        request(resource, "opentelemetry.instrumentation.grpc", grpc),
    ) == {
        ("mlserver", "1.7.1", "POST /v2/models/{model_name}/infer", "ok"): 1,
        ("mlserver", "1.7.1", name, "ok"): 1,
    }


def test_bentoml_s_asgi_span_goes_under_service_and_bento_version() -> None:
    resource = {
        "service.name": "Summarization",
        "service.namespace": "summarization",
        "service.version": "ulnyfbq66gagsnry",
        "service.instance.id": "1",
    }
    spans = [
        span("POST /summarize http receive", INTERNAL, 2, 1),
        span("POST /summarize http send", INTERNAL, 3, 1),
        span("POST /summarize", SERVER, 1, 0, {"http.method": "POST", "http.status_code": 200}),
    ]
    batch = request(resource, "opentelemetry.instrumentation.asgi", *spans)
    assert latencies(batch) == {("Summarization", "ulnyfbq66gagsnry", "POST /summarize", "ok"): 1}


def test_litserve_with_spans_of_the_user_s_own() -> None:
    """LitServe has none: a root that the user's code opens is the request, what is in it is not."""
    root = span("predict", INTERNAL, 1, 0, {"model.name": "digits", "faas.coldstart": True})
    inner = span("decode_request", INTERNAL, 2, 1)
    batch = request({"service.name": "litserve"}, "__main__", inner, root)
    assert latencies(batch) == {("digits", "predict", "ok"): 1}
    assert timings(batch) == {("cold_starts", "digits"): 1.0}


def test_a_server_that_names_its_model_by_gen_ai_attributes() -> None:
    """As by today's names: the time per output token follows from the span's own duration."""
    chat = {
        "gen_ai.response.model": "qwen",
        "gen_ai.response.time_to_first_chunk": 0.5,
        "gen_ai.usage.input_tokens": 4,
        "gen_ai.usage.output_tokens": 5,
    }
    batch = request({"service.name": "chat"}, "x", span("chat qwen", CLIENT, 1, 9, chat, ms=(0, 2500)))
    assert latencies(batch) == {("qwen", "chat qwen", "ok"): 1}
    assert timings(batch) == {
        ("time_to_first_token", "qwen"): 0.5,
        ("time_per_output_token", "qwen"): 0.5,
        ("tokens", "qwen", "input"): 4.0,
        ("tokens", "qwen", "output"): 5.0,
    }
