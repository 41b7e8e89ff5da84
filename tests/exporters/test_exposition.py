"""Pages: what is on them, read back by prometheus_client's own parsers; and what is written anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.samples import Sample

from tidegauge.exporters.exposition import BLOCK_POINTS, Format, Renderer, render, renderer
from tidegauge.exporters.families import Family
from tidegauge.exporters.text_format import Text
from tidegauge.metric import Attributes, ExponentialHistogram, Histogram, Kind, Metric, Number, Point, Summary
from tidegauge.snapshot import Snapshots
from tidegauge.stats.exponential import explicit_bounds

NASTY = 'quote " backslash \\ newline \n tab \t unicode ü 漢 🌊 } { , ='


def samples(form: Format, *metrics: Metric) -> list[Sample]:
    page = render(metrics, form).body.decode()
    if form is Format.OPENMETRICS:
        assert page.endswith("# EOF\n")
        return [sample for family in parse_openmetrics(page) for sample in family.samples]
    assert "# EOF" not in page
    return [sample for family in parse_text(page) for sample in family.samples]


def value(found: list[Sample], name: str, **labels: str) -> float:
    matches = [sample.value for sample in found if sample.name == name and sample.labels == labels]
    assert len(matches) == 1, matches
    return float(matches[0])


def gauge(name: str, number: float, attributes: Attributes = (), unit: str = "") -> Metric:
    return Metric(name, Kind.GAUGE, unit, "A gauge.", (Number(attributes, number),))


def counter(name: str, number: float) -> Metric:
    return Metric(name, Kind.COUNTER, "{item}", "A counter.", (Number((), number),))


def exponential(name: str = "model.inference.latency", **changes: object) -> Metric:
    fields: dict[str, object] = {
        "attributes": (("operation", "predict"),),
        "scale": 3,
        "offset": -24,
        "counts": (5, 0, 7),
        "zero_count": 2,
        "sum": 1.75,
        "min": 0.0,
        "max": 0.16,
    }
    point = ExponentialHistogram(**(fields | changes))  # type: ignore[arg-type]
    return Metric(name, Kind.EXPONENTIAL_HISTOGRAM, "s", "Latency.", (point,), 1)


TEXTS = (Format.TEXT, Format.OPENMETRICS)


@pytest.fixture(params=TEXTS)
def form(request: pytest.FixtureRequest) -> Format:
    return request.param


def test_nothing(form: Format) -> None:
    assert samples(form) == []


@pytest.mark.parametrize("number", [0.0, -1.5, 1e-300, 1e300, 2.0**63, 0.1, math.inf, -math.inf, math.nan])
def test_values_come_back(form: Format, number: float) -> None:
    found = value(samples(form, gauge("a.b", number)), "a_b")
    assert found == number or (math.isnan(found) and math.isnan(number))


def test_labels_come_back(form: Format) -> None:
    found = samples(form, gauge("a", 1.0, (("what.ever", NASTY), ("none", ""))))
    assert [sample.labels for sample in found] == [{"what_ever": NASTY}]


@given(st.sampled_from(TEXTS), st.dictionaries(st.sampled_from("abcde"), st.text(min_size=1)))
def test_any_label_comes_back(form: Format, pairs: dict[str, str]) -> None:
    attributes = tuple(pairs.items())
    assert [sample.labels for sample in samples(form, gauge("a", 1.0, attributes))] == [pairs]


def test_counters(form: Format) -> None:
    found = samples(form, counter("tidegauge.received", 1e15 + 1))
    assert [(sample.name, sample.value) for sample in found] == [("tidegauge_received_total", 1e15 + 1)]


@pytest.mark.parametrize("number", [-1.0, math.nan])
def test_a_counter_that_cannot_be_is_left_out(form: Format, number: float) -> None:
    assert samples(form, counter("a", number)) == []


def test_unit_and_type_are_told() -> None:
    page = render([exponential()], Format.OPENMETRICS).body.decode()
    assert "# TYPE model_inference_latency_seconds histogram\n" in page
    assert "# UNIT model_inference_latency_seconds seconds\n" in page
    assert "_created" not in page
    text = render([counter("a.b", 1.0)], Format.TEXT).body.decode()
    assert "# TYPE a_b_total counter\n" in text


def test_explicit_histogram(form: Format) -> None:
    point = Histogram((("output", "score"),), (0.0, 0.5, 1.0), (1, 2, 3, 4), 6.5)
    metric = Metric("prediction.histogram", Kind.HISTOGRAM, "", "Predictions.", (point,))
    found = samples(form, metric)
    name = "prediction_histogram"
    for le, expected in (("0.0", 1), ("0.5", 3), ("1.0", 6), ("+Inf", 10)):
        assert value(found, f"{name}_bucket", output="score", le=le) == expected
    assert value(found, f"{name}_count", output="score") == 10
    assert value(found, f"{name}_sum", output="score") == 6.5


def test_values_below_zero_are_counted_and_not_summed(form: Format) -> None:
    metric = exponential(negative_offset=0, negative_counts=(3, 0, 1), sum=-9.0)
    found = samples(form, metric)
    assert {sample.name for sample in found} == {"model_inference_latency_seconds_bucket"}
    name = "model_inference_latency_seconds_bucket"
    assert value(found, name, operation="predict", le=repr(explicit_bounds()[0])) == 2 + 4
    assert value(found, name, operation="predict", le="+Inf") == 14 + 4


def test_what_is_not_seconds_has_bounds_of_its_own(form: Format) -> None:
    point = ExponentialHistogram((), 0, 6, (3, 4), 1, 900.0, 65.0, 255.0)
    metric = Metric("tokens", Kind.EXPONENTIAL_HISTOGRAM, "{token}", "", (point,))
    found = samples(form, metric)
    for le, expected in (("64.0", 1), ("128.0", 4), ("256.0", 8), ("1.048576e+06", 8), ("+Inf", 8)):
        assert value(found, "tokens_bucket", le=le) == expected
    assert value(found, "tokens_count") == 8


def test_summaries(form: Format) -> None:
    point = Summary((("k", "v"),), 4, 6.5, ((0.5, 1.0), (0.99, 3.0), (1.0, math.nan)))
    found = samples(form, Metric("s", Kind.SUMMARY, "", "", (point,)))
    assert value(found, "s", k="v", quantile="0.5") == 1.0
    assert value(found, "s", k="v", quantile="0.99") == 3.0
    assert math.isnan(value(found, "s", k="v", quantile="1.0"))
    assert (value(found, "s_count", k="v"), value(found, "s_sum", k="v")) == (4, 6.5)


def test_a_summary_of_what_is_below_zero_keeps_its_count(form: Format) -> None:
    point = Summary((), 4, -6.5, ((0.5, -1.0),))
    found = samples(form, Metric("s", Kind.SUMMARY, "", "", (point,)))
    assert [(sample.name, sample.value) for sample in found] == [("s_count", 4)]


def test_a_sum_that_may_fall_is_not_told(form: Format) -> None:
    point = Histogram((), (-1.0, 1.0), (1, 2, 3), -4.0)
    found = samples(form, Metric("p", Kind.HISTOGRAM, "", "", (point,)))
    assert {sample.name for sample in found} == {"p_bucket"}
    assert value(found, "p_bucket", le="+Inf") == 6


def test_a_histogram_without_bounds(form: Format) -> None:
    found = samples(form, Metric("p", Kind.HISTOGRAM, "", "", (Histogram((), (), (3,), 1.0),)))
    assert value(found, "p_bucket", le="+Inf") == 3


def test_an_attribute_called_le_does_not_hide_the_bound(form: Format) -> None:
    metric = exponential(attributes=(("le", "mine"),))
    found = samples(form, metric)
    assert value(found, "model_inference_latency_seconds_bucket", exported_le="mine", le="+Inf") == 14


def test_exponential_histogram(form: Format) -> None:
    # scale 3, offset -24: the buckets (2**-3, 2**-2.875], .. (2**-2.75, 2**-2.625]
    found = samples(form, exponential())
    name = "model_inference_latency_seconds"
    for power, expected in ((-3.5, 2), (-3, 2), (-2.5, 14), (5, 14)):
        bound = repr(explicit_bounds()[int(2 * power) + 26])
        assert value(found, f"{name}_bucket", operation="predict", le=bound) == expected
    assert value(found, f"{name}_bucket", operation="predict", le="+Inf") == 14
    assert value(found, f"{name}_sum", operation="predict") == 1.75


def test_huge_counts(form: Format) -> None:
    found = samples(form, exponential(counts=(2**62, 2**62), zero_count=0))
    name = "model_inference_latency_seconds_count"
    assert value(found, name, operation="predict") == float(2**63)


def test_one_name_two_types_cannot_end_the_scrape(form: Format) -> None:
    metrics = (gauge("a.b", 1.0), exponential("a_b"), counter("a.b", 2.0), gauge("c", 3.0))
    page = render(metrics, form)
    assert len(page.left_out) == 1  # the histogram's unit sets it apart: a_b_seconds
    assert page.left_out[0].startswith("a.b: a_b is taken")
    found = samples(form, *metrics)
    assert value(found, "a_b") == 1.0
    assert value(found, "c") == 3.0


def test_a_gauge_cannot_take_a_histograms_sample_name(form: Format) -> None:
    name = "model.inference.latency.seconds.count"
    page = render([exponential(), gauge(name, 1.0)], form)
    assert page.left_out == (
        f"{name}: model_inference_latency_seconds_count is taken by model.inference.latency",
    )


def test_one_name_and_type_is_one_family(form: Format) -> None:
    metrics = (
        gauge("a.b", 1.0, (("k", "1"),)),
        gauge("c", 2.0),
        gauge("a_b", 3.0, (("k", "2"),)),
        gauge("a-b", 4.0, (("k", "1"),)),
    )
    found = [(sample.name, sample.labels, sample.value) for sample in samples(form, *metrics)]
    assert found == [("a_b", {"k": "1"}, 1.0), ("a_b", {"k": "2"}, 3.0), ("c", {}, 2.0)]


def test_what_a_sender_made_never_joins_or_displaces_the_agents_own(form: Format) -> None:
    own = (counter("tidegauge.received", 3.0), exponential())
    theirs = tuple(
        msgspec.structs.replace(metric, received=True)
        for metric in (
            Metric("tidegauge.received", Kind.COUNTER, "", "", (Number((("job", "shop"),), 9.0),)),
            gauge("tidegauge.received.total", 9.0),
            exponential("model_inference_latency_seconds", attributes=(("job", "shop"),)),
            exponential("model.inference.latency", attributes=(("operation", "predict"),), counts=(9,)),
            gauge("free", 1.0),
        )
    )
    snapshots = Snapshots()
    snapshots.publish("statistics", theirs)  # however early it comes
    snapshots.publish("telemetry", own)
    together = snapshots.latest().metrics
    assert samples(form, *together) == samples(form, *own, theirs[-1])
    assert len(render(together, form).left_out) == 4


def test_a_point_of_the_wrong_kind_is_left_out(form: Format) -> None:
    wrong = Metric("w", Kind.HISTOGRAM, "", "", (Number((), 1.0),))
    page = render([wrong, gauge("a", 1.0)], form)
    assert page.left_out == ("w: a Number is no point of a histogram",)
    assert value(samples(form, wrong, gauge("a", 1.0)), "a") == 1.0


def test_bounds_that_do_not_ascend_leave_their_metric_out_and_no_other(form: Format) -> None:
    for wrong in (Histogram((), (1.0, 1.0), (1, 2, 3), 1.0), Histogram((), (1.0,), (1, 2, 3), 1.0)):
        metrics = (Metric("w", Kind.HISTOGRAM, "", "", (wrong,)), gauge("a", 1.0))
        assert len(render(metrics, form).left_out) == 1
        assert [sample.name for sample in samples(form, *metrics)] == ["a"]


def test_two_attributes_that_become_exported_le_are_joined(form: Format) -> None:
    found = samples(form, exponential(attributes=(("exported_le", "theirs"), ("le", "mine"))))
    name = "model_inference_latency_seconds_count"
    assert value(found, name, exported_le="mine;theirs") == 14


def test_help_is_escaped(form: Format) -> None:
    metric = Metric("a", Kind.GAUGE, "", 'one\ntwo \\ "three"', (Number((), 1.0),))
    page = render([metric], form).body.decode()
    parse = parse_openmetrics if form is Format.OPENMETRICS else parse_text
    assert [family.documentation for family in parse(page)] == ['one\ntwo \\ "three"']


class Counting(Text):
    """Counts what it is asked to write."""

    def __init__(self) -> None:
        self.keys = 0
        self.points_written = 0

    def key(self, attributes: Attributes, type_: str) -> str:
        self.keys += 1
        return super().key(attributes, type_)

    def points(self, family: Family, metric: Metric, points: Sequence[tuple[str, Point]]) -> bytes:
        self.points_written += len(points)
        return super().points(family, metric, points)


def many(count: int, value: float = 1.0, first: int = 0) -> Metric:
    """A gauge of so many series, none of whose objects any other has."""
    points = tuple(Number((("k", f"{number:06}"),), value) for number in range(first, first + count))
    return Metric("a", Kind.GAUGE, "", "", points)


def test_equal_points_are_not_written_again() -> None:
    encoder = Counting()
    pages = Renderer(encoder)
    size = 3 * BLOCK_POINTS
    first = pages.render([many(size), exponential()])
    assert (encoder.keys, encoder.points_written) == (size + 1, size + 1)
    again = pages.render([many(size), exponential()])
    assert (encoder.keys, encoder.points_written) == (size + 1, size + 1)
    assert [one is other for one, other in zip(first.pieces, again.pieces, strict=True)].count(False) == 2
    # Other values are written behind the labels there are; in one block of the three here.
    points = list(many(size).points)
    points[7] = msgspec.structs.replace(points[7], value=2.0)
    changed = pages.render([msgspec.structs.replace(many(size), points=tuple(points)), exponential()])
    assert encoder.keys == size + 1
    assert encoder.points_written == size + 1 + BLOCK_POINTS
    assert changed.body == first.body.replace(b'a{k="000007"} 1.0', b'a{k="000007"} 2.0')


@st.composite
def histories(draw: Callable[..., Any]) -> list[list[Metric]]:
    """Some snapshots, each an edit of the one before: points change, come and go, metrics too."""
    value = st.sampled_from([0.0, 1.0, 2.5, -1.0, math.nan, math.inf])
    attributes = st.sampled_from([((key, text),) for key in ("k", "K.", "k.") for text in "abc"] + [()])
    number = st.builds(Number, attributes, value)
    counts = st.lists(st.integers(0, 3), max_size=3).map(tuple)
    bell = st.builds(
        lambda at, counts, sum_: ExponentialHistogram(at, 2, 1, counts, 1, sum_, 0.0, 1.0),
        attributes,
        counts,
        st.sampled_from([1.0, math.nan]),
    )
    metric = st.one_of(
        st.builds(
            lambda name, kind, points: Metric(name, kind, "", "", tuple(points)),
            st.sampled_from(["a", "a.b", "a_b"]),
            st.sampled_from([Kind.GAUGE, Kind.COUNTER]),
            st.lists(number, max_size=5),
        ),
        st.builds(
            lambda name, points: Metric(name, Kind.EXPONENTIAL_HISTOGRAM, "", "", tuple(points)),
            st.sampled_from(["a", "h"]),
            st.lists(st.one_of(bell, bell, number), max_size=3),
        ),
    )
    snapshots = [draw(st.lists(metric, max_size=4))]
    for _ in range(draw(st.integers(1, 3))):
        metrics = list(snapshots[-1])
        for _ in range(draw(st.integers(0, 2))):
            place = draw(st.integers(0, len(metrics)))
            metrics[place : place + draw(st.integers(0, 1))] = draw(st.lists(metric, max_size=1))
        snapshots.append(metrics)
    return snapshots


@given(histories(), st.sampled_from(Format))
def test_a_page_does_not_depend_on_those_before_it(snapshots: list[list[Metric]], form: Format) -> None:
    pages = renderer(form)
    for metrics in snapshots:
        found, expected = pages.render(metrics), render(metrics, form)
        assert found.body == expected.body
        assert found.left_out == expected.left_out
        # Equal points that are other objects change nothing.
        copies = [
            msgspec.structs.replace(metric, points=tuple(map(msgspec.structs.replace, metric.points)))
            for metric in metrics
        ]
        assert pages.render(copies).pieces == found.pieces


def test_a_duplicate_comes_to_light_when_the_first_goes() -> None:
    pages = renderer(Format.TEXT)
    one, two = gauge("a.b", 1.0, (("k", "1"),)), gauge("a_b", 2.0, (("k", "1"),))
    assert b'a_b{k="1"} 1.0\n' in pages.render([one, two]).body
    body = pages.render([msgspec.structs.replace(one, points=()), two]).body
    assert b'a_b{k="1"} 2.0\n' in body
    assert b'a_b{k="1"} 1.0\n' in pages.render([one, two]).body


def test_twins_are_found_across_blocks() -> None:
    first, second = many(BLOCK_POINTS + 1), many(BLOCK_POINTS, 2.0, first=BLOCK_POINTS)
    body = render([first, second], Format.TEXT).body
    assert body.count(b"\n") == 2 + 2 * BLOCK_POINTS
    assert body.count(b" 2.0\n") == BLOCK_POINTS - 1


def test_the_last_page_is_all_that_is_kept() -> None:
    pages = renderer(Format.TEXT)
    for number in range(5):
        pages.render([many(10, first=number * 10), gauge(f"g{number}", 1.0)])
    assert len(pages._known) == 2
    [part] = pages._known["a", "gauge"]
    assert [len(block.points) for block in part.blocks] == [10]


def test_older_points_that_are_equal_are_let_go() -> None:
    pages = renderer(Format.TEXT)
    pages.render([many(3)])
    newer = many(3)
    pages.render([newer])
    [part] = pages._known["a", "gauge"]
    assert part.metric is newer
    assert all(one is other for one, other in zip(part.blocks[0].points, newer.points, strict=True))
