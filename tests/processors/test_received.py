"""What pushed metrics become: kinds, labels, the order of time, exemplars."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue

from tidegauge.batch import Logs
from tidegauge.metric import Exemplar, ExponentialHistogram, Histogram, Kind, Metric, Number, Summary
from tidegauge.units import Duration
from tidegauge.wire.logs import LOG

DELTA, CUMULATIVE = 1, 2
MINUTE = 60 * 10**9
START_NS = 1_000_000


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
    otlp: SimpleNamespace, kind: str, about: dict[str, Any], fields: dict[str, Any], becomes: Kind
) -> None:
    sender, processor = otlp.Sender(), otlp.received()
    sender.point(sender.metric(kind, "kpi.revenue", "EUR", "Sold.", **about), 5, 2, **fields)
    assert sender.send(processor) == {}
    start_ns = 2 if becomes is Kind.COUNTER else 0
    wanted = Metric("kpi.revenue", becomes, "EUR", "Sold.", (Number((), 1.5, start_ns),), received=True)
    assert otlp.metrics(processor)["kpi.revenue"] == wanted


def test_a_cumulative_histogram_is_as_it_was_sent(otlp: SimpleNamespace) -> None:
    sender, processor = otlp.Sender(), otlp.received()
    sender.histogram(5, [1, 2, 3], [0.5, 0.9], temporality=CUMULATIVE, sum=4.5, min=0.1, max=1.0)
    sender.histogram(5, [4], [], temporality=CUMULATIVE, attributes={"model": "b"})
    only_count = sender.histogram(5, [], [], temporality=CUMULATIVE, attributes={"model": "c"})
    only_count.count = 7
    assert sender.send(processor) == {}
    found = otlp.points(processor)
    assert found[()] == Histogram((), (0.5, 0.9), (1, 2, 3), 4.5, 1)
    assert found[("model", "b"),].counts == (4,)
    assert math.isnan(found[("model", "b"),].sum)
    assert (found[("model", "c"),].bounds, found[("model", "c"),].counts) == ((), (7,))


def test_a_cumulative_exponential_histogram_is_as_it_was_sent(otlp: SimpleNamespace) -> None:
    sender, processor = otlp.Sender(), otlp.received()
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
    assert otlp.points(processor)[()] == ExponentialHistogram(
        (), 3, -2, (1, 0, 2), 2, -9.0, -2.0, 1.25, 4, (5,), 1e-9, 1
    )


def test_a_summary_is_as_it_was_sent(otlp: SimpleNamespace) -> None:
    sender, processor = otlp.Sender(), otlp.received()
    point = sender.point(sender.metric("summary"), 5, 1, count=3, sum=6.5)
    for quantile, its in ((0.9, 3.5), (0.5, 2.0)):
        point.quantile_values.add(quantile=quantile, value=its)
    assert sender.send(processor) == {}
    assert otlp.points(processor)[()] == Summary((), 3, 6.5, ((0.5, 2.0), (0.9, 3.5)), 1)


def test_quantiles_that_are_none_or_come_twice_are_left_out(otlp: SimpleNamespace) -> None:
    sender, processor = otlp.Sender(), otlp.received()
    point = sender.point(sender.metric("summary"), 5, 1, count=3, sum=6.5)
    for quantile, its in ((0.5, 1.0), (-0.1, 2.0), (1.5, 3.0), (math.nan, 4.0), (math.inf, 5.0), (0.5, 2.0)):
        point.quantile_values.add(quantile=quantile, value=its)
    assert sender.send(processor) == {}
    assert otlp.points(processor)[()] == Summary((), 3, 6.5, ((0.5, 2.0),), 1)


def test_other_signals_are_ignored(otlp: SimpleNamespace) -> None:
    assert otlp.received().update(Logs("otlp_grpc", b"", np.zeros(3, LOG))) == {}


def test_labels_are_the_point_s_the_scope_s_and_job_and_instance(otlp: SimpleNamespace) -> None:
    sender, processor = (
        otlp.Sender(service__name="scorer", service__namespace="shop", service__instance__id="i1"),
        otlp.received(),
    )
    sender.resource |= {"host.name": "node-7", "process.pid": 42}
    sender.scope = {"name": "kpi", "version": "2", "schema_url": "http://x", "attributes": {"team": "risk"}}
    sender.gauge(5, 1.0, attributes={"model": "fraud", "job": "mine", "empty": ""})
    assert sender.send(processor) == {}
    found = otlp.metrics(processor)
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


def test_one_target_info_for_each_target_and_none_without_a_name(otlp: SimpleNamespace) -> None:
    processor = otlp.received()
    for resource in (
        {"service__name": "a", "service__version": "1"},
        {"service__name": "a", "service__version": "2"},  # the same target, come back as a newer version
        {"service__name": "b", "service__version": "1"},
        {"service__name": "c"},
        {"host__name": "nobody"},
    ):
        sender = otlp.Sender(**resource)
        sender.gauge(5, 1.0)
        assert sender.send(processor) == {}
    assert list(otlp.points(processor, "target_info")) == [
        (("job", "a"), ("service.version", "2")),
        (("job", "b"), ("service.version", "1")),
    ]


def test_target_info_is_bounded(otlp: SimpleNamespace) -> None:
    # 10,000 targets of 64 labels of 500 characters were a page of 265 MB.
    processor = otlp.received()
    sender = otlp.Sender(service__name="a", **{f"k{index:02}" + "x" * 196: "v" * 300 for index in range(60)})
    sender.gauge(5, 1.0)
    assert sender.send(processor) == {}
    [labels] = otlp.points(processor, "target_info")
    assert labels[0] == ("job", "a")
    assert [key[:3] for key, _ in labels[1:]] == [f"k{index:02}" for index in range(9)]
    assert all(len(text) == 256 for _, text in labels[1:])


def test_a_metric_called_target_info_comes_behind_the_true_one(otlp: SimpleNamespace) -> None:
    processor, sender = otlp.received(), otlp.Sender(service__name="a", service__version="1")
    sender.counter(5, 1.0, name="target_info")
    sender.send(processor)
    found = [metric.kind for metric in processor.collect(0) if metric.name == "target_info"]
    assert found == [Kind.GAUGE, Kind.COUNTER]


def test_only_a_gauge_proper_of_unit_1_is_a_ratio(otlp: SimpleNamespace) -> None:
    processor, sender = otlp.received(), otlp.Sender()
    sender.gauge(5, 0.5, name="share", unit="1")
    sender.counter(5, 7, name="busy", unit="1", monotonic=False)
    sender.counter(5, 7, name="done", unit="1")
    assert sender.send(processor) == {}
    found = otlp.metrics(processor)
    assert [(found[name].kind, found[name].unit) for name in ("share", "busy", "done")] == [
        (Kind.GAUGE, "1"),
        (Kind.GAUGE, ""),
        (Kind.COUNTER, "1"),
    ]


def test_values_that_are_no_strings_read_as_json(otlp: SimpleNamespace) -> None:
    sender, processor = otlp.Sender(), otlp.received()
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
    [found] = otlp.points(processor)
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


def test_two_spellings_of_the_same_labels_are_one_series(otlp: SimpleNamespace) -> None:
    sender, processor = otlp.Sender(), otlp.received()
    sender.counter(5, 1, temporality=DELTA, attributes={"a": "1", "b": 2})
    sender.counter(6, 2, temporality=DELTA, attributes={"b": "2", "a": "1", "c": ""})
    assert sender.send(processor) == {}
    assert otlp.value(processor) == 3.0


def test_cumulative_points_replace_each_other_and_older_ones_are_dropped(otlp: SimpleNamespace) -> None:
    sender, processor = otlp.Sender(), otlp.received()
    for time, its in ((5, 10), (7, 12), (6, 11), (7, 13)):
        sender.counter(time, its)
        sender.gauge(time, float(its), name="g")
    assert sender.send(processor) == {"out_of_order": 2}
    assert (otlp.value(processor), otlp.value(processor, "g")) == (13.0, 13.0)


def test_a_new_start_is_a_reset_and_an_older_one_another_sender_s(otlp: SimpleNamespace) -> None:
    sender, processor = otlp.Sender(), otlp.received()
    sender.counter(5, 10, start=2)
    sender.counter(7, 30, start=6)
    sender.counter(8, 11, start=2)
    assert sender.send(processor) == {"overlap": 1}
    [point] = otlp.points(processor).values()
    assert (point.value, point.start_ns) == (30.0, 6)


def test_a_counter_that_falls_was_reset_after_its_last_point(otlp: SimpleNamespace) -> None:
    sender, processor = otlp.Sender(), otlp.received()
    for time, its in ((5, 10), (7, 3), (8, 4)):
        sender.counter(time, its, start=2)
    for time, counts in ((5, [1, 9]), (7, [2, 1]), (8, [2, 2])):
        sender.histogram(time, counts, [1.0], start=2, temporality=CUMULATIVE, attributes={"h": "1"})
    assert sender.send(processor) == {"name_conflict": 3}
    [point] = otlp.points(processor).values()
    assert (point.value, point.start_ns) == (4.0, 5)


def test_a_point_without_a_time_is_dropped(otlp: SimpleNamespace) -> None:
    sender, processor = otlp.Sender(), otlp.received()
    sender.counter(0, 10)
    sender.gauge(0, 1.0, name="g")
    assert sender.send(processor) == {"untimed": 2}
    assert otlp.points(processor) == {}


def test_no_recorded_value_removes_the_series_until_the_next_point(otlp: SimpleNamespace) -> None:
    sender, processor = otlp.Sender(), otlp.received()
    sender.counter(5, 10, temporality=DELTA)
    sender.send(processor)
    assert otlp.value(processor) == 10.0
    sender.point(sender.metric("sum", aggregation_temporality=DELTA, is_monotonic=True), 7, flags=1)
    assert sender.send(processor) == {}
    assert otlp.points(processor) == {}
    sender.counter(6, 1, temporality=DELTA)
    sender.counter(9, 4, start=8, temporality=DELTA)
    sender.gauge(9, 1.0, name="never.seen", flags=1)
    assert sender.send(processor) == {"out_of_order": 1}
    [point] = otlp.points(processor).values()
    assert (point.value, point.start_ns) == (4.0, 8)
    assert "never.seen" not in otlp.metrics(processor)


def test_a_silent_series_leaves_the_page_and_may_come_back(otlp: SimpleNamespace) -> None:
    sender, processor = (
        otlp.Sender(service__name="s", host__name="h"),
        otlp.received(stale_after=Duration("5m")),
    )
    sender.counter(5, 10, attributes={"model": "a"})
    sender.counter(5, 20, attributes={"model": "b"})
    sender.send(processor)
    assert len(otlp.points(processor, now_ns=START_NS)) == 2
    sender.counter(6, 21, attributes={"model": "b"})
    sender.send(processor)
    assert len(otlp.points(processor, now_ns=START_NS + 4 * MINUTE)) == 2
    assert [point.value for point in otlp.points(processor, now_ns=START_NS + 6 * MINUTE).values()] == [21.0]
    found = otlp.metrics(processor, START_NS + 10 * MINUTE)
    assert found.keys() == {"tidegauge.metrics.series", "tidegauge.metrics.overflow"}
    assert found["tidegauge.metrics.series"].points[0] == Number((), 0.0)
    sender.counter(4, 11, attributes={"model": "a"})
    assert sender.send(processor) == {}
    assert otlp.value(processor, now_ns=START_NS + 10 * MINUTE) == 11.0


def test_a_point_from_the_future_blocks_its_series_until_it_is_stale(otlp: SimpleNamespace) -> None:
    sender, processor = otlp.Sender(), otlp.received(stale_after=Duration("5m"))
    sender.gauge(2**63, 1.0)
    assert sender.send(processor) == {}
    for minute in (0, 2, 4):
        sender.gauge(minute + 5, 2.0)
        assert sender.send(processor) == {"out_of_order": 1}
        assert otlp.value(processor, now_ns=START_NS + minute * MINUTE) == 1.0
    assert otlp.points(processor, now_ns=START_NS + 6 * MINUTE) == {}
    sender.gauge(11, 3.0)
    assert sender.send(processor) == {}
    assert otlp.value(processor, now_ns=START_NS + 6 * MINUTE) == 3.0


def test_a_change_of_temporality_begins_anew(otlp: SimpleNamespace) -> None:
    sender, processor = otlp.Sender(), otlp.received()
    sender.counter(5, 10)
    sender.counter(7, 3, start=6, temporality=DELTA)
    sender.counter(8, 4, start=7, temporality=DELTA)
    assert sender.send(processor) == {}
    [point] = otlp.points(processor).values()
    assert (point.value, point.start_ns) == (7.0, 6)


def test_many_batches_fold_as_one(otlp: SimpleNamespace) -> None:
    one, other = otlp.received(), otlp.received()
    batches = []
    for index in range(7):
        sender = otlp.Sender(service__name=f"s{index % 3}")
        sender.counter(index + 1, index, temporality=DELTA)
        sender.histogram(index + 1, [index, 1], [0.5])
        sender.metric("histogram", "h", aggregation_temporality=DELTA)
        batches.append(sender.batch())
    assert one.update(*batches) == {"name_conflict": 7}
    for batch in batches:
        other.update(batch)
    assert one.collect(START_NS) == other.collect(START_NS)


def test_exemplars_come_with_the_point_and_stay_until_the_next_that_has_any(otlp: SimpleNamespace) -> None:
    sender, processor = otlp.Sender(), otlp.received()
    trace, span = bytes(range(16)), bytes(range(8))
    point = sender.histogram(5, [1, 1], [0.5])
    point.exemplars.add(as_double=0.25, time_unix_nano=4, trace_id=trace, span_id=span)
    point.exemplars.add(as_int=3, time_unix_nano=4)
    sender.counter(5, 2, name="c").exemplars.add(as_double=1.0, time_unix_nano=3, trace_id=trace)
    sender.gauge(5, 2.0, name="g").exemplars.add(as_double=1.0)
    assert sender.send(processor) == {}
    ids = (("trace_id", trace.hex()), ("span_id", span.hex()))
    wanted = (Exemplar(0.25, 4, ids), Exemplar(3.0, 4, ()))
    assert otlp.points(processor)[()].exemplars == wanted
    assert otlp.points(processor, "c")[()].exemplar == Exemplar(1.0, 3, ids[:1])
    assert otlp.points(processor, "g")[()].exemplar is None
    sender.histogram(6, [1, 1], [0.5], start=5)
    sender.send(processor)
    assert otlp.points(processor)[()].exemplars == wanted
    assert otlp.points(processor)[()].counts == (2, 2)


def test_collect_without_new_points_gives_the_same_again(otlp: SimpleNamespace) -> None:
    sender, processor = otlp.Sender(service__name="s", host__name="h"), otlp.received()
    sender.counter(5, 1)
    sender.exponential(5, 2, (0, [1]), attributes={"e": "1"})
    sender.send(processor)
    assert processor.collect(START_NS) == processor.collect(START_NS)
