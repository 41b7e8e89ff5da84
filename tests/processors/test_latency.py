"""The latency processor against a plain count of the same spans."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tidegauge import config
from tidegauge.batch import Points, Spans
from tidegauge.identity import OVERFLOW
from tidegauge.metric import Attributes, Exemplar, ExponentialHistogram, Kind
from tidegauge.processors.latency import Latency
from tidegauge.stats.exponential import explicit_bounds
from tidegauge.wire.attributes import Keys
from tidegauge.wire.counts import count_records
from tidegauge.wire.metrics import POINT
from tidegauge.wire.traces import scan

KEYS = Keys.of(config.IdentityAttributes(), config.Timings())
UNSPECIFIED, INTERNAL, SERVER, CLIENT, PRODUCER, CONSUMER = range(6)
START_NS = 1_700_000_000 * 10**9


def spans(*spans: dict[str, Any], service: str = "fraud") -> Spans:
    """A batch of the spans; `model`, `version` and `error` stand for what carries them in OTLP."""
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    if service:
        resource.resource.attributes.add(key="service.name").value.string_value = service
    scope = resource.scope_spans.add()
    for given_ in spans:
        start = given_.get("start", START_NS)
        span = scope.spans.add(
            name=given_.get("name", "predict"),
            kind=given_.get("kind", SERVER),
            parent_span_id=given_.get("parent", b"parent.."),
            start_time_unix_nano=start,
            end_time_unix_nano=max(start + given_.get("duration", 10**6), 0),
        )
        if "id" in given_:
            span.trace_id = given_["id"].to_bytes(16, "big")
            span.span_id = (given_["id"] % 2**64).to_bytes(8, "big")
        span.status.code = 2 if given_.get("error") else 0  # type: ignore[assignment]
        for key in ("model", "version"):
            if key in given_:
                span.attributes.add(key=f"{key}.name" if key == "model" else "model.version")
                span.attributes[-1].value.string_value = given_[key]
    raw = request.SerializeToString()
    return Spans("otlp_grpc", raw, *scan(raw, count_records(raw), KEYS))


def points(latency: Latency) -> dict[Attributes, ExponentialHistogram]:
    metric, _ = latency.collect(0)
    return {point.attributes: point for point in metric.points if isinstance(point, ExponentialHistogram)}


def counts(latency: Latency) -> dict[Attributes, int]:
    return {attributes: point.count for attributes, point in points(latency).items()}


def key(model: str, operation: str = "predict", status: str = "ok", **more: str) -> Attributes:
    return tuple({"model": model, **more, "operation": operation, "status": status}.items())


def test_the_metric_s_name_unit_kind_and_start() -> None:
    latency = Latency(config.Latency(), start_ns=5)
    assert latency.update(spans({"duration": 2 * 10**9}, {"duration": 0})) == {}
    metric, overflow = latency.collect(0)
    assert (metric.name, metric.unit, metric.kind) == (
        "model.inference.latency",
        "s",
        Kind.EXPONENTIAL_HISTOGRAM,
    )
    assert metric.start_ns == 5
    assert metric.points == (
        ExponentialHistogram(
            key("fraud"), scale=8, offset=255, counts=(1,), zero_count=1, sum=2.0, min=0.0, max=2.0
        ),
    )
    assert (overflow.name, overflow.kind) == ("tidegauge.latency.overflow", Kind.COUNTER)
    assert [point.value for point in overflow.points] == [0.0]


@pytest.mark.parametrize(
    ("span", "counted"),
    [
        ({"kind": SERVER}, True),
        ({"kind": CONSUMER}, True),
        ({"kind": INTERNAL}, False),
        ({"kind": CLIENT}, False),
        ({"kind": PRODUCER}, False),
        ({"kind": INTERNAL, "parent": b""}, True),
        ({"kind": UNSPECIFIED, "parent": b""}, True),
        ({"kind": CLIENT, "parent": b""}, False),
        ({"kind": PRODUCER, "parent": b""}, False),
        ({"kind": CLIENT, "parent": b"", "model": "m"}, True),
        ({"kind": INTERNAL, "parent": bytes(8)}, True),
        ({"kind": CLIENT, "model": "m"}, True),
        ({"kind": INTERNAL, "version": "1"}, False),
        ({"kind": INTERNAL, "name": "POST /predict http send"}, False),
    ],
)
def test_which_spans_are_requests(span: dict[str, Any], counted: bool) -> None:
    requests, every = Latency(config.Latency()), Latency(config.Latency(spans="all"))
    for latency in (requests, every):
        assert latency.update(spans(span)) == {}
    assert sum(counts(requests).values()) == counted
    assert sum(counts(every).values()) == 1


def test_series_by_identity_operation_and_status() -> None:
    latency = Latency(config.Latency())
    latency.update(spans({}, {}, {"error": True}, {"name": "explain"}, {"model": "churn", "version": "2"}))
    latency.update(spans({}, service=""))
    assert counts(latency) == {
        key("fraud"): 2,
        key("fraud", status="error"): 1,
        key("fraud", "explain"): 1,
        key("churn", version="2"): 1,
        key("unknown"): 1,
    }


def test_a_span_without_a_start_is_left_out_and_one_that_ends_early_lasts_0() -> None:
    latency = Latency(config.Latency())
    assert latency.update(spans({"start": 0}, {"duration": -5}, {"start": 0, "kind": CLIENT})) == {
        "untimed": 1
    }
    assert points(latency)[key("fraud")].zero_count == 1
    assert sum(counts(latency).values()) == 1


def test_other_signals_are_ignored() -> None:
    latency = Latency(config.Latency())
    assert latency.update(Points("otlp_grpc", b"", np.zeros(3, POINT))) == {}
    assert counts(latency) == {}


def test_series_are_bounded_and_what_overflows_is_counted() -> None:
    latency = Latency(config.Latency(max_series=3))
    names = [f"op{number}" for number in range(100)]
    latency.update(spans(*({"name": name} for name in names)))
    latency.update(spans(*({"name": name} for name in reversed(names))))
    found = counts(latency)
    assert found == {key("fraud", name): 2 for name in names[:3]} | {OVERFLOW: 194}
    _, overflow = latency.collect(0)
    assert [point.value for point in overflow.points] == [194.0]


def test_memory_does_not_grow_with_names() -> None:
    latency = Latency(config.Latency(max_series=5))
    for first in range(0, 2000, 100):
        latency.update(spans(*({"name": f"op{first + number}"} for number in range(100))))
    assert len(latency._table.entries) <= 64
    assert len(latency._histograms.rows) == 6
    assert sum(counts(latency).values()) == 2000
    assert len(counts(latency)) == 6


def test_more_series_than_the_first_allocation() -> None:
    latency = Latency(config.Latency(max_series=2000))
    names = [f"op{number}" for number in range(1500)]
    for _ in range(2):
        latency.update(spans(*({"name": name} for name in names)))
    assert counts(latency) == {key("fraud", name): 2 for name in names}


def test_a_long_name_is_cut() -> None:
    latency = Latency(config.Latency())
    latency.update(spans({"name": "ü" * 300}, {"name": "ü" * 301}))
    assert counts(latency) == {key("fraud", "ü" * 256): 2}


some_span = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["", "predict", "explain"]),
        "kind": st.integers(0, 6),
        "parent": st.sampled_from([b"", b"parent.."]),
        "duration": st.integers(-5, 10**11),
        "error": st.booleans(),
    },
    optional={"model": st.sampled_from(["a", "b"]), "version": st.sampled_from(["1", "2"])},
)


@settings(deadline=None)
@given(st.lists(st.lists(some_span, max_size=8), max_size=4))
def test_every_request_is_counted_once_with_its_duration(batches: list[list[dict[str, Any]]]) -> None:
    latency = Latency(config.Latency())
    expected: dict[Attributes, list[float]] = defaultdict(list)
    for batch in batches:
        assert latency.update(spans(*batch)) == {}
        for span in batch:
            is_root = not span["parent"] and span["kind"] not in (CLIENT, PRODUCER)
            if span["kind"] in (SERVER, CONSUMER) or is_root or "model" in span:
                status = "error" if span["error"] else "ok"
                pairs = {"model": span.get("model", "fraud"), "version": span.get("version")}
                pairs |= {"operation": span["name"], "status": status}
                series = tuple((name, value) for name, value in pairs.items() if value)
                expected[series].append(max(span["duration"], 0) / 1e9)
    found = points(latency)
    assert {series: point.count for series, point in found.items()} == {
        series: len(values) for series, values in expected.items()
    }
    for series, values in expected.items():
        assert found[series].sum == pytest.approx(sum(values))
        assert (found[series].min, found[series].max) == (min(values), max(values))


@settings(deadline=None)
@given(st.lists(some_span, max_size=20), st.randoms(), st.integers(1, 4))
def test_histograms_depend_neither_on_order_nor_on_batches(
    given_: list[dict[str, Any]], random: Any, parts: int
) -> None:
    one, other = Latency(config.Latency()), Latency(config.Latency())
    one.update(spans(*given_))
    shuffled = random.sample(given_, len(given_))
    other.update(*(spans(*shuffled[part::parts]) for part in range(parts)))
    found, again = points(one), points(other)
    assert found.keys() == again.keys()
    for series, point in found.items():
        assert again[series].sum == pytest.approx(point.sum)
        for name in ("scale", "offset", "counts", "zero_count", "min", "max"):
            assert getattr(again[series], name) == getattr(point, name)


def exemplar(number: int, duration_ns: int) -> Exemplar:
    ids = (("trace_id", f"{number:032x}"), ("span_id", f"{number % 2**64:016x}"))
    return Exemplar(duration_ns / 1e9, START_NS + duration_ns, ids)


@settings(deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(
                st.sampled_from(["a", "b"]),
                st.integers(0, 2**128 - 1),
                st.one_of(st.integers(0, 10**11), st.sampled_from([0, 10**9, 10**9 + 1, 2 * 10**9, 2**50])),
            ),
            max_size=8,
        ),
        max_size=4,
    )
)
def test_exemplars_are_the_latest_spans_of_each_classic_bucket(
    batches: list[list[tuple[str, int, int]]],
) -> None:
    latency, bounds = Latency(config.Latency()), explicit_bounds()
    expected: dict[Attributes, dict[int, Exemplar]] = {}
    for batch in batches:
        latency.update(spans(*({"name": name, "id": one, "duration": ns} for name, one, ns in batch)))
        for name, one, duration_ns in batch:
            latest = expected.setdefault(key("fraud", name), {})
            if one % 2**64:
                latest[bisect_left(bounds, duration_ns / 1e9)] = exemplar(one, duration_ns)
        found = {series: point.exemplars for series, point in points(latency).items()}
        assert found == {
            series: tuple(latest[bucket] for bucket in sorted(latest)) for series, latest in expected.items()
        }


def test_a_span_without_valid_ids_is_no_exemplar() -> None:
    latency = Latency(config.Latency())
    latency.update(spans({}, {"id": 0}, {"id": 2**64}, {"id": 2**64 + 1}))
    assert points(latency)[key("fraud")].exemplars == (exemplar(2**64 + 1, 10**6),)


def test_exemplars_can_be_left_out() -> None:
    latency = Latency(config.Latency(exemplars=False))
    latency.update(spans({"id": 5}))
    point = points(latency)[key("fraud")]
    assert (point.count, point.exemplars) == (1, ())


def test_exemplars_survive_the_growth_of_the_arrays() -> None:
    latency = Latency(config.Latency())
    many = [{"name": f"op{number}", "id": number} for number in range(1, 101)]
    for batch in (many[:50], many[50:]):
        latency.update(spans(*batch))
    assert {one: point.exemplars for one, point in points(latency).items()} == {
        key("fraud", f"op{number}"): (exemplar(number, 10**6),) for number in range(1, 101)
    }


def test_a_point_and_its_attributes_are_the_same_objects_until_it_changes() -> None:
    latency = Latency(config.Latency())
    latency.update(spans({"id": 1}, {"name": "explain"}))
    first = latency.collect(0)
    assert latency.collect(1) is first
    latency.update(spans({"name": "explain", "id": 2}))
    second = latency.collect(2)
    (same, before), (again, after) = first[0].points, second[0].points
    assert again is same
    assert after != before
    assert after.attributes is before.attributes


def test_many_batches_are_folded_as_one() -> None:
    latency = Latency(config.Latency())
    batches = [spans({"name": f"op{number}", "start": number % 2 and START_NS}) for number in range(40)]
    assert latency.update(*batches, Points("otlp_grpc", b"", np.zeros(3, POINT))) == {"untimed": 20}
    assert counts(latency) == {key("fraud", f"op{number}"): 1 for number in range(1, 40, 2)}
