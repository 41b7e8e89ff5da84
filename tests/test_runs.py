"""Runs and chains are sequences of points: all that a tuple of them does, they do."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegauge.metric import Exemplar, Number
from tidegauge.runs import Chain, Column, Run, labels_of, plain

LABELS = st.tuples(st.tuples(st.just("feature"), st.sampled_from("abc")))
NUMBERS = st.lists(st.builds(Number, LABELS, st.floats(allow_nan=False)), max_size=6)
PARTS = st.lists(st.tuples(NUMBERS, st.booleans()), max_size=5)
PLACES = st.none() | st.integers(-20, 20)


def run(points):
    return Run([one.attributes for one in points], [one.value for one in points])


@given(PARTS, PLACES, PLACES, st.sampled_from([None, 1, 2, -1]))
def test_a_chain_is_the_points_of_its_parts(parts, begin, end, step):
    whole = tuple(point for points, _ in parts for point in points)
    chain = Chain(run(points) if as_run else tuple(points) for points, as_run in parts)
    assert len(chain) == len(whole)
    assert chain == whole
    assert [chain[place] for place in range(-len(whole), len(whole))] == [*whole, *whole]
    piece = chain[begin:end:step]
    assert tuple(piece) == whole[begin:end:step]
    assert len(piece) == len(whole[begin:end:step])
    assert list(labels_of(piece)) == [point.attributes for point in piece]
    with pytest.raises(IndexError):
        chain[len(whole)]


@given(PARTS)
def test_a_column_gives_back_what_it_was_given(parts):
    column, told = Column(), []
    for points, at_once in parts:
        if at_once:
            column.put([one.attributes for one in points], [one.value for one in points])
            told += points
    loose = [point for points, at_once in parts if not at_once for point in points]
    column.extend(loose)
    assert isinstance(column.points(), Run)
    assert column.points() == (*told, *loose)


@pytest.mark.parametrize(
    "point",
    [
        Number((), 1.0, start_ns=5),
        Number((), 1.0, exemplar=Exemplar(1.0, 2, ())),
        Number((), 1),  # a whole number is written without a point
    ],
)
def test_what_a_run_has_no_room_for_stays_as_it_is(point):
    column = Column()
    column.put([(("feature", "a"),)], [0.5])
    column.append(point)
    assert tuple(column.points()) == (Number((("feature", "a"),), 0.5), point)
    assert type(tuple(column.points())[1].value) is type(point.value)


def test_runs_are_equal_where_they_would_be_written_alike():
    labels = [(("feature", "a"),)]
    assert Run(labels, [math.nan]) == Run(labels, [math.nan])
    assert Run(labels, [0.0]) != Run(labels, [-0.0])
    assert Run(labels, [1.0]) != Run([(("feature", "b"),)], [1.0])


def test_a_run_has_a_value_for_each_label():
    with pytest.raises(ValueError, match="2 values of 1 labels"):
        Run([()], [1.0, 2.0])


def test_json_is_that_of_the_points():
    points = (Number((("feature", "a"),), 0.5), Number((), math.nan))
    chain = Chain([run(points[:1]), points[1:]])
    assert msgspec.json.encode(chain, enc_hook=plain) == msgspec.json.encode(points)
    with pytest.raises(NotImplementedError):
        plain(object())
