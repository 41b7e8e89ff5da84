"""Text 0.0.4 and OpenMetrics beside prometheus_client's own encoders of the same families."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import exposition as client_text
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.metrics_core import (
    Metric as ClientFamily,
)
from prometheus_client.openmetrics import exposition as client_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.samples import Exemplar as ClientExemplar
from prometheus_client.utils import floatToGoString

from tidegauge.exporters.exposition import Format, render
from tidegauge.exporters.text_format import go_float
from tidegauge.metric import Exemplar, ExponentialHistogram, Histogram, Kind, Metric, Number, Summary

NAMES = ("alpha", "beta", "gamma")
TRACE = (("trace_id", "4bf92f3577b34da6a3ce929d0e0e4736"), ("span_id", "00f067aa0ba902b7"))


class Families:
    """What prometheus_client's encoders ask of a registry."""

    def __init__(self, families: Iterable[ClientFamily]) -> None:
        self.families = list(families)

    def collect(self) -> Iterable[ClientFamily]:
        return self.families


def client_family(metric: Metric) -> ClientFamily:
    """The same as prometheus_client's family, by its own classes."""
    name, text, names = metric.name, metric.description, NAMES
    family: ClientFamily
    match metric.kind:
        case Kind.GAUGE:
            family = GaugeMetricFamily(name, text, labels=names)
        case Kind.COUNTER:
            family = CounterMetricFamily(name, text, labels=names)
        case Kind.HISTOGRAM:
            family = HistogramMetricFamily(name, text, labels=names)
        case _:
            family = SummaryMetricFamily(name, text, labels=names)
    for point in metric.points:
        values = [value for _, value in point.attributes]
        match point:
            case Number(value=value, exemplar=None):
                family.add_metric(values, value)
            case Number(value=value, exemplar=exemplar):
                assert exemplar is not None
                family.add_metric(values, value, exemplar=client_exemplar(exemplar))
            case Histogram():
                below = list(accumulate(point.counts))
                les = [*map(floatToGoString, point.bounds), "+Inf"]
                held = {
                    next(k for k, le in enumerate(les) if one.value <= float(le)): client_exemplar(one)
                    for one in point.exemplars
                }
                buckets = [
                    (le, count, held[k]) if k in held else (le, count)
                    for k, (le, count) in enumerate(zip(les, below, strict=True))
                ]
                family.add_metric(values, buckets, point.sum)
            case Summary():
                family.add_metric(values, point.count, point.sum)
    return family


def client_exemplar(exemplar: Exemplar) -> ClientExemplar:
    return ClientExemplar(dict(exemplar.attributes), exemplar.value, exemplar.time_ns / 1e9)


NUMBERS = st.floats(allow_nan=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
ATTRIBUTES = st.tuples(TEXTS, TEXTS, TEXTS).map(lambda values: tuple(zip(NAMES, values, strict=True)))
EXEMPLARS = st.builds(
    Exemplar, st.floats(0, 100), st.integers(1, 10**9).map(lambda s: s * 10**9), st.just(TRACE)
)
HISTOGRAMS = st.builds(
    lambda at, bounds, counts, total, exemplars: Histogram(
        at, tuple(sorted(bounds)), tuple(counts[: len(bounds) + 1]), total, 0, tuple(exemplars)
    ),
    ATTRIBUTES,
    st.sets(st.floats(0, 1e9), max_size=6),
    st.lists(st.integers(0, 2**50), min_size=7, max_size=7),
    st.floats(0, allow_nan=False),
    st.lists(EXEMPLARS, max_size=1),
)
POINTS = {
    Kind.GAUGE: st.builds(Number, ATTRIBUTES, NUMBERS),
    Kind.COUNTER: st.builds(
        Number, ATTRIBUTES, NUMBERS.filter(lambda v: v >= 0), exemplar=st.none() | EXEMPLARS
    ),
    Kind.HISTOGRAM: HISTOGRAMS,
    Kind.SUMMARY: st.builds(
        Summary, ATTRIBUTES, st.integers(0, 2**50), st.floats(0, allow_nan=False), st.just(())
    ),
}


@st.composite
def any_metrics(draw: st.DrawFn) -> list[Metric]:
    metrics = []
    for number, kind in enumerate(draw(st.lists(st.sampled_from(list(POINTS)), max_size=4))):
        points = draw(st.lists(POINTS[kind], min_size=1, max_size=4, unique_by=lambda one: one.attributes))
        metrics.append(Metric(f"m{number}", kind, "", draw(TEXTS), tuple(points)))
    return metrics


@given(any_metrics())
def test_text_says_what_prometheus_clients_encoder_says(metrics: list[Metric]) -> None:
    expected = client_text.generate_latest(Families(map(client_family, metrics))).decode()
    found = render(metrics, Format.TEXT).body.decode()
    assert list(parse_text(found)) == list(parse_text(expected))
    # Line by line it is the same but for how a number is written.
    assert [line.rpartition(" ")[0] for line in found.split("\n")] == [
        line.rpartition(" ")[0] for line in expected.split("\n")
    ]


@given(any_metrics())
def test_openmetrics_says_what_prometheus_clients_encoder_says(metrics: list[Metric]) -> None:
    registry = Families(map(client_family, metrics))
    expected = client_openmetrics.generate_latest(registry, version="1.0.0").decode()  # type: ignore[no-untyped-call]
    found = render(metrics, Format.OPENMETRICS).body.decode()
    assert list(parse_openmetrics(found)) == list(parse_openmetrics(expected))


@given(st.floats())
def test_numbers_are_written_as_go_writes_them(number: float) -> None:
    assert float(go_float(number)) == number or math.isnan(number)
    if abs(number) < 1e21 or not math.isfinite(number):  # there prometheus_client's own is Go's, too
        assert go_float(number) in (floatToGoString(number), floatToGoString(-number).join(["-", ""]))


@pytest.mark.parametrize(
    ("number", "expected"),
    [(1e5, "100000.0"), (1e6, "1e+06"), (1234567.5, "1.2345675e+06"), (1e16, "1e+16"), (-3e7, "-3e+07")],
)
def test_some_numbers(number: float, expected: str) -> None:
    assert go_float(number) == expected


def exemplars_of(metric: Metric) -> dict[tuple[str, str], ClientExemplar]:
    page = render([metric], Format.OPENMETRICS).body.decode()
    assert " # {" not in render([metric], Format.TEXT).body.decode()
    return {
        (sample.name, sample.labels.get("le", "")): sample.exemplar
        for family in parse_openmetrics(page)
        for sample in family.samples
        if sample.exemplar
    }


def test_an_exemplar_of_an_exponential_histogram_is_in_its_classic_bucket() -> None:
    at = 1_700_000_000_123_000_000
    exemplars = (Exemplar(0.13, at, TRACE), Exemplar(0.2, 0, TRACE), Exemplar(99.0, at, ()))
    point = ExponentialHistogram((), 3, -24, (5, 0, 7), 0, 1.0, 0.1, 0.2, exemplars=exemplars)
    found = exemplars_of(Metric("latency", Kind.EXPONENTIAL_HISTOGRAM, "s", "", (point,)))
    assert {
        key: (one.labels, one.value, one.timestamp and float(one.timestamp)) for key, one in found.items()
    } == {
        ("latency_seconds_bucket", "0.17677669529663687"): (dict(TRACE), 0.13, 1_700_000_000.123),
        ("latency_seconds_bucket", "0.25"): (dict(TRACE), 0.2, None),
        ("latency_seconds_bucket", "+Inf"): ({}, 99.0, 1_700_000_000.123),
    }


def test_a_sum_below_zero_is_left_out_for_readers_refuse_the_page() -> None:
    # It shows that the first bucket has values below zero, or that the sender cannot add.
    for total in (-0.5, -math.inf):
        points = Histogram((), (0.0, 1.0), (1, 2, 3), total), Histogram((), (), (3,), total)
        exponential = ExponentialHistogram((), 0, 0, (3,), 0, total, 1.0, 2.0)
        for kind, its in (
            (Kind.HISTOGRAM, points[0]),
            (Kind.HISTOGRAM, points[1]),
            (Kind.EXPONENTIAL_HISTOGRAM, exponential),
        ):
            page = render([Metric("h", kind, "", "", (its,))], Format.OPENMETRICS).body.decode()
            (family,) = parse_openmetrics(page)
            assert {sample.name for sample in family.samples} == {"h_bucket"}


def test_an_exemplar_keeps_to_128_characters() -> None:
    # 63 are taken by the ids and their names.
    for length, kept in ((61, True), (62, False)):
        attributes = (*TRACE, ("user", "ü" * length))
        number = Number((), 1.0, 0, Exemplar(1.0, 0, attributes))
        [found] = exemplars_of(Metric("c", Kind.COUNTER, "", "", (number,))).values()
        assert ("user" in found.labels) is kept
        assert found.labels.items() >= dict(TRACE).items()
