"""The timings against a slow count of the same spans and marks."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from tidegauge import config
from tidegauge.batch import Points, Spans
from tidegauge.metric import ExponentialHistogram, Kind, Number
from tidegauge.processors.quantities import QUANTITIES
from tidegauge.processors.requests import TRITON
from tidegauge.processors.timings import Timings
from tidegauge.wire.metrics import POINT
from tidegauge.wire.traces import MARK, SPAN, Mark

INTERNAL, SERVER = 1, 2
SECOND = 10**9
PHASES = {
    Mark.QUEUE: "queue",
    Mark.PREFILL: "prefill",
    Mark.DECODE: "decode",
    Mark.INFERENCE: "inference",
    Mark.VALIDATION: "validation",
}
SERIES = {
    Mark.TIME_TO_FIRST_TOKEN: ("time_to_first_token",),
    Mark.TIME_PER_OUTPUT_TOKEN: ("time_per_output_token",),
    Mark.INPUT_TOKENS: ("tokens", "input"),
    Mark.OUTPUT_TOKENS: ("tokens", "output"),
    Mark.COLD_START: ("cold_starts",),
} | {mark: ("phase.duration", phase) for mark, phase in PHASES.items()}


@dataclass
class One:
    """A span and its marks: values of attributes, times of events."""

    model: str = "m"
    kind: int = SERVER
    scope: int = 0
    trace: int = 1
    span: int = 1
    parent: int = 9
    duration_ns: int = 0
    has_model: bool = False
    marks: dict[Mark, float] = field(default_factory=dict)


def batch(*ones: One) -> Spans:
    """What the scanner makes of a request with these spans."""
    columns = np.zeros(len(ones), SPAN)
    marks, raw = [], bytearray()
    for place, (one, span) in enumerate(zip(ones, columns, strict=True)):
        value = AnyValue(string_value=one.model).SerializeToString()
        span["value_offset"][0], span["value_length"][0] = len(raw), len(value)
        raw += value
        # Identities are told apart by more than the model's name in truth; a hash of it will do.
        span["key"] = (
            int.from_bytes(one.model.encode().ljust(8, b"\x01")[:8], "little") * 0x9E3779B97F4A7C15 % 2**64
        )
        span["start_ns"], span["duration_ns"] = SECOND, one.duration_ns
        span["trace_high"], span["trace_low"] = one.trace >> 64, one.trace & 2**64 - 1
        span["span_id"], span["parent_id"] = one.span, one.parent
        span["kind"], span["scope"], span["has_model"] = one.kind, one.scope, one.has_model
        for mark, told in one.marks.items():
            is_event = mark >= Mark.QUEUE_START
            marks.append((place, mark, 0.0 if is_event else told, told if is_event else 0))
    return Spans("otlp_grpc", bytes(raw), columns, np.array(marks, MARK))


def shown(timings: Timings) -> dict[tuple[str, ...], tuple[int, float]]:
    """(count, sum) of every series by metric and labels' values; counters that are not 0 as (1, value)."""
    found = {}
    for metric in timings.collect(0):
        for point in metric.points:
            key = (metric.name.removeprefix("model.inference."), *(value for _, value in point.attributes))
            if isinstance(point, ExponentialHistogram):
                found[key] = point.count, point.sum
            elif isinstance(point, Number) and (point.value or key[0] == "cold_starts"):
                found[key] = 1, point.value
    return found


def fold(*batches: Spans, **settings_: Any) -> dict[tuple[str, ...], tuple[int, float]]:
    timings = Timings(config.Latency(**settings_), 0)
    assert timings.update(*batches) == {}
    return shown(timings)


def test_names_units_kinds_and_start() -> None:
    metrics = Timings(config.Latency(), start_ns=5).collect(0)
    histogram, counter = Kind.EXPONENTIAL_HISTOGRAM, Kind.COUNTER
    assert [(metric.name, metric.unit, metric.kind) for metric in metrics] == [
        ("model.inference.time_to_first_token", "s", histogram),
        ("model.inference.time_per_output_token", "s", histogram),
        ("model.inference.phase.duration", "s", histogram),
        ("model.inference.tokens", "{token}", histogram),
        ("model.inference.cold_starts", "{request}", counter),
        ("tidegauge.timings.unjoined", "{span}", counter),
        ("tidegauge.timings.invalid", "{value}", counter),
        ("tidegauge.timings.overflow", "{span}", counter),
    ]
    assert {metric.start_ns for metric in metrics} == {5}


def test_other_signals_and_spans_without_marks_are_ignored() -> None:
    assert fold(Points("otlp_grpc", b"", np.zeros(3, POINT)), batch(One(), One())) == {}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("marks", "per_token"),
    [
        ({Mark.DECODE: 3.0, Mark.OUTPUT_TOKENS: 4}, 1.0),
        ({Mark.DECODE: 3.0, Mark.OUTPUT_TOKENS: 4, Mark.TIME_TO_FIRST_TOKEN: 1.0, Mark.TOTAL: 99.0}, 1.0),
        ({Mark.TIME_TO_FIRST_TOKEN: 1.0, Mark.TOTAL: 7.0, Mark.OUTPUT_TOKENS: 4}, 2.0),
        ({Mark.TIME_TO_FIRST_TOKEN: 1.0, Mark.OUTPUT_TOKENS: 4}, 3.0),  # of the span's own 10 s
        ({Mark.DECODE: 3.0, Mark.OUTPUT_TOKENS: 2}, 3.0),
        ({Mark.DECODE: 3.0, Mark.OUTPUT_TOKENS: 1}, None),
        ({Mark.DECODE: 3.0, Mark.OUTPUT_TOKENS: math.nan}, None),
        ({Mark.DECODE: 3.0, Mark.OUTPUT_TOKENS: math.inf}, None),
        ({Mark.DECODE: 3.0}, None),
        ({Mark.TOTAL: 3.0, Mark.OUTPUT_TOKENS: 4}, None),
        ({Mark.TIME_TO_FIRST_TOKEN: 8.0, Mark.TOTAL: 7.0, Mark.OUTPUT_TOKENS: 4}, None),
        ({Mark.TIME_PER_OUTPUT_TOKEN: 0.5, Mark.DECODE: 3.0, Mark.OUTPUT_TOKENS: 4}, 0.5),
    ],
)
def test_the_time_per_output_token(marks: dict[Mark, float], per_token: float | None) -> None:
    found = fold(batch(One(duration_ns=10 * SECOND, marks=marks)))
    assert found.get(("time_per_output_token", "m")) == (None if per_token is None else (1, per_token))


@pytest.mark.parametrize("value", [-1e-9, -math.inf, math.inf, math.nan, 1e300])
def test_what_is_no_duration_or_count_is_left_out_and_counted(value: float) -> None:
    marks = {mark: value for mark in SERIES if mark != Mark.COLD_START}
    good = {Mark.QUEUE: 0.0}
    assert fold(batch(One(marks=marks), One(marks=good))) == {
        ("phase.duration", "m", "queue"): (1, 0.0),
        ("tidegauge.timings.invalid",): (1, 9.0),
    }


def test_cold_starts_are_counted_and_warm_ones_make_a_series() -> None:
    told = [
        One(model=model, marks={Mark.COLD_START: value}) for model, value in (("a", 1), ("a", 5), ("b", 0))
    ]
    assert fold(batch(*told, One(model="a", marks={Mark.COLD_START: 0.0}), One(model="c"))) == {
        ("cold_starts", "a"): (1, 2.0),
        ("cold_starts", "b"): (1, 0.0),
    }


@pytest.mark.parametrize(
    ("one", "counted"),
    [
        (One(kind=SERVER, marks={Mark.INPUT_TOKENS: 1.0}), True),
        (One(kind=INTERNAL, marks={Mark.INPUT_TOKENS: 1.0}), False),
        (One(kind=INTERNAL, marks={Mark.COLD_START: 1.0}), False),
        (One(kind=INTERNAL, marks={Mark.INPUT_TOKENS: 1.0}, has_model=True), True),
        # TGI tells its durations on an inner span.
        (One(kind=INTERNAL, marks={Mark.TOTAL: 1.0, Mark.INPUT_TOKENS: 1.0}), True),
        (One(kind=SERVER, scope=TRITON, marks={Mark.QUEUE: 1.0}), False),
        (One(kind=SERVER, scope=TRITON, marks={Mark.QUEUE: 1.0}, has_model=True), True),
    ],
)
def test_whose_marks_count(one: One, counted: bool) -> None:
    assert bool(fold(batch(one))) is counted


def test_every_span_s_marks_count_where_all_spans_do() -> None:
    one = One(kind=INTERNAL, marks={Mark.INPUT_TOKENS: 1.0})
    assert fold(batch(one), spans="all") == {("tokens", "m", "input"): (1, 1.0)}


def test_the_first_of_two_marks_of_a_kind_counts() -> None:
    one = batch(One(marks={Mark.QUEUE: 1.0}))
    both = np.concatenate([one.marks, one.marks])
    both["value"][1] = 2.0
    assert fold(Spans(one.receiver, one.raw, one.columns, both)) == {
        ("phase.duration", "m", "queue"): (1, 1.0)
    }


START = 1_700_000_000 * SECOND


def model(marks: dict[Mark, float] | None = None, **more: Any) -> One:
    marks = {Mark.QUEUE_START: START} if marks is None else marks
    return One(scope=TRITON, has_model=True, span=5, marks=marks, **more)


def compute(*offsets_ns: int, **more: Any) -> One:
    marks = {Mark(Mark.COMPUTE_START + at): START + offset for at, offset in enumerate(offsets_ns) if offset}
    return One(scope=TRITON, span=6, parent=5, marks=marks, **more)


def test_triton_s_times_are_differences_of_events() -> None:
    # Beyond 2**53 ns a double would not tell one nanosecond.
    assert fold(batch(model(), compute(1, 3, 6, 10))) == {
        ("phase.duration", "m", "queue"): (1, 1e-9),
        ("phase.duration", "m", "compute_input"): (1, 2e-9),
        ("phase.duration", "m", "compute_infer"): (1, 3e-9),
        ("phase.duration", "m", "compute_output"): (1, 4e-9),
    }


def test_an_event_that_is_missing_takes_its_times_along() -> None:
    assert fold(batch(model(), compute(1, 0, 6, 10))) == {
        ("phase.duration", "m", "queue"): (1, 1e-9),
        ("phase.duration", "m", "compute_output"): (1, 4e-9),
    }


def test_a_time_that_goes_backwards_is_left_out_and_counted() -> None:
    assert fold(batch(model(), compute(-1, 3, 2, 10))) == {
        ("phase.duration", "m", "compute_input"): (1, 4e-9),
        ("phase.duration", "m", "compute_output"): (1, 8e-9),
        ("tidegauge.timings.invalid",): (1, 2.0),
    }


def test_spans_of_other_traces_and_parents_do_not_join() -> None:
    assert fold(batch(model(), compute(1, trace=2), compute(2, trace=1 << 64))) == {}


def test_what_never_joins_is_counted_by_its_kind() -> None:
    timings = Timings(config.Latency(), 0)
    timings.update(batch(model(), compute(1, trace=2), compute(2, trace=3)))
    timings.collect(60 * SECOND)
    assert shown(timings) == {
        ("tidegauge.timings.unjoined", "model"): (1, 1.0),
        ("tidegauge.timings.unjoined", "compute"): (1, 2.0),
    }


def test_identities_are_bounded_and_what_overflows_is_counted() -> None:
    ones = [One(model=f"m{number}", marks={Mark.QUEUE: 1.0}) for number in range(50)]
    found = fold(batch(*ones), batch(*ones), max_series=3 * QUANTITIES)
    assert found == {("phase.duration", f"m{number}", "queue"): (2, 2.0) for number in range(3)} | {
        ("phase.duration", "true", "queue"): (94, 94.0),
        ("tidegauge.timings.overflow",): (1, 94.0),
    }


def test_memory_does_not_grow_with_identities() -> None:
    timings = Timings(config.Latency(max_series=3 * QUANTITIES), 0)
    for first in range(0, 1000, 100):
        timings.update(
            batch(*(One(model=f"m{first + number}", marks={Mark.QUEUE: 1.0}) for number in range(100)))
        )
    assert len(timings._histograms.rows) == 4 * QUANTITIES
    assert len(timings._table.entries) <= 512
    assert sum(count for (name, *_), (count, _) in shown(timings).items() if name == "phase.duration") == 1000


def test_a_point_and_its_attributes_are_the_same_objects_until_it_changes() -> None:
    timings = Timings(config.Latency(), 0)
    timings.update(batch(One(model="a", marks={Mark.QUEUE: 1.0}), One(model="b", marks={Mark.QUEUE: 1.0})))
    first = timings.collect(0)
    assert timings.collect(1) is first
    timings.update(batch(One(model="b", marks={Mark.QUEUE: 1.0})))
    second = timings.collect(2)
    (same, before), (again, after) = first[2].points, second[2].points
    assert again is same
    assert after != before
    assert after.attributes is before.attributes


value = st.one_of(st.integers(0, 5).map(float), st.sampled_from([0.25, -1.0, math.nan]))
some_llm = st.builds(
    One,
    model=st.sampled_from(["a", "b", ""]),
    kind=st.integers(0, 5),
    duration_ns=st.integers(0, 20).map(lambda seconds: seconds * SECOND),
    has_model=st.booleans(),
    marks=st.dictionaries(st.sampled_from([mark for mark in Mark if mark <= Mark.COLD_START]), value),
)


@st.composite
def triton_requests(draw: st.DrawFn) -> list[One]:
    """Model spans and compute spans with ids of their own, some without their other half."""
    found = []
    times = st.integers(0, 3).map(lambda offset: START + offset)
    for trace in range(1, draw(st.integers(1, 6))):
        name = draw(st.sampled_from(["a", "c"]))
        if draw(st.booleans()) or draw(st.booleans()):
            found.append(model({Mark.QUEUE_START: draw(times)}, trace=trace, model=name))
        if draw(st.booleans()) or draw(st.booleans()):
            events = [mark for mark in Mark if mark > Mark.QUEUE_START]
            marks = draw(st.dictionaries(st.sampled_from(events), times, min_size=1))
            found.append(One(scope=TRITON, trace=trace, span=6, parent=5, marks=marks))
    return found


def slow(ones: list[One]) -> tuple[dict[tuple[str, ...], list[float]], int, Counter[str]]:
    """The values by series, how many were left out, and the halves that wait."""
    values: defaultdict[tuple[str, ...], list[float]] = defaultdict(list)
    for one in ones:
        who = one.model or "unknown"
        durations = [mark for mark in one.marks if mark <= Mark.TOTAL]
        if one.scope == TRITON or not (one.kind in (2, 5) or one.has_model or durations):
            continue
        for mark, told in one.marks.items():
            if mark in SERIES:
                name, *label = SERIES[mark]
                is_cold = mark == Mark.COLD_START and told == told
                values[name, who, *label].append(float(told != 0) if is_cold else told)
        tokens = one.marks.get(Mark.OUTPUT_TOKENS, 0)
        if tokens >= 2 and Mark.TIME_PER_OUTPUT_TOKEN not in one.marks:
            whole = one.marks.get(Mark.TOTAL, one.duration_ns / SECOND)
            first = one.marks.get(Mark.TIME_TO_FIRST_TOKEN)
            decode = one.marks.get(Mark.DECODE, None if first is None else whole - first)
            if decode is not None:
                values["time_per_output_token", who].append(decode / (tokens - 1))
    models = {one.trace: one for one in ones if one.scope == TRITON and one.has_model}
    computes = {one.trace: one for one in ones if one.scope == TRITON and not one.has_model}
    for trace in models.keys() & computes.keys():
        marks = models[trace].marks | computes[trace].marks
        phases = ("queue", "compute_input", "compute_infer", "compute_output")
        for at, phase in enumerate(phases, Mark.QUEUE_START):
            if at in marks and at + 1 in marks:
                elapsed = (marks[Mark(at + 1)] - marks[Mark(at)]) / 1e9
                values["phase.duration", models[trace].model, phase].append(elapsed)
    good = {key: [one for one in found if 0 <= one < math.inf] for key, found in values.items()}
    invalid = sum(map(len, values.values())) - sum(map(len, good.values()))
    alone = {"model": len(models.keys() - computes.keys()), "compute": len(computes.keys() - models.keys())}
    return {key: found for key, found in good.items() if found}, invalid, Counter(alone)


@settings(deadline=None)
@given(st.lists(some_llm, max_size=12), triton_requests(), st.randoms(), st.integers(1, 5))
def test_every_count_and_sum_whatever_the_order_and_the_batches(
    llm: list[One], triton: list[One], random: Any, parts: int
) -> None:
    ones = [*llm, *triton]
    random.shuffle(ones)
    batches = [batch(*ones[part::parts]) for part in range(parts)]
    together, apart = Timings(config.Latency(), 0), Timings(config.Latency(), 0)
    together.update(*batches)
    for one in batches:
        apart.update(one)
    for timings in (together, apart):
        timings.collect(100 * SECOND)
        found = shown(timings)
        values, invalid, alone = slow(ones)
        expected = {
            key: pytest.approx((1 if key[0] == "cold_starts" else len(told), sum(told)))
            for key, told in values.items()
        }
        expected |= {("tidegauge.timings.invalid",): (1, invalid)} if invalid else {}
        expected |= {("tidegauge.timings.unjoined", kind): (1, lost) for kind, lost in alone.items() if lost}
        assert found == expected
