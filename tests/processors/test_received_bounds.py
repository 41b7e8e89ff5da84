"""What pushed metrics may not do: make no sense, take each other's names, grow without end."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegauge.batch import Points
from tidegauge.identity import OVERFLOW
from tidegauge.metric import ExponentialHistogram, Histogram, Kind, Number
from tidegauge.units import Duration
from tidegauge.wire.counts import count_points
from tidegauge.wire.metrics import scan

SEED = np.uint64(11)
DELTA, CUMULATIVE = 1, 2
MINUTE = 60 * 10**9
START_NS = 1_000_000


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
    otlp: SimpleNamespace, kind: str, about: dict[str, Any], fields: dict[str, Any], reason: str
) -> None:
    sender, processor = otlp.Sender(), otlp.received()
    sender.point(sender.metric(kind, **about), 5, 1, **fields)
    assert sender.send(processor) == {reason: 1}
    assert otlp.points(processor) == {}


def test_counts_that_would_leave_64_bits_are_dropped_and_the_series_goes_on(otlp: SimpleNamespace) -> None:
    sender, processor = otlp.Sender(), otlp.received()
    for time in range(1, 4):
        sender.histogram(time, [2**61, 0], [1.0])
    assert sender.send(processor) == {"invalid": 1}
    [point] = otlp.points(processor).values()
    assert point.counts == (2**62, 0)


def test_of_a_point_only_the_attributes_are_decoded_for_its_labels(otlp: SimpleNamespace) -> None:
    # A million exemplars of a point, as objects, took 56 MB and stopped all threads for 0.3 s.
    sender, processor = otlp.Sender(), otlp.received()
    for index, send in enumerate((sender.gauge, sender.counter)):
        exemplars = send(5, 2.0, name=f"m{index}", attributes={"a": "b"}).exemplars
        exemplars.add(as_double=3.0).filtered_attributes.add(key="xyz")
    sender.histogram(5, [1, 2], [1.0], attributes={"a": "b"}).exemplars.add().filtered_attributes.add(
        key="xyz"
    )
    point = sender.exponential(5, 0, (0, [1]), name="e", attributes={"a": "b"})
    point.exemplars.add().filtered_attributes.add(key="xyz")
    good = sender.request.SerializeToString()
    columns = scan(good, 4, SEED)
    # No request like this is accepted; nor is it noticed here, where nobody looks.
    raw = good.replace(b"xyz", b"\xff\xff\xff")
    assert processor.update(Points("otlp_grpc", raw, columns)) == {}
    for name in ("m0", "m1", "m", "e"):
        assert list(otlp.points(processor, name)) == [(("a", "b"),)]


def test_attributes_that_are_too_many_to_be_read_overflow(otlp: SimpleNamespace) -> None:
    sender, processor = otlp.Sender(), otlp.received()
    sender.gauge(5, 1.0, attributes={f"a{index}": "" for index in range(10_000)})
    assert sender.send(processor) == {}
    assert list(otlp.points(processor)) == [OVERFLOW]


def test_of_two_metrics_with_one_name_the_first_is_kept(
    otlp: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    sender, processor = otlp.Sender(), otlp.received()
    sender.gauge(5, 1.0)
    sender.send(processor)
    with caplog.at_level(logging.WARNING):
        for time in (5, 6):
            sender.counter(time, 2)
            sender.gauge(time, 3.0, unit="s")
            assert sender.send(processor) == {"name_conflict": 2}
    assert len(caplog.records) == 1
    assert otlp.metrics(processor)["m"].kind is Kind.GAUGE
    assert otlp.value(processor) == 1.0
    # Once the first has gone silent the name is free.
    assert otlp.points(processor, now_ns=START_NS + 6 * MINUTE) == {}
    sender.counter(7, 4)
    assert sender.send(processor) == {}
    assert otlp.metrics(processor, START_NS + 6 * MINUTE)["m"].kind is Kind.COUNTER


def test_series_beyond_the_limit_share_one_of_their_metric(otlp: SimpleNamespace) -> None:
    sender, processor = otlp.Sender(), otlp.received(max_series=2)
    for time in (5, 6):
        for index in range(5):
            labels = {"model": f"v{index}"}
            sender.counter(time, 1, temporality=DELTA, name="delta", attributes=labels)
    sender.gauge(5, 1.0, name="gauge", attributes={"model": "x"})
    sender.gauge(6, 2.0, name="gauge", attributes={"model": "y"})
    assert sender.send(processor) == {}
    found = otlp.points(processor, "delta")
    assert {labels: point.value for labels, point in found.items()} == {
        (("model", "v0"),): 2.0,
        (("model", "v1"),): 2.0,
        OVERFLOW: 6.0,
    }
    assert otlp.value(processor, "gauge") == 2.0
    own = otlp.metrics(processor)
    assert own["tidegauge.metrics.series"].points[0] == Number((), 2.0)
    assert own["tidegauge.metrics.overflow"].points[0] == Number((), 8.0)


def test_cumulative_sums_overflow_by_what_they_grow(otlp: SimpleNamespace) -> None:
    sender, processor = otlp.Sender(), otlp.received(max_series=1)
    sender.counter(5, 1, attributes={"model": "own"})
    sender.send(processor)
    old, new = START_NS - 1, START_NS + 1
    for model, start, values in (("old", old, (100, 103)), ("new", new, (7, 9, 2))):
        for time, its in enumerate(values, 10):
            sender.counter(time, its, start=start, attributes={"model": model})
    assert sender.send(processor) == {}
    # Of the old one nobody knows how much was there before; the new one fell from 9 to 2, a reset.
    assert otlp.points(processor)[OVERFLOW].value == 3.0 + 9.0 + 2.0
    sender.counter(10, 0, start=new, attributes={"model": "new"})
    assert sender.send(processor) == {"out_of_order": 1}


def test_histograms_overflow_where_they_can_be_added_up(otlp: SimpleNamespace) -> None:
    sender, processor = otlp.Sender(), otlp.received(max_series=1)
    for model in "abcd":
        bounds = [1.0] if model != "d" else [2.0]
        sender.histogram(5, [1, 2], bounds, sum=3.0, attributes={"model": model})
    sender.histogram(5, [1, 2], [1.0], temporality=CUMULATIVE, attributes={"model": "e"})
    assert sender.send(processor) == {"overflow": 2}
    assert otlp.points(processor)[OVERFLOW].counts == (2, 4)
    assert otlp.metrics(processor)["tidegauge.metrics.overflow"].points[0] == Number((), 4.0)


def test_a_label_set_too_large_for_a_series_overflows(otlp: SimpleNamespace) -> None:
    sender, processor = otlp.Sender(), otlp.received()
    sender.gauge(5, 1.0, attributes={"prompt": "x" * 5000})
    sender.gauge(5, 2.0, attributes={f"a{index}": "x" for index in range(65)})
    assert sender.send(processor) == {}
    assert list(otlp.points(processor)) == [OVERFLOW]


def test_a_resource_or_scope_too_large_to_keep_drops_its_points(otlp: SimpleNamespace) -> None:
    processor = otlp.received()
    large, other = otlp.Sender(service__name="x" * 2**17), otlp.Sender()
    other.scope = {"name": "x" * 2**17}
    for sender in (large, other):
        for index in range(3):
            sender.gauge(5, 1.0, attributes={"id": index})
        assert sender.send(processor) == {"invalid": 3}
    assert otlp.points(processor) == {}


def test_metrics_are_bounded(otlp: SimpleNamespace) -> None:
    sender, processor = otlp.Sender(), otlp.received(max_metrics=3)
    for index in range(10):
        sender.gauge(5, 1.0, name=f"m{index}")
    assert sender.send(processor) == {"metric_limit": 7}
    assert {f"m{index}" for index in range(3)} <= otlp.metrics(processor).keys()


def test_memory_does_not_grow_with_keys_names_or_units(otlp: SimpleNamespace) -> None:
    sender, processor = otlp.Sender(), otlp.received(max_series=5, max_metrics=5)
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


def test_cells_are_used_again(otlp: SimpleNamespace) -> None:
    sender, processor = otlp.Sender(), otlp.received(stale_after=Duration("1m"))
    for round_ in range(20):
        for index in range(10):
            labels = {"id": f"{round_}.{index}"}
            sender.histogram(5, [1] * 16, [float(one) for one in range(15)], attributes=labels)
        assert sender.send(processor) == {}
        assert len(otlp.points(processor, now_ns=START_NS + 2 * round_ * MINUTE)) == 10
    assert len(processor._store.state.cells) <= 1024


def test_keys_of_a_process_that_is_gone_are_forgotten(otlp: SimpleNamespace) -> None:
    """A sender whose resource has a process id comes back with new keys for its old series."""
    processor = otlp.received(max_series=2, stale_after=Duration("1m"))
    for restart in range(50):
        sender = otlp.Sender(service__name="s", process__pid=restart)
        sender.counter(restart + 5, restart, start=restart + 1)
        assert sender.send(processor) == {}
        assert otlp.value(processor, now_ns=START_NS + restart * MINUTE) == float(restart)
    assert processor._store.keys <= 3


# Hostile bytes


def everything(otlp: SimpleNamespace) -> bytes:
    """A request with a point of each kind, delta and cumulative."""
    sender = otlp.Sender(service__name="s", host__name="h")
    sender.scope = {"name": "scope", "attributes": {"team": "risk"}}
    for temporality in (DELTA, CUMULATIVE):
        labels = {"temporality": temporality, "model": "fraud"}
        sender.counter(5, 3, temporality=temporality, name="c", attributes=labels)
        point = sender.histogram(
            5, [1, 2, 3], [0.5, 0.9], temporality=temporality, sum=1.5, attributes=labels
        )
        point.exemplars.add(as_double=0.25, trace_id=bytes(16), span_id=bytes(8))
        both = (-3, [1, 0, 300]), (2, [5])
        sender.exponential(
            5, 2, *both, zeros=1, temporality=temporality, zero_threshold=0.1, attributes=labels
        )
    sender.gauge(5, 1.5, name="g", attributes={"model": "fraud"})
    summary = sender.point(sender.metric("summary", "s"), 5, 1, count=3, sum=6.5)
    summary.quantile_values.add(quantile=0.5, value=2.0)
    raw: bytes = sender.request.SerializeToString()
    return raw


changes = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6)


@settings(max_examples=500, deadline=None)
@given(st.lists(changes, min_size=1, max_size=4))
def test_mutated_requests_are_folded_or_dropped_and_all_accounted_for(
    otlp: SimpleNamespace, mutations: list[list[tuple[int, int]]]
) -> None:
    raw, processor = everything(otlp), otlp.received(max_series=6, max_metrics=6)
    for mutation in mutations:
        mutated = bytearray(raw)
        for place, byte in mutation:
            mutated[place % len(raw)] = byte
        try:
            items = count_points(bytes(mutated))
            columns = scan(bytes(mutated), items, SEED)
        except ValueError:
            continue
        left_out = processor.update(Points("otlp_grpc", bytes(mutated), columns))
        assert all(lost > 0 for lost in left_out.values())
        assert sum(left_out.values()) <= items
        for metric in processor.collect(START_NS):
            for point in metric.points:
                check_point(metric.kind, point)


def check_point(kind: Kind, point: Any) -> None:
    match point:
        case Histogram(counts=counts, bounds=bounds):
            assert len(counts) == len(bounds) + 1
            assert min(counts) >= 0
            assert list(bounds) == sorted(set(bounds))
        case ExponentialHistogram():
            assert -4 <= point.scale <= 8
            assert min((0, *point.counts, *point.negative_counts, point.zero_count)) == 0
            assert max(len(point.counts), len(point.negative_counts)) <= 160
        case Number(value=value):
            assert kind is Kind.GAUGE or 0 <= value < math.inf
