"""One agent given all it takes at once: what is on its page, what a Prometheus and a Collector make of it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pytest
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetrics
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetrics
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import AlwaysOnExemplarFilter, Counter, Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

pytestmark = pytest.mark.e2e

STUB = Path(__file__).parents[1] / "scrapers" / "nvml_stub.c"
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
REQUESTS, ROWS = 100, 1000
RESOURCE = Resource(
    {
        "service.name": "scorer",
        "service.instance.id": "pod-1",
        "service.version": "7",
        "model.name": "fraud",
        "model.version": "2.1",
    }
)
DURATIONS_S = np.random.default_rng(5).lognormal(-3, 1, 400)
OWN = [
    "model_inference_latency_seconds",
    "model_inference_time_to_first_token_seconds",
    "model_inference_tokens",
    "model_inference_time_per_output_token_seconds",
    "model_inference_phase_duration_seconds",
    "model_inference_cold_starts_total",
    "model_inference_stage_time_seconds_total",
    "model_inference_errors_total",
    "model_log_records_total",
    "feature_drift_score",
    "prediction_histogram",
    "hw_temperature_celsius",
    "hw_energy_joules_total",
    "tidegauge_metrics_series",
    "tidegauge_stages_spans_total",
]
PUSHED = ("order_revenue_EUR_total", "basket_items", "confidence_ratio", "scoring_seconds", "target_info")
IMPOSTORS = ("tidegauge.received", "model.inference.latency", "feature.drift.score", "target_info")


class Scene(NamedTuple):
    """The agent with all folded in that was sent, and who looks at it."""

    agent: Any
    prometheus: Any
    collector: Any


def send_spans(port: int) -> None:
    """Requests of a server span and two inside, of which one tells timings, failures and cold starts."""
    provider = TracerProvider(resource=RESOURCE)
    exporter = OTLPSpanExporter(f"http://127.0.0.1:{port}", insecure=True)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer, start = provider.get_tracer("app"), 10**18
    timings = {"time_to_first_token": 0.01, "time_in_queue": 0.001, "time_in_model_decode": 0.02}
    attributes: dict[str, Any] = {f"gen_ai.latency.{key}": value for key, value in timings.items()}
    attributes |= {"gen_ai.usage.input_tokens": 100, "gen_ai.usage.output_tokens": 21}
    for number in range(REQUESTS):
        request = tracer.start_span("POST /predict", kind=SpanKind.SERVER, start_time=start)
        within = set_span_in_context(request)
        tracer.start_span("tokenise", within, start_time=start).end(start + 10**7)
        llm = tracer.start_span("llm", within, start_time=start + 10**7, attributes=attributes)
        if number % 10 == 0:
            llm.set_attribute("faas.coldstart", True)
            llm.set_status(StatusCode.ERROR)
            request.set_status(StatusCode.ERROR)
        llm.end(start + 4 * 10**7)
        request.end(start + 4 * 10**7)
    provider.shutdown()


def send_metrics(exporter: Any, scope: str) -> None:
    """Every kind that the SDK has, and some under the agent's own names."""
    exponential = View(instrument_name="scoring", aggregation=ExponentialBucketHistogramAggregation())
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=float("inf"))
    provider = MeterProvider([reader], RESOURCE, AlwaysOnExemplarFilter(), views=[exponential])
    meter = provider.get_meter(scope)
    meter.create_counter("order.revenue", "EUR", "Sold.").add(19.5)
    meter.create_up_down_counter("basket.items", "{item}", "In baskets.").add(5)
    meter.create_gauge("confidence", "1", "Of the last one.").set(0.75)
    scoring = meter.create_histogram("scoring", "s", "Time that scoring took.")
    for seconds in DURATIONS_S.tolist():
        scoring.record(seconds)
    labels = {"receiver": "otlp_grpc", "signal": "traces"}
    meter.create_counter("tidegauge.received", "{item}", "An impostor.").add(12345, labels)
    meter.create_histogram("model.inference.latency", "s", "An impostor.").record(99.0)
    meter.create_gauge("feature.drift.score", "{score}", "An impostor.").set(9.0)
    meter.create_counter("target_info", description="An impostor.").add(1)
    provider.force_flush()
    provider.shutdown()


def send_logs(port: int) -> None:
    provider = LoggerProvider(resource=RESOURCE)
    exporter = OTLPLogExporter(f"http://127.0.0.1:{port}/v1/logs")
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    provider.get_logger("app").emit(LogRecord(timestamp=10**18, severity_number=SeverityNumber.WARN))
    provider.shutdown()


def send_records(port: int) -> None:
    random = np.random.default_rng(1)
    score = pa.field("score", pa.float64(), metadata={"role": "score"})
    schema = pa.schema([pa.field("amount", pa.float64()), score])
    with fl.FlightClient(f"grpc://127.0.0.1:{port}") as client:
        writer, _ = client.do_put(fl.FlightDescriptor.for_path("records", "fraud", "2.1"), schema)
        for _ in range(2):
            columns = [pa.array(random.normal(size=ROWS // 2)), pa.array(random.random(ROWS // 2))]
            writer.write_batch(pa.record_batch(columns, schema=schema))
        writer.close()


@pytest.fixture(scope="module")
def gpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Two GPUs, where there is a compiler for the stub of NVML."""
    folder = tmp_path_factory.mktemp("gpus")
    with pytest.MonkeyPatch.context() as patch:
        if COMPILER is None:
            pytest.skip("a C compiler makes the NVML stub")
        library = folder / "libnvidia-ml.so.1"
        flags = ("-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1")
        subprocess.run([COMPILER, *flags, "-o", str(library), str(STUB)], check=True)
        for name in ("NVML_STUB", "NVML_STUB_CALLS"):
            (folder / name).touch()
            patch.setenv(name, str(folder / name))
        patch.setenv("LD_LIBRARY_PATH", str(folder))
        yield


@pytest.fixture(scope="module")
def scene(
    gpus: None,
    start_agent: Callable[..., Any],
    start_prometheus: Callable[..., Any],
    make_collector: Callable[..., Any],
    until: Callable[..., Any],
) -> Scene:
    collector = make_collector()
    collector.start()
    agent = start_agent(
        exporters={"otlp": {"endpoint": f"http://127.0.0.1:{collector.grpc}", "interval": "1s"}},
        stages={"linger": "500ms"},
        drift={"reference_rows": ROWS // 2, "min_rows": 100},
        scrapers={"nvml": {"interval": "1s"}},
    )
    send_spans(agent.grpc)
    send_metrics(GrpcMetrics(f"http://127.0.0.1:{agent.grpc}", insecure=True), "cumulative")
    delta = {Counter: AggregationTemporality.DELTA, Histogram: AggregationTemporality.DELTA}
    send_metrics(
        HttpMetrics(f"http://127.0.0.1:{agent.http}/v1/metrics", preferred_temporality=delta), "delta"
    )
    send_logs(agent.http)
    send_records(agent.grpc)
    prometheus = start_prometheus(agent.pages, "native-histograms", "exemplar-storage")
    agent.reaches(REQUESTS, "model_inference_stage_requests_total")
    agent.reaches(ROWS // 2, "feature_window_rows")
    until(lambda: "hw_temperature_celsius" in agent.text())
    until(lambda: len(prometheus.query("histogram_count(scoring_seconds)", by="otel_scope_name")) == 2)
    return Scene(agent, prometheus, collector)


def test_all_of_it_is_on_the_page_in_every_format(scene: Scene) -> None:
    text = {family.name: family for family in parse_text(scene.agent.text())}
    openmetrics = list(parse_openmetrics(scene.agent.text("application/openmetrics-text; version=1.0.0")))
    names = {sample.name for family in openmetrics for sample in family.samples}
    stems = {name.removesuffix("_count") for name in names}
    assert not [name for name in (*OWN, *PUSHED) if name not in stems]
    assert names == {sample.name for family in text.values() for sample in family.samples}
    assert not [family.name for family in openmetrics if not family.documentation]
    assert not [sample for family in openmetrics for sample in family.samples if sample.value == 12345]


def test_promtool_finds_nothing_but_names_of_the_contract(
    scene: Scene, tool: Callable[[str, str], Path]
) -> None:
    command = [str(tool("prometheus", "promtool")), "check", "metrics"]
    checked = subprocess.run(command, input=scene.agent.text(), capture_output=True, text=True, check=False)
    count = 'non-histogram and non-summary metrics should not have "_count" suffix'
    kinds = [
        f"{what}_{which}_count" for what in ("feature", "prediction") for which in ("window", "reference")
    ]
    known = {f"{name} {count}" for name in kinds}
    known.add("prediction_histogram metric name should not include type 'histogram'")
    assert set((checked.stdout + checked.stderr).splitlines()) <= known
    assert checked.returncode in (0, 3)  # 3: it has something to say


@pytest.mark.parametrize("scope", ["cumulative", "delta"])
@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.99])
def test_pushed_exponential_histograms_are_native_ones(scene: Scene, scope: str, quantile: float) -> None:
    series = f'scoring_seconds{{otel_scope_name="{scope}"}}'
    assert scene.prometheus.value(f"histogram_count({series})") == len(DURATIONS_S)
    assert scene.prometheus.value(f"histogram_sum({series})") == pytest.approx(DURATIONS_S.sum(), rel=1e-12)
    exact = np.quantile(DURATIONS_S, quantile, method="inverted_cdf")
    # At scale 4, where the SDK holds six octaves in 160 buckets.
    assert scene.prometheus.value(f"histogram_quantile({quantile}, {series})") == pytest.approx(
        exact, rel=0.045
    )


def test_what_is_known_of_a_sender_can_be_joined(scene: Scene) -> None:
    joined = "sum by (service_version) (order_revenue_EUR_total * on (exported_job, exported_instance) "
    joined += "group_left (service_version) target_info)"
    assert scene.prometheus.query(joined, by="service_version") == {"7": 2 * 19.5}


def test_impostors_are_told_and_change_no_sum(scene: Scene) -> None:
    assert scene.prometheus.value('sum(tidegauge_received_total{signal="traces"})') == 3 * REQUESTS
    count = "histogram_count(sum(model_inference_latency_seconds))"
    assert scene.prometheus.value(count) == REQUESTS
    assert scene.prometheus.query("feature_drift_score", by="feature").keys() == {"amount"}
    log = scene.agent.log()
    assert all(f"left out of /metrics: {name}: " in log for name in IMPOSTORS)


def test_the_collector_gets_what_was_pushed_once_and_from_its_sender(
    scene: Scene, until: Callable[..., Any]
) -> None:
    def names(service: str) -> list[str]:
        return [
            metric.name
            for resource in scene.collector.written("metrics").resource_metrics
            if service in [one.value.string_value for one in resource.resource.attributes]
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]

    until(lambda: "feature.drift.score" in names("tidegauge"))
    assert names("scorer").count("order.revenue") == names("scorer").count("tidegauge.received") == 2
    own = set(names("tidegauge"))
    assert {"tidegauge.received", "model.inference.latency", "hw.temperature"} <= own
    assert not own & {"order.revenue", "basket.items", "confidence", "scoring", "target_info"}


def test_the_status_page_has_a_part_for_each(scene: Scene, get: Callable[..., str]) -> None:
    page = get(f"http://127.0.0.1:{scene.agent.pages}/")
    for title in ("Drift", "Latency", "Timings within a request", "Where the time of requests goes"):
        assert f"<h2>{title}</h2><table>" in page
    for title in ("Failed requests", "Logs", "Received", "GPU", "Pushed by the model server"):
        assert f"<h2>{title}</h2><table>" in page
