"""Every query of every dashboard and rule, in a real Prometheus that scrapes an agent under traffic."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pytest
import yaml
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
RULES = sorted(path for path in (ROOT / "deploy" / "rules").glob("*.yaml") if "." not in path.stem)
BOARDS = {path.stem: json.loads(path.read_text()) for path in (ROOT / "deploy" / "grafana").glob("*.json")}
GROUPS = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
RESOURCE = Resource({"model.name": "fraud", "model.version": "2.1"})
ROUND_S, ROWS = 0.5, 300

NOT_HERE = {
    "offset 1d": "nothing here is a day old; promtool's tests have it",
    "tidegauge_export_restored_total": "an agent that starts with a queue: tests/e2e/test_outage.py",
    "tidegauge_export_unsaved_total": "a disk that fails",
    "tidegauge_denied_total": "an agent with credentials: tests/e2e/test_secure.py",
}
"""What half a minute of traffic does not have, and who has it."""


class Asked(NamedTuple):
    """A query of a dashboard, with whom it belongs to."""

    where: str
    board: str
    expr: str


def asked() -> Iterator[Asked]:
    for name, board in BOARDS.items():
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                yield Asked(f"{name}, {panel['title']}, {target['refId']}", name, target["expr"])
        for mark in board["annotations"]["list"]:
            yield Asked(f"{name}, {mark['name']}", name, mark["expr"])


def send_spans(tracer: Any, number: int) -> None:
    """A request with two stages, of which one tells timings, failures and cold starts."""
    start = 10**18
    timings = {"time_to_first_token": 0.01, "time_in_queue": 0.001, "time_in_model_decode": 0.02}
    attributes: dict[str, Any] = {f"gen_ai.latency.{key}": value for key, value in timings.items()}
    attributes |= {"gen_ai.usage.input_tokens": 100, "gen_ai.usage.output_tokens": 21}
    for _ in range(20):
        request = tracer.start_span("POST /predict", kind=SpanKind.SERVER, start_time=start)
        within = set_span_in_context(request)
        tracer.start_span("tokenise", within, start_time=start).end(start + 10**7)
        llm = tracer.start_span("llm", within, start_time=start + 10**7, attributes=attributes)
        if number % 2:
            llm.set_attribute("faas.coldstart", True)
            llm.set_status(StatusCode.ERROR)
            request.set_status(StatusCode.ERROR)
        llm.end(start + 4 * 10**7)
        request.end(start + 4 * 10**7)


def rows(random: np.random.Generator, number: int) -> dict[str, pa.Array]:
    """After some rounds the features move, one of them is lacking, and ids repeat."""
    moved = number > 6
    times = np.full(ROWS, time.time_ns() // 1000)
    times[: number % 2] -= 3600 * 10**6
    amount = random.normal(size=ROWS) + 3 * moved
    vectors = pa.array((random.normal(size=4 * ROWS) + moved).astype(np.float32))
    columns = {
        "timestamp": pa.array(times, pa.timestamp("us", tz="UTC")),
        "prediction_id": pa.array([str(one) for one in range(number * ROWS // 2, number * ROWS // 2 + ROWS)]),
        "transaction_amount": pa.array(amount),
        "fee": pa.array(amount + 0.1 * random.normal(size=ROWS)),
        "text": pa.FixedSizeListArray.from_arrays(vectors, 4),
        "colour": pa.array(random.choice(["red", "green", "blue"], size=ROWS)),
        "prediction": pa.array(random.choice(["yes", "no"], size=ROWS)),
        "score": pa.array(random.random(ROWS) ** (1 + moved)),
    }
    if number % 5 == 4:
        del columns["transaction_amount"], columns["score"]
    if number % 5 == 3:
        columns |= {"transaction_amount": pa.array(["text"] * ROWS), "prediction": pa.array([0.5] * ROWS)}
    return columns


def put(client: fl.FlightClient, model: str, columns: dict[str, pa.Array]) -> None:
    batch = pa.record_batch(columns)
    writer, _ = client.do_put(fl.FlightDescriptor.for_path("records", model, "2.1"), batch.schema)
    writer.write_batch(batch)
    writer.close()


def send_nonsense(url: str) -> None:
    headers = {"Content-Type": "application/x-protobuf"}
    with pytest.raises(HTTPError) as refused:
        urlopen(Request(url, b"\xff\xff", headers), timeout=10)
    refused.value.close()


@contextmanager
def traffic(agent: Any) -> Iterator[None]:
    """Requests, logs and rows twice a second, and each time a request that is none."""
    over = threading.Event()
    spans, logs = TracerProvider(resource=RESOURCE), LoggerProvider(resource=RESOURCE)
    exporter = OTLPSpanExporter(f"http://127.0.0.1:{agent.grpc}", insecure=True)
    spans.add_span_processor(BatchSpanProcessor(exporter))
    url = f"http://127.0.0.1:{agent.http}/v1"
    logs.add_log_record_processor(SimpleLogRecordProcessor(OTLPLogExporter(f"{url}/logs")))

    def run() -> None:
        random, number = np.random.default_rng(1), 0
        with fl.FlightClient(f"grpc://127.0.0.1:{agent.grpc}") as client:
            while not over.wait(ROUND_S):
                send_spans(spans.get_tracer("app"), number)
                spans.force_flush()
                for severity in (SeverityNumber.INFO, SeverityNumber.ERROR):
                    logs.get_logger("app").emit(LogRecord(timestamp=10**18, severity_number=severity))
                put(client, "fraud", rows(random, number))
                # Rows for a reference, and then too few of them for a verdict; and now and then a new model.
                some = ROWS if number < 2 else 1
                put(client, "rare", {name: one[:some] for name, one in rows(random, 0).items()})
                if number % 100 < 2:
                    put(client, f"new-{number // 100}", rows(random, 0))
                send_nonsense(f"{url}/traces")
                number += 1

    thread = threading.Thread(target=run, name="traffic")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        spans.shutdown()
        logs.shutdown()


@pytest.fixture(scope="module")
def prometheus(
    start_agent: Callable[..., Any],
    start_prometheus: Callable[..., Any],
    folder: Callable[[], Path],
) -> Iterator[Any]:
    """It scrapes an agent with one collector that is there, and one that is not."""
    takes = start_agent(scrapers={"nvml": {"enabled": False}})
    agent = start_agent(
        exporters={
            "otlp": {"endpoint": "http://127.0.0.1:9", "interval": "1s", "timeout": "1s"},
            "collectors": [{"name": "there", "endpoint": f"http://127.0.0.1:{takes.grpc}"}],
        },
        stages={"linger": "500ms"},
        logs={"max_series": 1},
        drift={
            "window": "12s",
            "other_windows": ["36s"],
            "allowed_lateness": "1s",
            "reference_rows": 2 * ROWS,
            "min_rows": ROWS,
            "stale_after": "1s",
            "checkpoint_interval": "1s",
            "slices": {"columns": ["colour"]},
            "multivariate": {"interval": "1s"},
        },
        scrapers={"nvml": {"interval": "1s", "demo": True}},
        health={"step": "1s", "window": "30s", "max_lag": "2s"},
        state_dir=str(folder()),
    )
    with traffic(agent):
        yield start_prometheus(agent.pages, rules=RULES)


def values(prometheus: Any, query: str) -> list[str]:
    """What a variable can be, as Grafana asks for it; the selector has its variables replaced."""
    series, label = re.fullmatch(r"label_values\((.+), (\w+)\)", query).groups()  # type: ignore[union-attr]
    return list(prometheus.api(f"label/{label}/values", **{"match[]": series}))


def replaced(prometheus: Any, board: str, expr: str, until: Callable[..., Any]) -> str:
    """The expression with everything chosen that can be."""
    known = {"__rate_interval": "10s"}
    for one in BOARDS[board]["templating"]["list"]:
        if one["type"] == "query":
            query = filled(one["definition"], known)
            found = until(lambda query=query: values(prometheus, query))
            known[one["name"]] = "|".join(map(re.escape, found)).replace("\\", "\\\\")
    return filled(expr, known)


def filled(text: str, known: dict[str, str]) -> str:
    return re.sub(r"\$(\w+)", lambda found: known[found[1]], text)


def excused(expr: str) -> bool:
    return any(name in expr for name in NOT_HERE)


FOUND = [one for one in asked() if not excused(one.expr)]
EXCUSED = [one for one in asked() if excused(one.expr)]


@pytest.mark.parametrize("query", FOUND, ids=lambda one: one.where)
def test_a_dashboards_query_finds_something(prometheus: Any, query: Asked, until: Callable[..., Any]) -> None:
    expr = replaced(prometheus, query.board, query.expr, until)
    until(lambda: prometheus.api("query", query=expr)["result"], 60)


@pytest.mark.parametrize("query", EXCUSED, ids=lambda one: one.where)
def test_what_finds_nothing_here_is_taken(prometheus: Any, query: Asked, until: Callable[..., Any]) -> None:
    expr = replaced(prometheus, query.board, query.expr, until)
    assert prometheus.api("query", query=expr)["resultType"] == "vector"


RECORDS = [rule for group in GROUPS for rule in group["rules"] if "record" in rule]
ALERTS = [rule for group in GROUPS for rule in group["rules"] if "alert" in rule]


@pytest.mark.parametrize("rule", RECORDS, ids=lambda rule: rule["record"])
def test_what_is_recorded_is_there(prometheus: Any, rule: dict[str, Any], until: Callable[..., Any]) -> None:
    until(lambda: prometheus.api("query", query=rule["expr"])["result"], 60)
    until(lambda: prometheus.api("query", query=rule["record"])["result"])


def metrics(expr: str) -> set[str]:
    """The names of metrics in an expression."""
    bare = re.sub(r'"(?:\\.|[^"\\])*"|\{[^}]*\}|\[[^]]*\]', " ", expr)
    bare = re.sub(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    words = re.findall(r"(?<![\w.])[a-zA-Z_:][\w:]*\b(?!\s*\()", bare)
    return set(words) - {"and", "or", "unless", "offset", "bool"}


def test_names_of_metrics_are_found_in_expressions() -> None:
    expr = 'sum by (a) (rate(x:y{b="c{d"}[5m])) / on (e) group_left (f) (g_total offset 1d) > 0.5 and h'
    assert metrics(expr) == {"x:y", "g_total", "h"}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_what_an_alert_looks_at_is_there(
    prometheus: Any, rule: dict[str, Any], until: Callable[..., Any]
) -> None:
    assert prometheus.api("query", query=rule["expr"])["resultType"] == "vector"
    for name in metrics(rule["expr"]) - NOT_HERE.keys():
        until(lambda name=name: prometheus.api("query", query=f"last_over_time({name}[1m])")["result"], 60)


@pytest.mark.parametrize(
    "expr",
    [
        'abs(feature_drift_score{feature="transaction_amount"}) > 0.3',
        "rate(model_inference_latency_seconds_sum[5m])"
        " / rate(model_inference_latency_seconds_count[5m]) > 0.02",
        "abs(avg_over_time(prediction_mean[1h]) - avg_over_time(prediction_mean[1h] offset 10s)) > 0",
    ],
)
def test_what_a_team_writes_first_finds_it(prometheus: Any, expr: str, until: Callable[..., Any]) -> None:
    """The latency's threshold and the time before are those of a test that takes no day."""
    until(lambda: prometheus.api("query", query=expr)["result"], 60)
