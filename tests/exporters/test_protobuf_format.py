"""The protobuf exposition, read by classes that protoc made."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import UInt64Value
from hypothesis import given
from hypothesis import strategies as st

from tidegauge.exporters.buckets import SECONDS, classic_bounds, classic_counts
from tidegauge.exporters.exposition import Format, render
from tidegauge.exporters.protobuf_format import varint, zigzag
from tidegauge.metric import (
    Exemplar,
    ExponentialHistogram,
    Histogram,
    Kind,
    Metric,
    Number,
    Summary,
)

Read = Callable[[bytes], list[Any]]
TRACE = (("trace_id", "4bf92f3577b34da6a3ce929d0e0e4736"), ("span_id", "00f067aa0ba902b7"))
START_NS = 1_700_000_000_000_000_001


def families(read: Read, *metrics: Metric) -> dict[str, Any]:
    page = render(metrics, Format.PROTOBUF)
    assert page.left_out == ()
    return {family.name: family for family in read(page.body)}


def labels(message: Any) -> dict[str, str]:
    return {pair.name: pair.value for pair in message.label}


def time_ns(stamp: Any) -> int:
    return int(stamp.seconds) * 10**9 + int(stamp.nanos)


@given(st.integers(0, 2**64 - 1))
def test_varints(number: int) -> None:
    assert varint(number) == UInt64Value(value=number).SerializeToString()[1:] or number == 0


@pytest.mark.parametrize("number", [-1, 2**64])
def test_what_is_no_varint_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match="64 bits"):
        varint(number)


@given(st.integers(-(2**63), 2**63 - 1))
def test_zigzag(number: int) -> None:
    assert zigzag(number) == varint((number << 1 ^ number >> 63) & 2**64 - 1)


@pytest.mark.parametrize("number", [0.0, -1.5, 1e300, math.inf, math.nan])
def test_gauges(read_families: Read, number: float) -> None:
    text = 'ü "漢" \n'
    points = (Number((("b", text), ("a.x", "1")), number), Number((), 2.0))
    [family] = families(read_families, Metric("q", Kind.GAUGE, "s", "What\nit is.", points)).values()
    assert (family.name, family.help, family.unit, family.type) == ("q_seconds", "What\nit is.", "seconds", 1)
    first, second = family.metric
    assert labels(first) == {"a_x": "1", "b": text}
    assert first.gauge.value == number or math.isnan(number)
    assert labels(second) == {}
    assert second.gauge.value == 2.0


def test_counters_carry_their_start_and_an_exemplar(read_families: Read) -> None:
    exemplar = Exemplar(3.0, START_NS + 7, (*TRACE, ("user.id", "x" * 66)))
    points = (
        Number((("k", "1"),), 5.0, START_NS + 1, exemplar),
        Number((), 6.0),
        Number((("k", "2"),), -1.0),
    )
    metric = Metric("sent", Kind.COUNTER, "By", "", points, START_NS)
    family = families(read_families, metric)["sent_bytes_total"]
    assert (family.type, family.unit) == (0, "bytes")
    first, second = (one.counter for one in family.metric)  # the negative one is left out
    assert (first.value, second.value) == (5.0, 6.0)
    assert time_ns(first.start_timestamp) == START_NS + 1
    assert time_ns(second.start_timestamp) == START_NS
    assert labels(first.exemplar) == dict(TRACE)  # user_id would exceed 128 characters
    assert (first.exemplar.value, time_ns(first.exemplar.timestamp)) == (3.0, START_NS + 7)
    assert not second.HasField("exemplar")


def test_explicit_histograms(read_families: Read) -> None:
    exemplar = Exemplar(0.7, 0, TRACE)
    point = Histogram((("le", "mine"),), (0.0, 0.5, 1.0), (1, 2, 3, 4), 6.5, START_NS, (exemplar,))
    family = families(read_families, Metric("p", Kind.HISTOGRAM, "", "", (point,)))["p"]
    [metric] = family.metric
    assert labels(metric) == {"exported_le": "mine"}
    found = metric.histogram
    assert [(one.cumulative_count, one.upper_bound) for one in found.bucket] == [
        (1, 0.0),
        (3, 0.5),
        (6, 1.0),
        (10, math.inf),
    ]
    assert (found.sample_count, found.sample_sum, time_ns(found.start_timestamp)) == (10, 6.5, START_NS)
    assert [one.HasField("exemplar") for one in found.bucket] == [False, False, True, False]
    assert not found.bucket[2].exemplar.HasField("timestamp")
    assert not found.HasField("schema")


def test_exponential_histograms_are_native_and_classic_at_once(read_families: Read) -> None:
    exemplars = (Exemplar(0.13, START_NS, TRACE), Exemplar(0.14, 0, TRACE))
    point = ExponentialHistogram(
        (("operation", "predict"),),
        3,
        -24,
        (5, 0, 7, 0, 0, 0, 1),
        2,
        1.75,
        -4.0,
        0.2,
        negative_offset=15,
        negative_counts=(3, 4),
        zero_threshold=1e-6,
        start_ns=START_NS,
        exemplars=exemplars,
    )
    metric = Metric("latency", Kind.EXPONENTIAL_HISTOGRAM, "s", "", (point,))
    [found] = [one.histogram for one in families(read_families, metric)["latency_seconds"].metric]
    assert (found.sample_count, found.sample_sum, found.schema) == (22, 1.75, 3)
    assert (found.zero_threshold, found.zero_count) == (1e-6, 2)
    assert [(span.offset, span.length) for span in found.positive_span] == [(-23, 3), (3, 1)]
    assert list(found.positive_delta) == [5, -5, 7, -6]
    assert [(span.offset, span.length) for span in found.negative_span] == [(16, 2)]
    assert list(found.negative_delta) == [3, 1]
    assert time_ns(found.start_timestamp) == START_NS
    # Native exemplars need a time; classic ones do not.
    assert [one.value for one in found.exemplars] == [0.13]
    assert [one.cumulative_count for one in found.bucket] == classic_counts(point, SECONDS)
    assert [one.upper_bound for one in found.bucket] == [*classic_bounds(SECONDS), math.inf]
    [bucket] = [one for one in found.bucket if one.HasField("exemplar")]
    assert bucket.exemplar.value == 0.13
    assert bucket.upper_bound == pytest.approx(2**-2.5)


def test_an_empty_exponential_histogram_is_native_still(read_families: Read) -> None:
    point = ExponentialHistogram((), 8, 0, (), 0, 0.0, math.inf, -math.inf)
    metric = Metric("latency", Kind.EXPONENTIAL_HISTOGRAM, "s", "", (point,))
    [found] = [one.histogram for one in families(read_families, metric)["latency_seconds"].metric]
    assert [(span.offset, span.length) for span in found.positive_span] == [(0, 0)]
    assert found.zero_threshold == 1e-128
    assert {one.cumulative_count for one in found.bucket} == {0}


def test_a_histogram_too_coarse_to_be_native_is_classic(read_families: Read) -> None:
    point = ExponentialHistogram((), -5, 0, (3,), 0, 0.0, 2.0, 3.0)
    metric = Metric("latency", Kind.EXPONENTIAL_HISTOGRAM, "s", "", (point,))
    [found] = [one.histogram for one in families(read_families, metric)["latency_seconds"].metric]
    assert not found.HasField("schema")
    assert found.bucket[-1].cumulative_count == 3


def test_summaries(read_families: Read) -> None:
    point = Summary((("quantile", "mine"),), 4, 6.5, ((0.5, 1.0), (0.99, 3.0)), START_NS)
    family = families(read_families, Metric("s", Kind.SUMMARY, "", "", (point,)))["s"]
    [metric] = family.metric
    assert labels(metric) == {"exported_quantile": "mine"}
    found = metric.summary
    assert (found.sample_count, found.sample_sum, family.type) == (4, 6.5, 2)
    assert [(one.quantile, one.value) for one in found.quantile] == [(0.5, 1.0), (0.99, 3.0)]
    assert time_ns(found.start_timestamp) == START_NS


def test_a_count_that_does_not_fit_leaves_its_metric_out_and_no_other(read_families: Read) -> None:
    huge = Metric("h", Kind.HISTOGRAM, "", "", (Histogram((), (), (2**64,), 1.0),))
    page = render([huge, Metric("g", Kind.GAUGE, "", "", (Number((), 1.0),))], Format.PROTOBUF)
    assert page.left_out == (f"h: {2**64} does not fit into 64 bits",)
    assert [family.name for family in read_families(page.body)] == ["g"]
