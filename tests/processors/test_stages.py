"""The breakdown of requests against trees of dictionaries and sets of nanoseconds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tidegauge import config
from tidegauge.batch import Points, Spans
from tidegauge.identity import OVERFLOW
from tidegauge.metric import Attributes, Kind, Number
from tidegauge.processors.stages import Stages
from tidegauge.units import Duration
from tidegauge.wire.attributes import Keys
from tidegauge.wire.counts import count_records
from tidegauge.wire.metrics import POINT
from tidegauge.wire.traces import scan

KEYS = Keys.of(config.IdentityAttributes(), config.Timings())
INTERNAL, SERVER, CLIENT, PRODUCER, CONSUMER = 1, 2, 3, 4, 5
EPOCH_NS = 1_700_000_000 * 10**9
SECOND = 10**9
LINGER, GIVE_UP = 5 * SECOND, 70 * SECOND  # of the default settings

Span = dict[str, Any]
Sums = dict[tuple[str, Attributes], float]


def span(name: str, own: int, parent: int = 0, start: int = 0, duration: int = 0, **more: Any) -> Span:
    """A span of trace 1, `start` in ns behind EPOCH_NS; parent 0 is none."""
    return {"name": name, "id": own, "parent": parent, "start": start, "duration": duration, **more}


def batch(spans: Iterable[Span], service: str = "fraud") -> Spans:
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.add(key="service.name").value.string_value = service
    scope = resource.scope_spans.add()
    for one in spans:
        start = EPOCH_NS + one["start"]
        target = scope.spans.add(
            name=one["name"],
            kind=one.get("kind", INTERNAL),
            trace_id=one.get("trace", 1).to_bytes(16, "big"),
            span_id=one["id"].to_bytes(8, "big"),
            parent_span_id=one["parent"].to_bytes(8, "big") if one["parent"] else b"",
            start_time_unix_nano=0 if one.get("untimed") else start,
            end_time_unix_nano=start + one["duration"],
        )
        target.status.code = 2 if one.get("failed") else 0  # type: ignore[assignment]
        if one.get("model"):
            target.attributes.add(key="model.name").value.string_value = one["model"]
        if "cold" in one:
            target.attributes.add(key="faas.coldstart").value.bool_value = one["cold"]
    raw = request.SerializeToString()
    return Spans("otlp_grpc", raw, *scan(raw, count_records(raw), KEYS))


def sums(stages: Stages, now_ns: int) -> Sums:
    """What one collection says of requests: by the end of the metric's name and the attributes."""
    return {
        (metric.name.removeprefix("model.inference.").removeprefix("stage."), point.attributes): point.value
        for metric in stages.collect(now_ns)
        if metric.name.startswith("model.")
        for point in metric.points
        if isinstance(point, Number)
    }


def outcomes(stages: Stages, now_ns: int) -> dict[str, int]:
    (metric,) = (metric for metric in stages.collect(now_ns) if metric.name == "tidegauge.stages.spans")
    return {
        dict(point.attributes)["outcome"]: int(point.value)
        for point in metric.points
        if isinstance(point, Number)
    }


def gauge(stages: Stages, name: str, now_ns: int) -> float:
    (metric,) = (metric for metric in stages.collect(now_ns) if metric.name == f"tidegauge.stages.{name}")
    (point,) = metric.points
    assert isinstance(point, Number)
    return point.value


def resolved(*spans: Span, now_ns: int = EPOCH_NS, wait_ns: int = LINGER, **setting: Any) -> Sums:
    """The sums when the spans have come at once and waited for `wait_ns`."""
    stages = Stages(config.Stages(**setting))
    assert stages.update(batch(spans)) == {}
    assert sums(stages, now_ns) == {}
    return sums(stages, now_ns + wait_ns)


def key(operation: str, model: str = "fraud", **more: str) -> Attributes:
    return tuple({"model": model, "operation": operation, **more}.items())


def times(found: Sums, operation: str) -> dict[str, float]:
    return {
        dict(attributes)["span"]: value
        for (name, attributes), value in found.items()
        if name == "time" and dict(attributes)["operation"] == operation
    }


def test_the_stages_of_a_request_add_up_to_its_duration() -> None:
    found = resolved(
        span("POST /predict", 1, 99, 0, SECOND, kind=SERVER),
        span("preprocess", 2, 1, 0, SECOND // 10),
        span("predict", 3, 1, SECOND // 5, SECOND // 2),
        span("gpu", 4, 3, SECOND // 4, SECOND // 4),
        span("gpu", 5, 3, SECOND // 2, SECOND // 8),
    )
    assert found == {
        ("time", key("POST /predict", span="POST /predict")): 0.4,
        ("time", key("POST /predict", span="preprocess")): 0.1,
        ("time", key("POST /predict", span="predict")): 0.125,
        ("time", key("POST /predict", span="gpu")): 0.375,
        ("requests", key("POST /predict")): 1,
    }


def test_the_metrics_names_units_and_kinds() -> None:
    found = Stages(config.Stages(), start_ns=5).collect(0)
    assert [(metric.name, metric.unit, metric.kind, metric.start_ns) for metric in found] == [
        ("model.inference.stage.time", "s", Kind.COUNTER, 5),
        ("model.inference.stage.requests", "{request}", Kind.COUNTER, 5),
        ("model.inference.stage.cold_requests", "{request}", Kind.COUNTER, 5),
        ("model.inference.errors", "{request}", Kind.COUNTER, 5),
        ("tidegauge.stages.spans", "{span}", Kind.COUNTER, 5),
        ("tidegauge.stages.held", "{span}", Kind.GAUGE, 0),
        ("tidegauge.stages.sampling", "1", Kind.GAUGE, 0),
    ]


def test_triton_s_spans_are_one_request_of_the_model() -> None:
    """All of kind server; only the model's own span names it (server/src/tracer.cc)."""
    found = resolved(
        span("InferRequest", 1, 77, 0, 100, kind=SERVER),
        span("resnet", 2, 1, 10, 80, kind=SERVER, model="resnet"),
        span("compute", 3, 2, 20, 60, kind=SERVER),
    )
    assert found["requests", key("InferRequest", "resnet")] == 1
    assert times(found, "InferRequest") == {"InferRequest": 2e-8, "resnet": 2e-8, "compute": 6e-8}


@pytest.mark.parametrize(
    ("own", "below", "model"),
    [
        ("", ["a"], "a"),
        ("", ["a", "a"], "a"),
        ("", ["a", "b"], "fraud"),
        ("", [""], "fraud"),
        ("own", ["a"], "own"),
        ("own", ["a", "b"], "own"),
    ],
)
def test_whose_request_it_is(own: str, below: list[str], model: str) -> None:
    spans = [span(f"s{place}", place + 2, 1, model=name) for place, name in enumerate(below)]
    found = resolved(span("POST", 1, model=own), *spans)
    assert [name for name in found if name[0] == "requests"] == [("requests", key("POST", model))]


def test_where_another_request_starts_the_caller_keeps_the_time() -> None:
    found = resolved(
        span("gateway", 1, 0, 0, 100, kind=SERVER),
        span("call", 2, 1, 10, 80, kind=CLIENT),
        span("serve", 3, 2, 20, 60, kind=SERVER),
        span("work", 4, 3, 30, 40),
    )
    assert times(found, "gateway") == {"gateway": 2e-8, "call": 8e-8}
    assert times(found, "serve") == {"serve": 2e-8, "work": 4e-8}


def test_an_error_is_blamed_on_the_span_that_failed_first() -> None:
    root = span("POST", 1, 0, 0, 100, failed=True)
    middle = span("predict", 2, 1, 0, 90, failed=True)
    later, first = span("later", 3, 2, 0, 50, failed=True), span("first", 4, 2, 30, 10, failed=True)
    for spans, cause in [
        ([root], "POST"),
        ([root, middle], "predict"),
        ([root, middle, later], "later"),
        ([root, middle, later, first], "first"),
        ([root, span("fine", 5, 1), {**later, "parent": 5}], "later"),
    ]:
        found = resolved(*spans)
        assert {name: value for name, value in found.items() if name[0] == "errors"} == {
            ("errors", key("POST", cause=cause)): 1
        }


def test_a_request_that_recovered_has_not_failed() -> None:
    found = resolved(span("POST", 1), span("try", 2, 1, failed=True))
    assert not any(name == "errors" for name, _ in found)


def test_a_span_with_an_end_that_nobody_wrote_adds_no_more_than_the_longest_request() -> None:
    found = resolved(
        span("GET", 1, 0, 0, SECOND, kind=SERVER),
        span("broken", 2, 1, SECOND // 2, 2**63 - EPOCH_NS - SECOND),
        max_duration=Duration("10s"),
    )
    assert times(found, "GET") == {"GET": 0.5, "broken": 10.0}


def test_cold_starts_are_told_by_a_mark_or_a_name() -> None:
    for below, cold in [
        (span("predict", 2, 1, cold=True), 1),
        (span("predict", 2, 1, cold=False), None),
        (span("load_model", 2, 1), 1),
        (span("warm", 2, 1), None),
    ]:
        found = resolved(span("first", 9, 0, cold=False), span("POST", 1, 0), below)
        assert found.get(("cold_requests", key("POST"))) == cold
        assert ("cold_requests", key("first")) not in found
    assert resolved(span("mine", 1), cold_start_spans=("mine",))["cold_requests", key("mine")] == 1


def test_a_request_lingers_from_the_arrival_of_its_first_span() -> None:
    stages = Stages(config.Stages())
    stages.update(batch([span("late child", 2, 1, 0, 4)]))
    assert sums(stages, EPOCH_NS) == {}
    assert sums(stages, EPOCH_NS + 20 * SECOND) == {}
    stages.update(batch([span("POST", 1, 0, 0, 10)]))
    assert sums(stages, EPOCH_NS + 21 * SECOND) == {}
    stages.update(batch([span("later child", 3, 1, 5, 3)]))
    assert sums(stages, EPOCH_NS + 21 * SECOND + LINGER - 1) == {}
    found = sums(stages, EPOCH_NS + 21 * SECOND + LINGER)
    assert times(found, "POST") == {"POST": 3e-9, "late child": 4e-9, "later child": 3e-9}
    assert gauge(stages, "held", 0) == 0


def test_spans_without_a_request_are_given_up() -> None:
    stages = Stages(config.Stages())
    stages.update(batch([span("orphan", 2, 1), span("a", 3, 4), span("b", 4, 3), span("self", 5, 5)]))
    sums(stages, EPOCH_NS)
    assert sums(stages, EPOCH_NS + GIVE_UP - 1) == {}
    assert gauge(stages, "held", EPOCH_NS) == 4
    assert sums(stages, EPOCH_NS + GIVE_UP) == {}
    assert outcomes(stages, EPOCH_NS) == {"orphaned": 4}
    assert gauge(stages, "held", EPOCH_NS) == 0


def test_a_model_s_call_whose_caller_is_traced_elsewhere_becomes_a_request() -> None:
    call = [span("chat", 2, 1, 0, 10, kind=CLIENT, model="llm"), span("connect", 3, 2, 0, 4)]
    assert resolved(*call) == {}
    found = resolved(*call, wait_ns=GIVE_UP)
    assert found["requests", key("chat", "llm")] == 1
    assert times(found, "chat") == {"chat": 6e-9, "connect": 4e-9}


def test_what_cannot_be_placed_is_counted() -> None:
    stages = Stages(config.Stages())
    spans = [
        span("a", 0),
        span("b", 1, trace=0),
        span("c", 2, untimed=True),
        span("d", 3, duration=61 * SECOND),
        span("below d", 4, 3),
        span("e", 5),
        span("e", 5),
    ]
    stages.update(batch(spans))
    for now_ns in (EPOCH_NS, EPOCH_NS + LINGER):
        stages.collect(now_ns)
    assert outcomes(stages, EPOCH_NS) == {
        "unidentified": 2,
        "untimed": 1,
        "too_long": 2,
        "analysed": 1,
        "duplicate": 1,
    }


def test_series_are_bounded_for_all_four_metrics_together() -> None:
    spans = [span(f"op{number}", number + 1, 0, 0, 10, failed=True) for number in range(200)]
    found = resolved(*spans, max_series=6)
    assert found == {
        **{("time", key(f"op{number}", span=f"op{number}")): 1e-8 for number in (0, 1)},
        **{("requests", key(f"op{number}")): 1 for number in (0, 1)},
        **{("errors", key(f"op{number}", cause=f"op{number}")): 1 for number in (0, 1)},
        ("time", OVERFLOW): pytest.approx(198e-8),
        ("requests", OVERFLOW): 198,
        ("errors", OVERFLOW): 198,
    }


def test_names_beyond_the_limit_take_no_memory() -> None:
    stages = Stages(config.Stages(max_series=5))
    for first in range(0, 3000, 100):
        stages.update(batch(span(f"op{first + number}", first + number + 1) for number in range(100)))
    assert len(stages._names) <= 21
    assert len(stages._table) <= 64
    sums(stages, EPOCH_NS)
    found = sums(stages, EPOCH_NS + LINGER)
    assert sum(value for (name, _), value in found.items() if name == "requests") == 3000


def test_it_can_be_switched_off_and_ignores_other_signals() -> None:
    stages = Stages(config.Stages(enabled=False))
    assert stages.update(batch([span("a", 1)])) == {}
    assert stages.collect(0) == ()
    assert Stages(config.Stages()).update(Points("otlp_grpc", b"", np.zeros(3, POINT))) == {}


def trace(number: int, size: int = 4, start: int = 0) -> list[Span]:
    """A trace of `size` spans of 10 ns, all names its own."""
    names = [f"t{number}", *(f"t{number}.{place}" for place in range(1, size))]
    return [
        span(
            name, place + 1, 1 if place else 0, start + 10 * place, 10 * (1 if place else size), trace=number
        )
        for place, name in enumerate(names)
    ]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 60), st.integers(1, 7), st.randoms(use_true_random=False))
def test_under_pressure_traces_are_left_out_whole(traces: int, size: int, random: Any) -> None:
    stages = Stages(config.Stages(max_spans=64))
    spans = [one for number in range(1, traces + 1) for one in trace(number, size)]
    random.shuffle(spans)
    for at in range(0, len(spans), 50):
        stages.update(batch(spans[at : at + 50]))
        sums(stages, EPOCH_NS)
    found = sums(stages, EPOCH_NS + LINGER)
    whole = [number for number in range(1, traces + 1) if ("requests", key(f"t{number}")) in found]
    for number in whole:
        expected = {one["name"]: 1e-8 for one in trace(number, size)}
        assert times(found, f"t{number}") == pytest.approx(expected)
    assert sum(value for (name, _), value in found.items() if name == "requests") == len(whole)
    analysed = len(whole) * size
    left = {"analysed": analysed, "sampled": len(spans) - analysed}
    assert outcomes(stages, EPOCH_NS) == {name: count for name, count in left.items() if count}
    if len(spans) <= 64:
        assert analysed == len(spans)


def test_the_share_of_traces_adapts_and_recovers() -> None:
    stages = Stages(config.Stages(max_spans=1024))
    now_ns, number = EPOCH_NS, 0
    for _ in range(5):
        for _ in range(20):
            spans = [one for number in range(number + 1, number + 101) for one in trace(number)]
            stages.update(batch(spans))
        now_ns += LINGER
        stages.collect(now_ns)
        number += 100
    # 8000 spans wait at a time where 1024 can.
    assert gauge(stages, "sampling", now_ns) in (1 / 8, 1 / 16, 1 / 32)
    for _ in range(40):
        now_ns += 20 * SECOND
        stages.collect(now_ns)
    assert gauge(stages, "sampling", now_ns) == 1


def test_traces_that_began_before_they_were_let_in_are_left_out() -> None:
    stages = Stages(config.Stages(max_spans=256))
    stages.update(batch(one for number in range(1, 400) for one in trace(number, 2)))
    # All has gone by the second collection; by the third one there has been room for as long as spans wait.
    opened_ns = EPOCH_NS + 2 * GIVE_UP
    for now_ns in (EPOCH_NS, EPOCH_NS + GIVE_UP, opened_ns):
        stages.collect(now_ns)
    assert gauge(stages, "sampling", opened_ns) == 1
    before = outcomes(stages, opened_ns)
    for first, start in ((1000, 2 * GIVE_UP - 1), (2000, 2 * GIVE_UP)):
        stages.update(batch(one for number in range(first, first + 30) for one in trace(number, 2, start)))
    stages.collect(opened_ns)
    found = sums(stages, opened_ns + LINGER)
    seen = {dict(attributes)["operation"] for name, attributes in found if name == "requests"}
    assert {f"t{number}" for number in range(2000, 2030)} <= seen
    left_out = {f"t{number}" for number in range(1000, 1030)} - seen
    assert len(left_out) > 0
    assert outcomes(stages, opened_ns)["sampled"] - before["sampled"] == 2 * len(left_out)


def test_a_trace_that_is_too_large_is_given_up_for_good() -> None:
    stages = Stages(config.Stages(max_spans=64))
    giant = [span(f"g{place % 3}", place + 1, 1 if place else 0, trace=7) for place in range(200)]
    small = [one for number in (101, 102) for one in trace(number, 4)]
    stages.update(batch(small + giant))
    sums(stages, EPOCH_NS)
    stages.update(batch(giant[:1]))
    sums(stages, EPOCH_NS)
    found = sums(stages, EPOCH_NS + LINGER)
    assert {attributes for name, attributes in found if name == "requests"} == {key("t101"), key("t102")}
    assert outcomes(stages, EPOCH_NS) == {"analysed": 8, "too_large": 201}
    assert gauge(stages, "sampling", EPOCH_NS) == 1
    stages.collect(EPOCH_NS + GIVE_UP)
    assert gauge(stages, "held", EPOCH_NS + GIVE_UP) == 0


some_span = st.builds(
    span,
    st.sampled_from(["a", "b", "c"]),
    st.integers(1, 7),
    st.integers(0, 8),
    st.integers(1, 30),
    st.integers(0, 20),
    kind=st.sampled_from([INTERNAL, INTERNAL, CLIENT, SERVER]),
    trace=st.integers(1, 2),
    failed=st.booleans(),
    model=st.sampled_from(["", "", "m", "n"]),
    cold=st.sampled_from([False, False, True]),
)


def expected(spans: list[Span]) -> Sums:
    """The sums when all has been resolved or given up."""
    found: defaultdict[tuple[str, Attributes], float] = defaultdict(float)
    held = {}
    for one in spans:
        held.setdefault((one["trace"], one["id"]), one)
    for first in held.values():
        if starts(first, held):
            members = [one for one in held.values() if request(one, held) is first]
            add(found, first, members, held)
    return dict(found)


def parent(one: Span, held: dict[Any, Span]) -> Span | None:
    return held.get((one["trace"], one["parent"]))


def starts(one: Span, held: dict[Any, Span]) -> bool:
    above = parent(one, held)
    serves = one["kind"] == SERVER and not (above and above["kind"] == SERVER)
    return one["parent"] == 0 or serves or (above is None and one["model"] != "")


def request(one: Span | None, held: dict[Any, Span]) -> Span | None:
    for _ in held:
        if one is None or starts(one, held):
            return one
        one = parent(one, held)
    return None  # a circle


def below(one: Span, members: list[Span], held: dict[Any, Span]) -> list[Span]:
    children = [member for member in members if parent(member, held) is one and not starts(member, held)]
    return children + [deeper for child in children for deeper in below(child, members, held)]


def add(found: Any, first: Span, members: list[Span], held: dict[Any, Span]) -> None:
    models = {one["model"] for one in members if one["model"]}
    model = first["model"] or (models.pop() if len(models) == 1 else "fraud")
    for one in members:
        own = set(range(one["start"], one["start"] + one["duration"]))
        for child in members:
            if child is not first and parent(child, held) is one:
                own -= set(range(child["start"], child["start"] + child["duration"]))
        found["time", key(first["name"], model, span=one["name"])] += len(own) / 1e9
    found["requests", key(first["name"], model)] += 1
    if any(one["cold"] for one in members):
        found["cold_requests", key(first["name"], model)] += 1
    if first["failed"]:
        deepest = [
            one
            for one in members
            if one["failed"] and not any(under["failed"] for under in below(one, members, held))
        ]
        cause = min(deepest, key=lambda one: (one["start"] + one["duration"], one["id"]))
        found["errors", key(first["name"], model, cause=cause["name"])] += 1


@settings(deadline=None, max_examples=400)
@given(st.lists(st.lists(some_span, max_size=8), max_size=4))
def test_sums_equal_those_of_the_trees_in_any_order_and_split(batches: list[list[Span]]) -> None:
    stages = Stages(config.Stages())
    spans = [one for part in batches for one in part]
    for later, part in enumerate(batches):
        stages.update(batch(part))
        assert sums(stages, EPOCH_NS + later) == {}
    sums(stages, EPOCH_NS + LINGER + len(batches))
    found = sums(stages, EPOCH_NS + GIVE_UP + len(batches))
    assert found == pytest.approx(expected(spans), abs=1e-15)
    assert sum(outcomes(stages, 0).values()) == len(spans)
    assert gauge(stages, "held", 0) == 0


@settings(deadline=None, max_examples=20)
@given(st.integers(20, 3000), st.randoms(use_true_random=False))
def test_many_children_that_overlap_cover_their_union(children: int, random: Any) -> None:
    spans = [span("POST", 1, 0, 0, 10**5, kind=SERVER)]
    spans += [
        span("child", place + 2, 1, random.randrange(10**5), random.randrange(100))
        for place in range(children)
    ]
    own = set(range(10**5))
    for child in spans[1:]:
        own -= set(range(child["start"], child["start"] + child["duration"]))
    random.shuffle(spans)
    found = times(resolved(*spans), "POST")
    assert found["POST"] == pytest.approx(len(own) / 1e9)
    assert found["child"] == pytest.approx(sum(one["duration"] for one in spans) / 1e9 - 1e-4)


def test_a_long_chain_is_one_request() -> None:
    chain = [span("step", place, place - 1, place, 60_000 - 2 * place) for place in range(1, 20_001)]
    found = resolved(*reversed(chain))
    assert found["requests", key("step")] == 1
    assert times(found, "step")["step"] == pytest.approx(chain[0]["duration"] / 1e9)


def test_the_order_of_arrival_does_not_matter() -> None:
    spans = [span(f"s{place}", place + 1, place, place, 40 - 2 * place) for place in range(15)]
    one, other = Counter(resolved(*spans)), Counter(resolved(*reversed(spans)))
    assert one == other
    assert sum(times(dict(one), "s0").values()) == pytest.approx(4e-8)
