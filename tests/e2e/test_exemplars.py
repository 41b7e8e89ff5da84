"""A real Prometheus takes exemplars and the rarer shapes of histograms from the page, in every format."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tidegauge.exporters.pages import Pages
from tidegauge.metric import Exemplar, ExponentialHistogram, Histogram, Kind, Metric, Number, Summary
from tidegauge.snapshot import Snapshots

pytestmark = pytest.mark.e2e

SLOW, FAST, SENT = "4bf92f3577b34da6a3ce929d0e0e4736", "0af7651916cd43dd8448eb211c80319c", "f" * 32
NATIVE = ("native-histograms", "exemplar-storage")


def exemplar(trace_id: str, value: float) -> Exemplar:
    return Exemplar(value, time.time_ns(), (("trace_id", trace_id), ("span_id", "00f067aa0ba902b7")))


def metrics() -> tuple[Metric, ...]:
    """One of each kind; the latency has 5 in (2**-3, 2**-2.875] and 7 in (2**-2.25, 2**-2.125]."""
    latency = ExponentialHistogram(
        (("model", "fraud"),), 3, -24, (5, 0, 0, 0, 0, 0, 7), 2, 1.75, 0.0, 0.23,
        exemplars=(exemplar(FAST, 0.13), exemplar(SLOW, 0.22)),
    )  # fmt: skip
    # -8 < values <= -4 with 3, zeros, and 1 < values <= 2 with 4.
    change = ExponentialHistogram(
        (), 0, 0, (4,), 1, -10.0, -7.0, 2.0, negative_offset=2, negative_counts=(3,), zero_threshold=0.5
    )
    score = Histogram((), (0.5, 1.0), (1, 2, 0), 1.5, exemplars=(exemplar(SLOW, 0.75),))
    return (
        Metric("latency", Kind.EXPONENTIAL_HISTOGRAM, "s", "", (latency,), time.time_ns()),
        Metric("change", Kind.EXPONENTIAL_HISTOGRAM, "{euro}", "", (change,)),
        Metric("score", Kind.HISTOGRAM, "", "", (score,)),
        Metric("sent", Kind.COUNTER, "By", "", (Number((), 3.0, time.time_ns(), exemplar(SENT, 2.0)),)),
        Metric("size", Kind.SUMMARY, "", "", (Summary((), 4, 6.5, ((0.5, 1.0), (0.99, 3.0))),)),
    )


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Pages in this process, on a loop of their own, with new exemplars every second."""
    ready, ended = threading.Event(), threading.Event()
    found: list[int] = []

    async def serve() -> None:
        snapshots = Snapshots()
        async with Pages("127.0.0.1:0", snapshots, health=list, ready=list) as pages:
            found.append(pages.port)
            while not ended.is_set():
                snapshots.publish("test", metrics())
                ready.set()
                await asyncio.sleep(1)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    yield found[0]
    ended.set()
    thread.join(10)


@pytest.fixture(scope="module", params=[NATIVE, NATIVE[1:]], ids=["protobuf", "openmetrics"])
def prometheus(
    request: pytest.FixtureRequest,
    port: int,
    start_prometheus: Callable[..., Any],
    until: Callable[..., Any],
) -> Any:
    started = start_prometheus(port, *request.param)
    started.native = "native-histograms" in request.param
    until(lambda: started.value("up") == 1)
    return started


def traces(prometheus: Any, query: str) -> dict[str, float]:
    """Trace ids of the exemplars of the last minute, with their values."""
    now = time.time()
    found = prometheus.api("query_exemplars", query=query, start=str(now - 60), end=str(now + 1))
    return {
        one["labels"]["trace_id"]: float(one["value"])
        for series in found
        for one in series["exemplars"]
        if one["labels"]["span_id"]
    }


@pytest.mark.parametrize(
    ("native", "classic", "expected"),
    [
        ("latency_seconds", "latency_seconds_bucket", {FAST: 0.13, SLOW: 0.22}),
        ("score_bucket", "score_bucket", {SLOW: 0.75}),
        ("sent_bytes_total", "sent_bytes_total", {SENT: 2.0}),
    ],
)
def test_exemplars_lead_to_their_traces(
    prometheus: Any, until: Callable[..., Any], native: str, classic: str, expected: dict[str, float]
) -> None:
    if not prometheus.native:
        until(lambda: traces(prometheus, classic) == expected)
        return
    # Prometheus 2.42 keeps one exemplar of a native histogram, later ones keep all.
    found = until(lambda: traces(prometheus, native))
    assert found.items() <= expected.items()


def test_values_below_zero(prometheus: Any) -> None:
    if prometheus.native:
        assert prometheus.value("histogram_count(change)") == 8
        assert prometheus.value("histogram_sum(change)") == -10
        assert prometheus.value("histogram_fraction(-8, -4, change)") == pytest.approx(3 / 8)
        assert prometheus.value("histogram_fraction(1, 2, change)") == pytest.approx(4 / 8)
    else:
        below = prometheus.query("change_bucket", by="le")
        assert (below["1.0"], below["2.0"], below["+Inf"]) == (4, 8, 8)
        assert prometheus.query("change_sum") == {}


def test_the_other_kinds(prometheus: Any) -> None:
    assert prometheus.query("score_bucket", by="le") == {"0.5": 1, "1.0": 3, "+Inf": 3}
    assert prometheus.query("size", by="quantile") == {"0.5": 1, "0.99": 3}
    assert (prometheus.value("size_count"), prometheus.value("size_sum")) == (4, 6.5)
    assert prometheus.value("sent_bytes_total") == 3
    [target] = prometheus.api("targets")["activeTargets"]
    assert target["lastError"] == ""
