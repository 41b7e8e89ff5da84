"""Received metrics against a slow, exact account of the same points."""

from __future__ import annotations

import logging
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue

from tidegauge import config
from tidegauge.batch import Otlp, Points, Signal
from tidegauge.identity import OVERFLOW
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
from tidegauge.processors.received import Received
from tidegauge.units import Duration
from tidegauge.wire.counts import count_points
from tidegauge.wire.metrics import scan

SEED = np.uint64(11)
DELTA, CUMULATIVE = 1, 2
MINUTE = 60 * 10**9
START_NS = 1_000_000


def received(**settings_: Any) -> Received:
    return Received(config.ReceivedMetrics(**settings_), start_ns=START_NS)


def put(attributes: Any, pairs: dict[str, Any]) -> None:
    for key, value in pairs.items():
        kind = {str: "string", bool: "bool", int: "int", float: "double", bytes: "bytes"}[type(value)]
        setattr(attributes.add(key=key).value, f"{kind}_value", value)


class Sender:
    """Makes requests of one resource and scope; `send` gives them to a processor."""

    def __init__(self, **resource: Any) -> None:
        self.resource = {key.replace("__", "."): value for key, value in resource.items()}
        self.scope: dict[str, Any] = {}
        self.request = ExportMetricsServiceRequest()
        self.metrics: dict[tuple[Any, ...], Any] = {}
        self.sent = 0

    def metric(self, kind: str, name: str = "m", unit: str = "", description: str = "", **about: Any) -> Any:
        key = (kind, name, unit, description, *sorted(about.items()))
        if key not in self.metrics:
            if not self.request.resource_metrics:
                resource = self.request.resource_metrics.add()
                put(resource.resource.attributes, self.resource)
                scope = resource.scope_metrics.add(schema_url=self.scope.get("schema_url", ""))
                scope.scope.name = self.scope.get("name", "")
                scope.scope.version = self.scope.get("version", "")
                put(scope.scope.attributes, self.scope.get("attributes", {}))
            scope = self.request.resource_metrics[0].scope_metrics[0]
            metric = scope.metrics.add(name=name, unit=unit, description=description)
            data = getattr(metric, kind)
            data.SetInParent()
            for field, value in about.items():
                setattr(data, field, value)
            self.metrics[key] = data
        return self.metrics[key]

    def point(self, metric: Any, time: int, start: int = 0, **fields: Any) -> Any:
        pairs = fields.pop("attributes", {})
        point = metric.data_points.add(time_unix_nano=time, start_time_unix_nano=start, **fields)
        put(point.attributes, pairs)
        return point

    def counter(
        self, time: int, value: float, start: int = 1, temporality: int = CUMULATIVE, **more: Any
    ) -> Any:
        about = {key: more.pop(key) for key in ("name", "unit") if key in more}
        monotonic = more.pop("monotonic", True)
        metric = self.metric("sum", aggregation_temporality=temporality, is_monotonic=monotonic, **about)
        case = "as_int" if isinstance(value, int) else "as_double"
        return self.point(metric, time, start, **{case: value}, **more)

    def gauge(self, time: int, value: float, **more: Any) -> Any:
        about = {key: more.pop(key) for key in ("name", "unit") if key in more}
        return self.point(self.metric("gauge", **about), time, as_double=value, **more)

    def histogram(
        self,
        time: int,
        counts: list[int],
        bounds: list[float],
        start: int = 1,
        temporality: int = DELTA,
        **more: Any,
    ) -> Any:
        metric = self.metric("histogram", aggregation_temporality=temporality)
        return self.point(
            metric, time, start, count=sum(counts), bucket_counts=counts, explicit_bounds=bounds, **more
        )

    def exponential(
        self,
        time: int,
        scale: int,
        positive: tuple[int, list[int]] = (0, []),
        negative: tuple[int, list[int]] = (0, []),
        zeros: int = 0,
        start: int = 1,
        temporality: int = DELTA,
        **more: Any,
    ) -> Any:
        metric = self.metric("exponential_histogram", aggregation_temporality=temporality)
        point = self.point(metric, time, start, scale=scale, zero_count=zeros, **more)
        point.count = sum(positive[1]) + sum(negative[1]) + zeros
        for side, (offset, counts) in ((point.positive, positive), (point.negative, negative)):
            side.offset = offset
            side.bucket_counts.extend(counts)
        return point

    def batch(self) -> Points:
        raw = self.request.SerializeToString()
        self.sent += count_points(raw)
        self.request, self.metrics = ExportMetricsServiceRequest(), {}
        return Points("otlp_grpc", raw, scan(raw, count_points(raw), SEED))

    def send(self, processor: Received) -> dict[str, int]:
        return dict(processor.update(self.batch()))


def metrics(processor: Received, now_ns: int = START_NS) -> dict[str, Metric]:
    return {metric.name: metric for metric in processor.collect(now_ns)}


def points(processor: Received, name: str = "m", now_ns: int = START_NS) -> dict[Attributes, Any]:
    metric = metrics(processor, now_ns).get(name)
    return {point.attributes: point for point in metric.points} if metric else {}


def value(processor: Received, name: str = "m", now_ns: int = START_NS) -> Any:
    """The value of the only series."""
    [point] = points(processor, name, now_ns).values()
    return point.value


# What a metric becomes


@pytest.mark.parametrize(
    ("kind", "about", "fields", "becomes"),
    [
        ("gauge", {}, {"as_double": 1.5}, Kind.GAUGE),
        ("sum", {"aggregation_temporality": 2, "is_monotonic": True}, {"as_double": 1.5}, Kind.COUNTER),
        ("sum", {"aggregation_temporality": 1, "is_monotonic": True}, {"as_double": 1.5}, Kind.COUNTER),
        ("sum", {"aggregation_temporality": 2, "is_monotonic": False}, {"as_double": 1.5}, Kind.GAUGE),
        ("sum", {"aggregation_temporality": 1, "is_monotonic": False}, {"as_double": 1.5}, Kind.GAUGE),
    ],
)
def test_numbers_become_gauges_and_counters(
    kind: str, about: dict[str, Any], fields: dict[str, Any], becomes: Kind
) -> None:
    sender, processor = Sender(), received()
    sender.point(sender.metric(kind, "kpi.revenue", "EUR", "Sold.", **about), 5, 2, **fields)
    assert sender.send(processor) == {}
    start_ns = 2 if becomes is Kind.COUNTER else 0
    wanted = Metric("kpi.revenue", becomes, "EUR", "Sold.", (Number((), 1.5, start_ns),), received=True)
    assert metrics(processor)["kpi.revenue"] == wanted


def test_a_cumulative_histogram_is_as_it_was_sent() -> None:
    sender, processor = Sender(), received()
    sender.histogram(5, [1, 2, 3], [0.5, 0.9], temporality=CUMULATIVE, sum=4.5, min=0.1, max=1.0)
    sender.histogram(5, [4], [], temporality=CUMULATIVE, attributes={"model": "b"})
    only_count = sender.histogram(5, [], [], temporality=CUMULATIVE, attributes={"model": "c"})
    only_count.count = 7
    assert sender.send(processor) == {}
    found = points(processor)
    assert found[()] == Histogram((), (0.5, 0.9), (1, 2, 3), 4.5, 1)
    assert found[("model", "b"),].counts == (4,)
    assert math.isnan(found[("model", "b"),].sum)
    assert (found[("model", "c"),].bounds, found[("model", "c"),].counts) == ((), (7,))


def test_a_cumulative_exponential_histogram_is_as_it_was_sent() -> None:
    sender, processor = Sender(), received()
    sender.exponential(
        5,
        3,
        (-2, [1, 0, 2]),
        (4, [5]),
        zeros=2,
        temporality=CUMULATIVE,
        sum=-9.0,
        min=-2.0,
        max=1.25,
        zero_threshold=1e-9,
    )
    assert sender.send(processor) == {}
    assert points(processor)[()] == ExponentialHistogram(
        (), 3, -2, (1, 0, 2), 2, -9.0, -2.0, 1.25, 4, (5,), 1e-9, 1
    )


def test_a_summary_is_as_it_was_sent() -> None:
    sender, processor = Sender(), received()
    point = sender.point(sender.metric("summary"), 5, 1, count=3, sum=6.5)
    for quantile, its in ((0.9, 3.5), (0.5, 2.0)):
        point.quantile_values.add(quantile=quantile, value=its)
    assert sender.send(processor) == {}
    assert points(processor)[()] == Summary((), 3, 6.5, ((0.5, 2.0), (0.9, 3.5)), 1)


def test_other_signals_are_ignored() -> None:
    assert received().update(Otlp("otlp_grpc", Signal.LOGS, 3, 100)) == {}


# Labels


def test_labels_are_the_point_s_the_scope_s_and_job_and_instance() -> None:
    sender, processor = (
        Sender(service__name="scorer", service__namespace="shop", service__instance__id="i1"),
        received(),
    )
    sender.resource |= {"host.name": "node-7", "process.pid": 42}
    sender.scope = {"name": "kpi", "version": "2", "schema_url": "http://x", "attributes": {"team": "risk"}}
    sender.gauge(5, 1.0, attributes={"model": "fraud", "job": "mine", "empty": ""})
    assert sender.send(processor) == {}
    found = metrics(processor)
    [point] = found["m"].points
    target = {"job": "shop/scorer", "instance": "i1"}
    assert dict(point.attributes) == target | {
        "model": "fraud",
        "exported_job": "mine",
        "otel_scope_name": "kpi",
        "otel_scope_version": "2",
        "otel_scope_schema_url": "http://x",
        "otel_scope_team": "risk",
    }
    [info] = found["target_info"].points
    assert isinstance(info, Number)
    assert (dict(info.attributes), info.value) == (target | {"host.name": "node-7", "process.pid": "42"}, 1.0)
    assert found["target_info"].received


def test_one_target_info_for_each_target_and_none_without_a_name() -> None:
    processor = received()
    for resource in (
        {"service__name": "a", "service__version": "1"},
        {"service__name": "a", "service__version": "2"},  # the same target, come back as a newer version
        {"service__name": "b", "service__version": "1"},
        {"service__name": "c"},
        {"host__name": "nobody"},
    ):
        sender = Sender(**resource)
        sender.gauge(5, 1.0)
        assert sender.send(processor) == {}
    assert list(points(processor, "target_info")) == [
        (("job", "a"), ("service.version", "2")),
        (("job", "b"), ("service.version", "1")),
    ]


def test_values_that_are_no_strings_read_as_json() -> None:
    sender, processor = Sender(), received()
    point = sender.gauge(
        5,
        1.0,
        attributes={
            "b": True,
            "i": -7,
            "d": 1.5,
            "nan": math.nan,
            "inf": -math.inf,
            "raw": b"\x01\x02",
            "s": "ü",
        },
    )
    array = point.attributes.add(key="array").value.array_value.values
    array.add(string_value="a")
    array.add(int_value=1)
    array.add(double_value=math.inf)
    array.add(bytes_value=b"\x01")
    array.add()
    nested = array.add().kvlist_value.values
    nested.append(KeyValue(key="k"))
    nested[0].value.bool_value = False
    point.attributes.add(key="nothing")
    assert sender.send(processor) == {}
    [found] = points(processor)
    assert dict(found) == {
        "b": "true",
        "i": "-7",
        "d": "1.5",
        "nan": "NaN",
        "inf": "-Infinity",
        "raw": "AQI=",
        "s": "ü",
        "array": '["a",1,"Infinity","AQ==",null,{"k":false}]',
    }


def test_two_spellings_of_the_same_labels_are_one_series() -> None:
    sender, processor = Sender(), received()
    sender.counter(5, 1, temporality=DELTA, attributes={"a": "1", "b": 2})
    sender.counter(6, 2, temporality=DELTA, attributes={"b": "2", "a": "1", "c": ""})
    assert sender.send(processor) == {}
    assert value(processor) == 3.0


# Time


def test_cumulative_points_replace_each_other_and_older_ones_are_dropped() -> None:
    sender, processor = Sender(), received()
    for time, its in ((5, 10), (7, 12), (6, 11), (7, 13)):
        sender.counter(time, its)
        sender.gauge(time, float(its), name="g")
    assert sender.send(processor) == {"out_of_order": 2}
    assert (value(processor), value(processor, "g")) == (13.0, 13.0)


def test_a_new_start_is_a_reset_and_an_older_one_another_sender_s() -> None:
    sender, processor = Sender(), received()
    sender.counter(5, 10, start=2)
    sender.counter(7, 30, start=6)
    sender.counter(8, 11, start=2)
    assert sender.send(processor) == {"overlap": 1}
    [point] = points(processor).values()
    assert (point.value, point.start_ns) == (30.0, 6)


def test_a_counter_that_falls_was_reset_after_its_last_point() -> None:
    sender, processor = Sender(), received()
    for time, its in ((5, 10), (7, 3), (8, 4)):
        sender.counter(time, its, start=2)
    for time, counts in ((5, [1, 9]), (7, [2, 1]), (8, [2, 2])):
        sender.histogram(time, counts, [1.0], start=2, temporality=CUMULATIVE, attributes={"h": "1"})
    assert sender.send(processor) == {"name_conflict": 3}
    [point] = points(processor).values()
    assert (point.value, point.start_ns) == (4.0, 5)


def test_a_point_without_a_time_is_dropped() -> None:
    sender, processor = Sender(), received()
    sender.counter(0, 10)
    sender.gauge(0, 1.0, name="g")
    assert sender.send(processor) == {"untimed": 2}
    assert points(processor) == {}


def test_no_recorded_value_removes_the_series_until_the_next_point() -> None:
    sender, processor = Sender(), received()
    sender.counter(5, 10, temporality=DELTA)
    sender.send(processor)
    assert value(processor) == 10.0
    sender.point(sender.metric("sum", aggregation_temporality=DELTA, is_monotonic=True), 7, flags=1)
    assert sender.send(processor) == {}
    assert points(processor) == {}
    sender.counter(6, 1, temporality=DELTA)
    sender.counter(9, 4, start=8, temporality=DELTA)
    sender.gauge(9, 1.0, name="never.seen", flags=1)
    assert sender.send(processor) == {"out_of_order": 1}
    [point] = points(processor).values()
    assert (point.value, point.start_ns) == (4.0, 8)
    assert "never.seen" not in metrics(processor)


def test_a_silent_series_leaves_the_page_and_may_come_back() -> None:
    sender, processor = Sender(service__name="s", host__name="h"), received(stale_after=Duration("5m"))
    sender.counter(5, 10, attributes={"model": "a"})
    sender.counter(5, 20, attributes={"model": "b"})
    sender.send(processor)
    assert len(points(processor, now_ns=START_NS)) == 2
    sender.counter(6, 21, attributes={"model": "b"})
    sender.send(processor)
    assert len(points(processor, now_ns=START_NS + 4 * MINUTE)) == 2
    assert [point.value for point in points(processor, now_ns=START_NS + 6 * MINUTE).values()] == [21.0]
    found = metrics(processor, START_NS + 10 * MINUTE)
    assert found.keys() == {"tidegauge.metrics.series", "tidegauge.metrics.overflow"}
    assert found["tidegauge.metrics.series"].points[0] == Number((), 0.0)
    sender.counter(4, 11, attributes={"model": "a"})
    assert sender.send(processor) == {}
    assert value(processor, now_ns=START_NS + 10 * MINUTE) == 11.0


def test_a_change_of_temporality_begins_anew() -> None:
    sender, processor = Sender(), received()
    sender.counter(5, 10)
    sender.counter(7, 3, start=6, temporality=DELTA)
    sender.counter(8, 4, start=7, temporality=DELTA)
    assert sender.send(processor) == {}
    [point] = points(processor).values()
    assert (point.value, point.start_ns) == (7.0, 6)


# Delta made cumulative, against exact arithmetic

steps = st.lists(
    st.tuples(
        st.integers(-3, 20),  # how the interval begins, from the last one's end: a gap, or an overlap
        st.integers(0, 10),  # how long it is; 0: none
        st.one_of(st.integers(0, 2**62), st.floats(0, 1e300), st.floats(0, 1)),
    ),
    max_size=30,
)
cuts = st.lists(st.integers(0, 29), max_size=3)


class Account:
    """The rules for deltas in exact numbers: what counts is what ends after the last one that counted."""

    def __init__(self) -> None:
        self.time = self.start = self.dropped = 0
        self.total = Fraction(0)

    def take(self, start: int, time: int, amount: Any) -> bool:
        if time <= self.time:
            self.dropped += 1
            return False
        self.start = self.start or start
        self.time = time
        self.total += Fraction(amount)
        return True


def placed(sequence: list[tuple[int, int, Any]]) -> list[tuple[int, int, Any]]:
    """The steps as (start, time, amount)."""
    now, found = 100, []
    for begin, length, amount in sequence:
        start = max(now + begin, 1)
        found.append((start, start + length, amount))
        now = start + length
    return found


@settings(max_examples=300, deadline=None)
@given(steps, cuts)
def test_delta_sums_add_up_exactly(sequence: list[tuple[int, int, Any]], splits: list[int]) -> None:
    sender, processor, account = Sender(), received(), Account()
    dropped = 0
    for place, (start, time, amount) in enumerate(placed(sequence)):
        account.take(start, time, amount)
        sender.counter(time, amount, start, DELTA)
        if place in splits:
            dropped += sum(sender.send(processor).values())
    dropped += sum(sender.send(processor).values())
    assert dropped == account.dropped
    if sequence:
        [point] = points(processor).values()
        assert point.start_ns == account.start
        # Integers are exact; doubles within two roundings, of the sum and of adding both up.
        assert abs(Fraction(point.value) - account.total) <= account.total * Fraction(2, 2**52)
        if all(isinstance(amount, int) for _, _, amount in sequence):
            assert point.value == float(account.total)


def test_integers_beyond_64_bits_are_added_up_all_the_same() -> None:
    sender, processor = Sender(), received()
    for time in range(1, 6):
        sender.counter(time, 2**63 - 1, temporality=DELTA, monotonic=False)
    sender.send(processor)
    assert value(processor) == 5.0 * 2**63
    for time in range(6, 11):
        sender.counter(time, -(2**63) + 1, temporality=DELTA, monotonic=False)
    sender.send(processor)
    assert value(processor) == 0.0


def test_small_doubles_are_not_lost_in_a_large_sum() -> None:
    sender, processor = Sender(), received()
    for time, its in enumerate([1e16, *([1.0] * 1000), 3.5], 1):
        sender.counter(time, its, temporality=DELTA)
    sender.send(processor)
    assert value(processor) == 1e16 + 1004


histogram_steps = st.lists(
    st.tuples(
        st.integers(-3, 20),
        st.integers(0, 10),
        st.tuples(st.sampled_from([2, 3]), st.lists(st.integers(0, 2**40), min_size=4, max_size=4)),
    ),
    max_size=20,
)


@settings(max_examples=200, deadline=None)
@given(histogram_steps)
def test_delta_histograms_add_up_exactly(sequence: list[tuple[int, int, Any]]) -> None:
    """Other bounds begin the series anew."""
    sender, processor, account = Sender(), received(), Account()
    expected: list[int] = []
    for start, time, (size, given_) in placed(sequence):
        counts, bounds = given_[: size + 1], [float(index) for index in range(size)]
        sender.histogram(time, counts, bounds, start, sum=float(sum(counts)))
        if account.take(start, time, sum(counts)):
            if len(expected) != len(counts):
                expected, account.start = [0] * len(counts), start
            expected = [one + other for one, other in zip(expected, counts, strict=True)]
    left_out = sender.send(processor)
    assert left_out.get("out_of_order", 0) == account.dropped
    if sequence:
        [point] = points(processor).values()
        assert list(point.counts) == expected
        assert (point.sum, point.start_ns) == (float(sum(expected)), account.start)
        assert len(point.bounds) == len(expected) - 1


side = st.tuples(st.integers(-400, 400), st.lists(st.integers(0, 2**40), max_size=12))


def exponential_step(scale: int) -> st.SearchStrategy[Any]:
    """Buckets that a double can fall into: those of coarse scales are few."""
    coarse = side.map(lambda one: (one[0] >> max(0, -scale), one[1]))
    return st.tuples(st.just(scale), coarse, coarse, st.integers(0, 5))


exponential_steps = st.lists(st.integers(-4, 20).flatmap(exponential_step), min_size=1, max_size=8)


def downscaled(offset: int, counts: list[int], by: int) -> dict[int, int]:
    found: dict[int, int] = {}
    for place, count in enumerate(counts):
        if count:
            found[(offset + place) >> by] = found.get((offset + place) >> by, 0) + count
    return found


def width(buckets: dict[int, int]) -> int:
    return max(buckets) - min(buckets) + 1 if buckets else 0


@settings(max_examples=300, deadline=None)
@given(exponential_steps)
def test_exponential_deltas_of_different_scales_add_up_exactly(
    sequence: list[tuple[int, tuple[int, list[int]], tuple[int, list[int]], int]],
) -> None:
    """Every count is where it is at the finest scale that holds all: at most 8, and 160 buckets a sign."""
    sender, processor = Sender(), received()
    for time, (scale, positive, negative, zeros) in enumerate(sequence, 1):
        sender.exponential(time, scale, positive, negative, zeros, sum=1.0, min=-1.0, max=1.0)
    assert sender.send(processor) == {}
    [point] = points(processor).values()
    wanted = min([8, *(scale for scale, *_ in sequence)])
    while True:
        sides: list[dict[int, int]] = [{}, {}]
        for scale, *both, _ in sequence:
            for into, (offset, counts) in zip(sides, both, strict=True):
                for bucket, count in downscaled(offset, counts, scale - wanted).items():
                    into[bucket] = into.get(bucket, 0) + count
        if max(map(width, sides)) <= 160:
            break
        wanted -= 1
    assert point.scale == wanted
    assert downscaled(point.offset, list(point.counts), 0) == sides[0]
    assert downscaled(point.negative_offset, list(point.negative_counts), 0) == sides[1]
    assert point.zero_count == sum(zeros for *_, zeros in sequence)
    assert (point.sum, point.min, point.max) == (float(len(sequence)), -1.0, 1.0)
    assert max(len(point.counts), len(point.negative_counts)) <= 160


def test_the_larger_zero_threshold_takes_the_buckets_below_it() -> None:
    sender, processor = Sender(), received()
    sender.exponential(1, 0, (-3, [1, 2, 4, 8]), (-2, [16]))  # (1/8, 1/4], … (1, 2]; [-1/2, -1/4)
    sender.exponential(2, 0, (0, [32]), zeros=64, zero_threshold=0.3)
    assert sender.send(processor) == {}
    [point] = points(processor).values()
    # 0.3 cuts (1/4, 1/2] on both sides, which raises it to 1/2.
    assert (point.zero_threshold, point.zero_count) == (0.5, 64 + 1 + 2 + 16)
    assert (point.offset, point.counts, point.negative_counts) == (-1, (4, 40), ())


def test_scales_that_prometheus_has_not() -> None:
    sender, processor = Sender(), received()
    sender.exponential(1, 10, (4, [1, 1, 1, 1, 1]), attributes={"fine": "1"})
    sender.exponential(1, -5, (0, [1]), attributes={"coarse": "1"})
    sender.exponential(1, 8, (-(2**31), [1]), attributes={"far": "1"})
    sender.exponential(2, 8, (2**31 - 1, [1]), attributes={"far": "1"})
    assert sender.send(processor) == {"scale": 2}
    found = points(processor)
    fine = found[("fine", "1"),]
    assert (fine.scale, fine.offset, fine.counts) == (8, 1, (4, 1))
    assert ("coarse", "1") not in dict(found)
    assert sum(found[("far", "1"),].counts) == 1


# What cannot be


@pytest.mark.parametrize(
    ("kind", "about", "fields", "reason"),
    [
        ("gauge", {}, {}, "invalid"),
        ("sum", {"aggregation_temporality": 0}, {"as_int": 1}, "invalid"),
        ("sum", {"aggregation_temporality": 2, "is_monotonic": True}, {"as_int": -1}, "invalid"),
        ("sum", {"aggregation_temporality": 2, "is_monotonic": True}, {"as_double": math.nan}, "invalid"),
        ("sum", {"aggregation_temporality": 1}, {"as_double": math.inf}, "invalid"),
        ("histogram", {"aggregation_temporality": 0}, {}, "invalid"),
        ("histogram", {"aggregation_temporality": 1}, {"bucket_counts": [1, 2]}, "invalid"),
        (
            "histogram",
            {"aggregation_temporality": 1},
            {"bucket_counts": [1, 2, 3], "explicit_bounds": [2.0, 1.0]},
            "invalid",
        ),
        (
            "histogram",
            {"aggregation_temporality": 1},
            {"bucket_counts": [1, 2], "explicit_bounds": [math.inf]},
            "invalid",
        ),
        (
            "histogram",
            {"aggregation_temporality": 1},
            {"bucket_counts": [1, 2**63], "explicit_bounds": [1.0]},
            "invalid",
        ),
        (
            "histogram",
            {"aggregation_temporality": 1},
            {"bucket_counts": [1] * 257, "explicit_bounds": [float(index) for index in range(256)]},
            "too_many_buckets",
        ),
        ("exponential_histogram", {"aggregation_temporality": 1}, {"zero_count": 2**63}, "invalid"),
        ("exponential_histogram", {"aggregation_temporality": 2}, {"zero_threshold": math.nan}, "invalid"),
        ("summary", {}, {"count": 2**63}, "invalid"),
    ],
)
def test_points_that_make_no_sense_are_dropped(
    kind: str, about: dict[str, Any], fields: dict[str, Any], reason: str
) -> None:
    sender, processor = Sender(), received()
    sender.point(sender.metric(kind, **about), 5, 1, **fields)
    assert sender.send(processor) == {reason: 1}
    assert points(processor) == {}


def test_counts_that_would_leave_64_bits_are_dropped_and_the_series_goes_on() -> None:
    sender, processor = Sender(), received()
    for time in range(1, 4):
        sender.histogram(time, [2**61, 0], [1.0])
    assert sender.send(processor) == {"invalid": 1}
    [point] = points(processor).values()
    assert point.counts == (2**62, 0)


def test_a_malformed_attribute_drops_its_point_and_no_other() -> None:
    sender, processor = Sender(), received()
    sender.gauge(5, 1.0, attributes={"a": "xyz"})
    sender.gauge(5, 2.0, attributes={"a": "abc"})
    raw = sender.request.SerializeToString().replace(b"xyz", b"\xff\xff\xff")
    batch = Points("otlp_grpc", raw, scan(raw, 2, SEED))
    for _ in range(2):
        assert processor.update(batch) == {"invalid": 1}
    assert value(processor) == 2.0


def test_of_two_metrics_with_one_name_the_first_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    sender, processor = Sender(), received()
    sender.gauge(5, 1.0)
    sender.send(processor)
    with caplog.at_level(logging.WARNING):
        for time in (5, 6):
            sender.counter(time, 2)
            sender.gauge(time, 3.0, unit="s")
            assert sender.send(processor) == {"name_conflict": 2}
    assert len(caplog.records) == 1
    assert metrics(processor)["m"].kind is Kind.GAUGE
    assert value(processor) == 1.0
    # Once the first has gone silent the name is free.
    assert points(processor, now_ns=START_NS + 6 * MINUTE) == {}
    sender.counter(7, 4)
    assert sender.send(processor) == {}
    assert metrics(processor, START_NS + 6 * MINUTE)["m"].kind is Kind.COUNTER


# Bounds


def test_series_beyond_the_limit_share_one_of_their_metric() -> None:
    sender, processor = Sender(), received(max_series=2)
    for time in (5, 6):
        for index in range(5):
            labels = {"model": f"v{index}"}
            sender.counter(time, 1, temporality=DELTA, name="delta", attributes=labels)
    sender.gauge(5, 1.0, name="gauge", attributes={"model": "x"})
    sender.gauge(6, 2.0, name="gauge", attributes={"model": "y"})
    assert sender.send(processor) == {}
    found = points(processor, "delta")
    assert {labels: point.value for labels, point in found.items()} == {
        (("model", "v0"),): 2.0,
        (("model", "v1"),): 2.0,
        OVERFLOW: 6.0,
    }
    assert value(processor, "gauge") == 2.0
    own = metrics(processor)
    assert own["tidegauge.metrics.series"].points[0] == Number((), 2.0)
    assert own["tidegauge.metrics.overflow"].points[0] == Number((), 8.0)


def test_cumulative_sums_overflow_by_what_they_grow() -> None:
    sender, processor = Sender(), received(max_series=1)
    sender.counter(5, 1, attributes={"model": "own"})
    sender.send(processor)
    old, new = START_NS - 1, START_NS + 1
    for model, start, values in (("old", old, (100, 103)), ("new", new, (7, 9, 2))):
        for time, its in enumerate(values, 10):
            sender.counter(time, its, start=start, attributes={"model": model})
    assert sender.send(processor) == {}
    # Of the old one nobody knows how much was there before; the new one fell from 9 to 2, a reset.
    assert points(processor)[OVERFLOW].value == 3.0 + 9.0 + 2.0
    sender.counter(10, 0, start=new, attributes={"model": "new"})
    assert sender.send(processor) == {"out_of_order": 1}


def test_histograms_overflow_where_they_can_be_added_up() -> None:
    sender, processor = Sender(), received(max_series=1)
    for model in "abcd":
        bounds = [1.0] if model != "d" else [2.0]
        sender.histogram(5, [1, 2], bounds, sum=3.0, attributes={"model": model})
    sender.histogram(5, [1, 2], [1.0], temporality=CUMULATIVE, attributes={"model": "e"})
    assert sender.send(processor) == {"overflow": 2}
    assert points(processor)[OVERFLOW].counts == (2, 4)
    assert metrics(processor)["tidegauge.metrics.overflow"].points[0] == Number((), 4.0)


def test_a_label_set_too_large_for_a_series_overflows() -> None:
    sender, processor = Sender(), received()
    sender.gauge(5, 1.0, attributes={"prompt": "x" * 5000})
    sender.gauge(5, 2.0, attributes={f"a{index}": "x" for index in range(65)})
    assert sender.send(processor) == {}
    assert list(points(processor)) == [OVERFLOW]


def test_metrics_are_bounded() -> None:
    sender, processor = Sender(), received(max_metrics=3)
    for index in range(10):
        sender.gauge(5, 1.0, name=f"m{index}")
    assert sender.send(processor) == {"metric_limit": 7}
    assert {f"m{index}" for index in range(3)} <= metrics(processor).keys()


def test_memory_does_not_grow_with_keys_names_or_units() -> None:
    sender, processor = Sender(), received(max_series=5, max_metrics=5)
    taken = dropped = 0
    for round_ in range(100):
        for index in range(20):
            unique = f"{round_}.{index}"
            sender.counter(5, 1, temporality=DELTA, attributes={"id": unique})
            sender.gauge(5, 1.0, name=f"m{unique}")
            sender.gauge(5, 1.0, unit=f"u{unique}", name="g")
            sender.histogram(5, [1, 1], [float(round_)], attributes={"id": unique})
        batch = sender.batch()
        taken += batch.items
        dropped += sum(processor.update(batch).values())
        processor.collect(START_NS)
    assert taken == 8000
    state = processor._store.state
    assert (len(state.table), len(state.series), len(state.cells)) <= (128, 16, 256)
    assert len(processor._points) <= 10
    assert 0 < dropped < taken


def test_cells_are_used_again() -> None:
    sender, processor = Sender(), received(stale_after=Duration("1m"))
    for round_ in range(20):
        for index in range(10):
            labels = {"id": f"{round_}.{index}"}
            sender.histogram(5, [1] * 16, [float(one) for one in range(15)], attributes=labels)
        assert sender.send(processor) == {}
        assert len(points(processor, now_ns=START_NS + 2 * round_ * MINUTE)) == 10
    assert len(processor._store.state.cells) <= 1024


def test_keys_of_a_process_that_is_gone_are_forgotten() -> None:
    """A sender whose resource has a process id comes back with new keys for its old series."""
    processor = received(max_series=2, stale_after=Duration("1m"))
    for restart in range(50):
        sender = Sender(service__name="s", process__pid=restart)
        sender.counter(restart + 5, restart, start=restart + 1)
        assert sender.send(processor) == {}
        assert value(processor, now_ns=START_NS + restart * MINUTE) == float(restart)
    assert processor._store.keys <= 3


# Batches and exemplars


def test_many_batches_fold_as_one() -> None:
    one, other = received(), received()
    batches = []
    for index in range(7):
        sender = Sender(service__name=f"s{index % 3}")
        sender.counter(index + 1, index, temporality=DELTA)
        sender.histogram(index + 1, [index, 1], [0.5])
        sender.metric("histogram", "h", aggregation_temporality=DELTA)
        batches.append(sender.batch())
    assert one.update(*batches) == {"name_conflict": 7}
    for batch in batches:
        other.update(batch)
    assert one.collect(START_NS) == other.collect(START_NS)


def test_exemplars_come_with_the_point_and_stay_until_the_next_that_has_any() -> None:
    sender, processor = Sender(), received()
    trace, span = bytes(range(16)), bytes(range(8))
    point = sender.histogram(5, [1, 1], [0.5])
    point.exemplars.add(as_double=0.25, time_unix_nano=4, trace_id=trace, span_id=span)
    point.exemplars.add(as_int=3, time_unix_nano=4)
    sender.counter(5, 2, name="c").exemplars.add(as_double=1.0, time_unix_nano=3, trace_id=trace)
    sender.gauge(5, 2.0, name="g").exemplars.add(as_double=1.0)
    assert sender.send(processor) == {}
    ids = (("trace_id", trace.hex()), ("span_id", span.hex()))
    wanted = (Exemplar(0.25, 4, ids), Exemplar(3.0, 4, ()))
    assert points(processor)[()].exemplars == wanted
    assert points(processor, "c")[()].exemplar == Exemplar(1.0, 3, ids[:1])
    assert points(processor, "g")[()].exemplar is None
    sender.histogram(6, [1, 1], [0.5], start=5)
    sender.send(processor)
    assert points(processor)[()].exemplars == wanted
    assert points(processor)[()].counts == (2, 2)


def test_collect_without_new_points_gives_the_same_again() -> None:
    sender, processor = Sender(service__name="s", host__name="h"), received()
    sender.counter(5, 1)
    sender.exponential(5, 2, (0, [1]), attributes={"e": "1"})
    sender.send(processor)
    assert processor.collect(START_NS) == processor.collect(START_NS)
