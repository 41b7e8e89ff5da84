"""The pages, over a real client."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import re
from collections.abc import Awaitable, Callable
from html.parser import HTMLParser

import aiohttp
import pytest
from msgspec import structs

from tidegauge.config import ConfigError
from tidegauge.exporters import status
from tidegauge.exporters.pages import Pages
from tidegauge.metric import (
    Attributes,
    Exemplar,
    ExponentialHistogram,
    Histogram,
    Kind,
    Metric,
    Number,
    Summary,
)
from tidegauge.snapshot import Snapshot, Snapshots

MODEL: Attributes = (("model", "fraud"), ("version", "2.1"))


def gauge(name: str, unit: str, *points: tuple[Attributes, float]) -> Metric:
    return Metric(name, Kind.GAUGE, unit, "", tuple(Number(*point) for point in points))


def counter(name: str, *points: tuple[Attributes, float]) -> Metric:
    return Metric(f"tidegauge.{name}", Kind.COUNTER, "{item}", "", tuple(Number(*p) for p in points))


def feature(name: str) -> Attributes:
    return (*MODEL, ("feature", name))


GRPC: Attributes = (("receiver", "otlp"), ("signal", "traces"))
GPU: Attributes = (("hw.id", "GPU-1"), ("hw.name", "H100"))
SLOW, FAST = (
    Exemplar(value, 1, (("trace_id", trace * 32),)) for value, trace in ((0.033, "b"), (0.0325, "a"))
)
LATENCY = ExponentialHistogram(
    (*MODEL, ("operation", "/predict"), ("status", "ok")), 4, -80, (0, 100), 0, 3.2, 0.0325, 0.0330,
    exemplars=(SLOW, FAST),
)  # fmt: skip
METRICS = (
    counter("received", (GRPC, 1234567.0)),
    counter("accepted", (GRPC, 1234560.0)),
    counter("rejected", ((*GRPC, ("reason", "queue_full")), 7.0)),
    gauge("tidegauge.queue.usage", "By", ((), 3 * 2**20)),
    Metric("model.inference.latency", Kind.EXPONENTIAL_HISTOGRAM, "s", "", (LATENCY,)),
    gauge("feature.drift.score", "{score}", (feature("age"), 0.01), (feature("income"), 0.73)),
    gauge(
        "feature.drift.p_value",
        "",
        ((*feature("income"), ("statistic", "ks")), 0.5),
        ((*feature("income"), ("statistic", "psi")), 1e-9),
    ),
    gauge("feature.window.rows", "{row}", (feature("income"), 4096.0), (feature("new"), 3.0)),
    gauge("feature.drifted", "", (feature("age"), 0.0), (feature("income"), 1.0)),
    gauge("feature.missing", "1", (feature("income"), 0.25)),
    gauge("hw.gpu.utilization", "1", ((*GPU, ("hw.gpu.task", "general")), 0.5), (GPU, math.nan)),
    gauge("hw.gpu.memory.usage", "By", (GPU, 80 * 2**30)),
    gauge("feature.reference.rows", "{row}", (MODEL, 5000.0)),
)


def serve(
    visit: Callable[[aiohttp.ClientSession, Snapshots], Awaitable[None]],
    *,
    health: Callable[[], list[str]] = list,
    ready: Callable[[], list[str]] = list,
) -> None:
    async def scene() -> None:
        snapshots = Snapshots()
        async with (
            Pages("127.0.0.1:0", snapshots, health=health, ready=ready) as pages,
            aiohttp.ClientSession(f"http://127.0.0.1:{pages.port}", auto_decompress=False) as client,
        ):
            await visit(client, snapshots)

    asyncio.run(scene())


def test_metrics() -> None:
    async def visit(client: aiohttp.ClientSession, snapshots: Snapshots) -> None:
        snapshots.publish("one", METRICS)
        async with client.get("/metrics", headers={"Accept-Encoding": "identity"}) as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
            assert "Content-Encoding" not in answer.headers
            plain = await answer.read()
        assert b'tidegauge_received_total{receiver="otlp",signal="traces"} 1234567.0\n' in plain
        async with client.get("/metrics", headers={"Accept-Encoding": "gzip"}) as answer:
            assert answer.headers["Content-Encoding"] == "gzip"
            assert gzip.decompress(await answer.read()) == plain
        accept = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8"
        async with client.get("/metrics", headers={"Accept": accept, "Accept-Encoding": ""}) as answer:
            assert answer.headers["Content-Type"].endswith("escaping=allow-utf-8")
            assert (await answer.read()).endswith(b"# EOF\n")
        accept = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
        async with client.get("/metrics", headers={"Accept": accept, "Accept-Encoding": "gzip"}) as answer:
            assert answer.headers["Content-Type"] == accept.replace(";", "; ")
            assert answer.headers["Vary"] == "Accept, Accept-Encoding"
            assert b"model_inference_latency_seconds" in gzip.decompress(await answer.read())
        async with client.post("/metrics") as answer:
            assert answer.status == 405

    serve(visit)


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_verdicts(path: str) -> None:
    reasons: list[str] = []

    async def visit(client: aiohttp.ClientSession, snapshots: Snapshots) -> None:
        async with client.get(path) as answer:
            assert (answer.status, await answer.text()) == (200, "ok\n")
        reasons.extend(["the consumer is stuck", "no listener"])
        async with client.get(path) as answer:
            assert (answer.status, await answer.text()) == (503, "the consumer is stuck\nno listener\n")
        other = "/readyz" if path == "/healthz" else "/healthz"
        async with client.get(other) as answer:
            assert answer.status == 200

    if path == "/healthz":
        serve(visit, health=lambda: reasons)
    else:
        serve(visit, ready=lambda: reasons)


def test_snapshot_as_json() -> None:
    published = []

    async def visit(client: aiohttp.ClientSession, snapshots: Snapshots) -> None:
        snapshots.publish("one", (*METRICS, gauge("odd", "", ((), math.inf), (MODEL, math.nan))))
        published.append(snapshots.latest())
        async with client.get("/api/v1/snapshot") as answer:
            assert answer.content_type == "application/json"
            found = json.loads(await answer.read(), parse_constant=pytest.fail)
        assert found["generation"] == 1
        assert [metric["name"] for metric in found["metrics"]] == [m.name for m in METRICS] + ["odd"]
        assert [point["value"] for point in found["metrics"][-1]["points"]] == [None, None]
        latency = next(metric for metric in found["metrics"] if metric["name"] == "model.inference.latency")
        assert latency["points"][0]["counts"] == [0, 100]
        assert latency["kind"] == "exponential_histogram"

    serve(visit)
    assert isinstance(published[0], Snapshot)


class Page(HTMLParser):
    """Rows of the tables as text, and everything that would be fetched from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.marked: list[bool] = []
        self.fetched: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe"):
            self.fetched.append(tag)
        if tag == "tr":
            self.rows.append([])
            self.marked.append(dict(attrs).get("class") == "ill")
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data

    def row(self, *start: str) -> list[str]:
        matches = [row for row in self.rows if tuple(row[: len(start)]) == start]
        assert len(matches) == 1, (start, self.rows)
        return matches[0]


def status_page(metrics: tuple[Metric, ...], reasons: tuple[str, ...] = ()) -> str:
    found = []

    async def visit(client: aiohttp.ClientSession, snapshots: Snapshots) -> None:
        snapshots.publish("one", metrics)
        async with client.get("/") as answer:
            assert answer.status == 200
            assert answer.content_type == "text/html"
            assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
            found.append(await answer.text())

    serve(visit, health=lambda: list(reasons))
    return found[0]


def test_status_page_tells_the_state() -> None:
    text = status_page(METRICS)
    page = Page(text)
    assert page.fetched == []
    assert not re.search(r"url\(|@import|https?://", text)
    income = page.row("fraud 2.1", "income")
    assert income[2:] == ["drifted", "0.73", "1e-09", "4,096", "25.0%"]
    assert page.row("fraud 2.1", "age")[2:4] == ["steady", "0.01"]
    assert page.row("fraud 2.1", "new")[2] == "too few rows"
    assert [row for row, marked in zip(page.rows, page.marked, strict=True) if marked] == [income]
    latency = page.row("fraud 2.1", "/predict", "ok")
    assert latency[3] == "100"
    assert all(32 <= float(cell.removesuffix(" ms")) <= 33.1 for cell in latency[4:8])
    assert latency[8] == "b" * 32
    assert page.row("otlp", "traces")[2:5] == ["1,234,567", "1,234,560", "7"]
    assert page.row("rejected", "otlp traces") == ["rejected", "otlp traces", "queue_full", "7"]
    assert page.row("H100", "GPU-1")[2:6] == ["", "50.0%", "80.0 GiB", ""]
    assert page.row("fraud 2.1", "feature.reference.rows")[-1] == "5,000"
    assert page.row("tidegauge.queue.usage")[-1] == "3.0 MiB"
    assert "not well" not in text


def test_status_page_shows_the_score_against_the_reference_whatever_else_is_judged() -> None:
    where = (*MODEL, ("feature", "income"))
    labels = (("window", "24h"), ("baseline", "rolling"), ("reference", "5f3a"))
    others = tuple(Number((*where, label), 0.9) for label in labels)
    found = [
        structs.replace(metric, points=(*metric.points, *others))
        if metric.name == "feature.drift.score"
        else metric
        for metric in METRICS
    ]
    assert Page(status_page(tuple(found))).row("fraud 2.1", "income")[2:4] == ["drifted", "0.73"]


def test_status_page_tells_of_models_what_a_table_of_columns_does_not() -> None:
    auc = (*MODEL, ("statistic", "domain_auc"))
    cause = (("cause", "data"), ("evidence", "feature_drift"))
    page = Page(
        status_page(
            (
                *METRICS,
                gauge("feature.drift.alarm", "", (feature("age"), 1.0), (feature("income"), 0.0)),
                gauge("model.serving_health", "1", (MODEL, 0.5)),
                gauge("model.serving_health.part", "1", ((*MODEL, ("part", "data")), 0.25)),
                gauge(
                    "model.first_cause",
                    "1",
                    ((*MODEL, ("cause", "machine"), ("evidence", "gpu_power_cap")), 0.4),
                    ((*MODEL, *cause), 0.9),
                ),
                gauge("model.drifted", "", (MODEL, 1.0)),
                gauge("model.drift.statistic", "", (auc, 0.75), ((*MODEL, ("statistic", "pca_error")), 2.0)),
                gauge("model.drift.null_quantile", "", ((*auc, ("probability", "0.95")), 0.53)),
                gauge(
                    "model.slice.rows",
                    "",
                    *(((*MODEL, ("slice", f"region={name}")), rows) for name, rows in (("eu", 9), ("us", 7))),
                ),
                gauge("model.slice.drifted_columns", "", ((*MODEL, ("slice", "region=us")), 2.0)),
                gauge("tidegauge.checkpoint.time", "s", ((), 1_800_000_000.0)),
                gauge("tidegauge.config.last_reload_success_timestamp", "s", ((), 0.0)),
            )
        )
    )
    assert page.row("fraud 2.1", "data 25.0%")[2:] == ["data (feature_drift)", "50.0%"]
    assert page.row("fraud 2.1", "age")[2] == "in alarm"
    assert page.row("fraud 2.1", "drifted")[2:] == ["0.75", "0.53"]
    assert page.row("fraud 2.1", "region=us")[2:] == ["drifted", "2", "7"]
    assert page.row("fraud 2.1", "region=eu")[2:] == ["steady", "0", "9"]
    marked = [row[1] for row, is_marked in zip(page.rows, page.marked, strict=True) if is_marked]
    assert marked == ["age", "income", "drifted", "region=us"]
    assert page.row("tidegauge.checkpoint.time")[-1] == "2027-01-15 08:00:00 UTC"
    assert page.row("tidegauge.config.last_reload_success_timestamp")[-1] == "never"


def test_status_page_has_an_embeddings_own_p_value() -> None:
    where = (*MODEL, ("feature", "vector"))
    found = (
        gauge("feature.drift.score", "", (where, 0.3)),
        gauge(
            "feature.drift.p_value",
            "",
            ((*where, ("statistic", "mmd")), 0.002),
            ((*where, ("statistic", "mean_euclidean")), 0.5),
        ),
    )
    assert Page(status_page(found)).row("fraud 2.1", "vector")[3:5] == ["0.3", "0.002"]


def test_status_page_tells_what_requests_are_made_of() -> None:
    where: Attributes = (*MODEL, ("operation", "/predict"))
    prefill = ExponentialHistogram((*MODEL, ("phase", "prefill")), 4, -80, (0, 9), 0, 0.3, 0.0325, 0.033)
    tokens = ExponentialHistogram((*MODEL, ("type", "output")), 8, 1770, (2,), 0, 240.0, 120.0, 120.0)

    def counts(name: str, unit: str, *points: tuple[Attributes, float]) -> Metric:
        return Metric(f"model.{name}", Kind.COUNTER, unit, "", tuple(Number(*point) for point in points))

    text = status_page(
        (
            Metric("model.inference.phase.duration", Kind.EXPONENTIAL_HISTOGRAM, "s", "", (prefill,)),
            Metric("model.inference.tokens", Kind.EXPONENTIAL_HISTOGRAM, "{token}", "", (tokens,)),
            counts("inference.stage.requests", "{request}", (where, 10.0)),
            counts(
                "inference.stage.time",
                "s",
                ((*where, ("span", "llm")), 1.5),
                ((*where, ("span", "tokenise")), 0.5),
            ),
            counts("inference.errors", "{request}", ((*where, ("cause", "llm")), 2.0)),
            counts("log.records", "{record}", ((*MODEL, ("severity", "error")), 7.0)),
        )
    )
    page = Page(text)
    phase = page.row("fraud 2.1", "phase duration", "prefill")
    assert (phase[3], phase[7]) == ("9", "33 ms")
    assert page.row("fraud 2.1", "tokens", "output")[3:] == ["2", "120", "120", "120", "120"]
    assert page.row("fraud 2.1", "/predict", "llm", "10") == [
        "fraud 2.1", "/predict", "llm", "10", "150 ms", "75.0%",
    ]  # fmt: skip
    assert page.row("fraud 2.1", "/predict", "tokenise")[3:] == ["10", "50 ms", "25.0%"]
    assert page.row("fraud 2.1", "/predict", "llm", "2")
    assert page.row("fraud 2.1", "error", "7")


def test_what_senders_push_stands_apart_and_displaces_nothing() -> None:
    mine: Attributes = (("job", "shop"), ("model", "x" * 300))
    pushed = (
        Metric("tidegauge.received", Kind.COUNTER, "{item}", "", (Number(GRPC, 5.0),), received=True),
        Metric("model.inference.latency", Kind.GAUGE, "s", "", (Number(mine, 9.0),), received=True),
        Metric("done", Kind.COUNTER, "1", "", (Number((), 7.0),), received=True),
        Metric("size", Kind.SUMMARY, "By", "", (Summary((), 4, 4096.0, ((0.5, 1.0),)),), received=True),
        Metric("score", Kind.HISTOGRAM, "", "", (Histogram((), (1.0,), (2, 2), 3.0),), received=True),
        Metric("change", Kind.EXPONENTIAL_HISTOGRAM, "", "", (
            ExponentialHistogram((), 0, 0, (1,), 0, -3.0, -4.0, 2.0, negative_counts=(2,)),
            ExponentialHistogram((("none", "yet"),), 0, 0, (), 0, 0.0, 0.0, 0.0),
        ), received=True),
    )  # fmt: skip
    page = Page(status_page((*METRICS, *pushed)))
    assert page.row("otlp", "traces")[2:5] == ["1,234,567", "1,234,560", "7"]
    assert page.row("fraud 2.1", "/predict", "ok")[3] == "100"
    assert page.row("tidegauge.received", "counter") == [
        "tidegauge.received", "counter", "receiver=otlp, signal=traces", "", "5",
    ]  # fmt: skip
    latency = page.row("model.inference.latency", "gauge")
    assert (len(latency[2]), latency[3:]) == (200, ["", "9 s"])
    assert page.row("done", "counter", "")[3:] == ["", "7"]
    assert page.row("size", "summary", "")[3:] == ["4", "1.0 KiB"]
    assert page.row("score", "histogram", "")[3:] == ["4", "0.75"]
    assert page.row("change", "exponential histogram", "")[3:] == ["3", "-1"]
    assert page.row("change", "exponential histogram", "none=yet")[3:] == ["0", ""]


def test_a_lost_gpu_stays_on_the_status_page() -> None:
    lost = (("hw.id", "GPU-2"), ("hw.name", "H100"))
    states = [
        ((*lost, ("hw.state", state)), float(state == "failed")) for state in ("ok", "degraded", "failed")
    ]
    text = status.page(Snapshot(1, 0, (gauge("hw.status", "", *states),)), [])
    row = re.search(r"<tr[^>]*><td[^>]*>H100.*?</tr>", text)
    assert row is not None
    assert "GPU-2" in row[0]
    assert "failed" in row[0]
    assert "degraded" not in row[0]


def test_status_page_of_nothing() -> None:
    text = status_page((), ("<stuck>",))
    assert "not well: &lt;stuck&gt;" in text
    assert "No spans were received yet." in text


def test_status_page_escapes_what_others_name() -> None:
    evil = '<script>alert("x")</script>'
    metrics = (
        gauge("feature.drift.score", "", (((("model", evil), ("feature", evil))), math.nan)),
        counter("received", ((("receiver", evil), ("signal", evil)), 1.0)),
        gauge("tidegauge.odd", "", ((("key", evil),), math.inf)),
    )
    text = status_page(metrics)
    assert "<script" not in text
    assert text.count("&lt;script&gt;") == 5


def test_status_page_is_bounded() -> None:
    points = tuple((feature(f"f{n}"), n / 1000) for n in range(1000))
    text = status_page((gauge("feature.drift.score", "", *points),))
    assert text.count("<tr>") == 201
    assert "and 800 more" in text
    assert "f999" in text  # the largest scores come first


def test_a_taken_port_names_the_setting() -> None:
    async def scene() -> None:
        async with Pages("127.0.0.1:0", Snapshots(), health=list, ready=list) as first:
            endpoint = f"127.0.0.1:{first.port}"
            with pytest.raises(
                ConfigError, match=rf"exporters.prometheus.endpoint: cannot listen on {endpoint}"
            ):
                async with Pages(endpoint, Snapshots(), health=list, ready=list):
                    pass

    asyncio.run(scene())
