"""The replay says what the agent's processor says, pane by pane."""

from __future__ import annotations

import msgspec
import numpy as np
import pyarrow as pa

from tidegauge.backtest.replay import Replay, columns, replay
from tidegauge.backtest.timeline import ALARM, DRIFTED, MOST, Timeline, moved
from tidegauge.batch import Records
from tidegauge.identity import Identity
from tidegauge.layout import layout_of
from tidegauge.processors.drift.drift import Drift

MINUTE = 60 * 10**9
PANE = 5 * MINUTE


def cut(past, size):
    rows, times = past
    for start in range(0, len(times), size):
        yield rows.slice(start, size), times[start : start + size]


def moments(past, reference, settings, size=1_000):
    return [one for [one] in replay(cut(past, size), [Replay(reference, settings)])]


def test_each_pane_with_rows_is_looked_at_once_at_its_end(past, reference, settings):
    found = moments(past, reference, settings)
    wanted = (np.unique(past[1] // PANE) + 1) * PANE
    assert [one.time_ns for one in found] == wanted.tolist()
    assert {(one.kind, one.column) for one in found[-1].evaluations} == set(columns(reference, settings))
    steady = [one for moment in found for one in moment.evaluations if one.column == "steady"]
    inside = [int(((past[1] >= end - 12 * PANE) & (past[1] < end)).sum()) for end in wanted]
    assert [one.rows for one in steady] == inside


def test_how_the_rows_are_cut_makes_no_difference(past, reference, settings):
    few, many = (moments(past, reference, settings, size) for size in (72_000, 777))
    for one, other in zip(few, many, strict=True):
        # Written out, NaN is itself.
        assert list(map(repr, one.evaluations)) == list(map(repr, other.evaluations))


def test_alarms_are_those_of_the_processor_fed_live(past, reference, settings):
    """A batch every ten seconds, and a scrape at the end of each pane."""
    rows, times = past
    layout, drift = layout_of(rows.schema), Drift(settings, [reference])
    alarming, pane = [], times[0] // PANE
    for start in range(0, len(times), 17):
        piece = times[start : start + 17]
        if piece[-1] // PANE > pane and start:
            pane = piece[-1] // PANE
            found = {metric.name: metric for metric in drift.collect(int(pane * PANE - 1))}
            if "feature.drift.alarm" in found:
                alarming += [
                    dict(point.attributes)["feature"]
                    for point in found["feature.drift.alarm"].points
                    if point.value and dict(point.attributes)["feature"] == "moves"
                ]
        drift.update(
            Records("flight", Identity("fraud", "2.1"), layout, rows.slice(start, 17), int(piece[-1]), 1)
        )
    replayed = moments(past, reference, settings)
    told = [one for moment in replayed for one in moment.evaluations if one.is_alarming]
    assert len(alarming) > 50
    # The batch that reaches into the next pane has been folded, or has not: one look of difference.
    assert abs(len(told) - len(alarming)) <= 1


def test_several_thresholds_see_the_same_rows(past, reference, settings):
    strict, lax = settings, msgspec.structs.replace(settings, threshold=5.0)
    replays = [Replay(reference, one) for one in (strict, lax)]
    timelines = [Timeline(columns(reference, settings)) for _ in replays]
    for both in replay(cut(past, 5_000), replays):
        assert [one.score for one in both[0].evaluations] == [one.score for one in both[1].evaluations] or (
            np.isnan([one.score for one in both[0].evaluations]).any()
        )
        for timeline, one in zip(timelines, both, strict=True):
            timeline.add(one)
    assert {one.first.column for one in timelines[0].episodes} == {"moves"}
    assert timelines[1].episodes == []


def test_the_timeline_tells_when_and_why(past, reference, settings):
    timeline = Timeline(columns(reference, settings))
    for moment in moments(past, reference, settings):
        timeline.add(moment)
    shift = int(past[1][0] // (60 * MINUTE) + 6) * 60 * MINUTE
    worst, *others = timeline.summaries()
    assert worst.column == ("feature", "moves")
    assert [one.alarms for one in others] == [0, 0]
    alarm = next(one for one in worst.episodes if one.what == ALARM)
    drifted = next(one for one in worst.episodes if one.what == DRIFTED)
    # One pane must have ended and got its late rows before it is evidence.
    assert shift + PANE <= alarm.first.time_ns <= shift + 8 * PANE
    assert shift + PANE <= drifted.first.time_ns <= shift + 4 * PANE
    assert drifted.end_ns is None
    assert worst.why is alarm
    top = alarm.moved[0]
    assert top.bin.endswith("+inf)")
    assert top.window > 1.5 * top.reference
    assert 0 < sum(one.share for one in alarm.moved) <= 1
    lines = timeline.lines(worst.column)
    assert len(lines.time_ns) == timeline.looks == 144
    assert np.nanmax(lines.score) == worst.peak_score
    assert (lines.drifted == 1).sum() == round(worst.drifted * timeline.looks)


def test_a_long_history_keeps_a_bounded_line_and_all_its_peaks(past, reference, settings):
    [first, *_] = found = moments(past, reference, settings)
    timeline = Timeline(columns(reference, settings))
    for look in range(2 * MOST + 10):
        moment = found[look % len(found)]
        timeline.add(moment._replace(evaluations=[one._replace(time_ns=look) for one in moment.evaluations]))
    lines = timeline.lines(("feature", "moves"))
    assert MOST // 2 <= len(lines.time_ns) <= MOST
    assert (np.diff(lines.time_ns) > 0).all()
    assert lines.time_ns[-1] == 2 * MOST + 9
    scores = [one.score for moment in found for one in moment.evaluations if one.column == "moves"]
    assert np.nanmax(lines.score) == np.nanmax(scores)
    assert moved(first.metrics, "feature", "nobody") == []


def test_rows_that_the_processor_leaves_out_are_counted(reference, settings, past):
    rows, times = past
    one = Replay(reference, settings)
    old = rows.slice(0, 10)
    new = old.set_column(0, rows.schema.field(0), pa.array(times[:10] + 90 * MINUTE))
    list(replay([(new, times[:10] + 90 * MINUTE), (old, times[:10])], [one]))
    assert one.left_out["late"] == 10
