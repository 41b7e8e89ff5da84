"""The exposition, read back by prometheus_client's own parsers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.samples import Sample

from tidegauge.exporters.exposition import Format, half_power_counts, render
from tidegauge.metric import Attributes, ExponentialHistogram, Histogram, Kind, Metric, Number
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


@pytest.fixture(params=Format)
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


@given(st.sampled_from(Format), st.dictionaries(st.sampled_from("abcde"), st.text(min_size=1)))
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


@given(
    st.lists(st.floats(1e-6, 1e3), max_size=60),
    st.integers(0, 3),
    st.integers(1, 8),
)
def test_cumulative_counts_are_exact_at_scale_one_and_above(
    observations: list[float], zeros: int, scale: int
) -> None:
    # Bucket mid-points stand for the observations, so that no rounding at a bound is at issue.
    indices = [math.floor(math.log2(number) * 2**scale) for number in observations]
    exact = np.array([2.0 ** ((index + 0.5) / 2**scale) for index in indices] + [0.0] * zeros)
    point = ExponentialHistogram((), scale, *dense(indices), zeros, 0.0, 0.0, 0.0)
    expected = [int(np.count_nonzero(exact <= 2.0 ** (k / 2))) for k in range(-26, 11)]
    expected.append(len(exact))
    assert half_power_counts(point) == expected


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=60), st.integers(-4, 0))
def test_below_scale_one_no_bound_counts_what_may_lie_above_it(observations: list[float], scale: int) -> None:
    indices = [math.floor(math.log2(number) * 2.0**scale) for number in observations]
    point = ExponentialHistogram((), scale, *dense(indices), 0, 0.0, 0.0, 0.0)
    upper = np.array([2.0 ** ((index + 1) * 2.0**-scale) for index in indices])
    expected = [int(np.count_nonzero(upper <= 2.0 ** (k / 2))) for k in range(-26, 11)]
    expected.append(len(observations))
    assert half_power_counts(point) == expected


def dense(indices: list[int]) -> tuple[int, tuple[int, ...]]:
    if not indices:
        return 0, ()
    counts = np.bincount(np.array(indices) - min(indices))
    return min(indices), tuple(map(int, counts))


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


def test_a_point_of_the_wrong_kind_is_left_out(form: Format) -> None:
    wrong = Metric("w", Kind.HISTOGRAM, "", "", (Number((), 1.0),))
    page = render([wrong, gauge("a", 1.0)], form)
    assert page.left_out == ("w: a Number is no point of a histogram",)
    assert value(samples(form, wrong, gauge("a", 1.0)), "a") == 1.0


def test_help_is_escaped(form: Format) -> None:
    metric = Metric("a", Kind.GAUGE, "", 'one\ntwo \\ "three"', (Number((), 1.0),))
    page = render([metric], form).body.decode()
    parse = parse_openmetrics if form is Format.OPENMETRICS else parse_text
    assert [family.documentation for family in parse(page)] == ['one\ntwo \\ "three"']
