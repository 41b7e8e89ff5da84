"""Joined batches against plain lists."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tidegauge.batch import Spans
from tidegauge.processors.joined import MAX_SPANS, join
from tidegauge.wire.traces import MARK, SPAN


def batch(name: int, marked: list[bool]) -> Spans:
    """Spans that carry the batch's name and their place in it; two marks on those `marked`."""
    columns = np.zeros(len(marked), SPAN)
    columns["key"] = name
    columns["name_offset"] = np.arange(len(marked))
    marks = np.zeros(2 * sum(marked), MARK)
    marks["span"] = np.repeat(np.flatnonzero(marked), 2)
    marks["value"] = marks["span"] + 1000 * name
    return Spans("otlp_grpc", bytes([name]), columns, marks)


@given(st.lists(st.lists(st.booleans(), max_size=5), max_size=6))
def test_every_span_comes_once_with_its_marks_and_its_request_s_bytes(marked: list[list[bool]]) -> None:
    batches = [batch(name, one) for name, one in enumerate(marked)]
    spans, marks = [], []
    for joined in join(batches):
        for place, span in enumerate(joined.spans):
            spans.append((joined.raw(place)[0], int(span["key"]), int(span["name_offset"])))
        for mark in joined.marks:
            span = joined.spans[mark["span"]]
            marks.append((int(span["key"]), int(span["name_offset"]), float(mark["value"])))
    expected = [(name, place, one) for name, row in enumerate(marked) for place, one in enumerate(row)]
    assert spans == [(name, name, place) for name, place, _ in expected]
    told = [(name, place, place + 1000.0 * name) for name, place, one in expected if one]
    assert marks == [mark for mark in told for _ in range(2)]


def test_the_batches_are_left_as_they_are() -> None:
    batches = [batch(0, [True]), batch(1, [True])]
    [joined] = join(batches)
    assert joined.marks["span"].tolist() == [0, 0, 1, 1]
    assert [one.marks["span"].tolist() for one in batches] == [[0, 0], [0, 0]]


def test_one_batch_is_not_copied() -> None:
    one = batch(0, [True, False])
    [joined] = join([one])
    assert joined.spans is one.columns
    assert joined.marks is one.marks


def test_a_run_is_bounded_but_for_a_single_large_batch() -> None:
    sizes = [MAX_SPANS - 1, 1, 1, MAX_SPANS + 5, 2, 3]
    runs = [len(joined.spans) for joined in join(batch(0, [False] * size) for size in sizes)]
    assert runs == [MAX_SPANS, 1, MAX_SPANS + 5, 5]
    assert list(join([])) == []
