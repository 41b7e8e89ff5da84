"""A sliding window in event time, made of panes that add up."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidegauge.batch import Content, Records
from tidegauge.config import Drift as Settings
from tidegauge.heavy_hitters import Ranked
from tidegauge.layout import Layout, Role
from tidegauge.plain import Plain
from tidegauge.processors.drift.counts import Counts, Plan, Skipped, Tables
from tidegauge.processors.drift.panes import Panes, PaneState
from tidegauge.processors.drift.slices import Slices
from tidegauge.processors.drift.texts import Counted
from tidegauge.processors.drift.unseen import Unseen
from tidegauge.units import Duration

_UNITS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}

_PLANS = 64
"""Layouts that are looked at between two calls of `unfit`."""

_FARTHEST_S = 9.2e9
"""Unix seconds that still fit int64 nanoseconds (year 2261)."""


class WindowState(NamedTuple):
    """A window as it was at one moment: its panes, the watermark and when it was set (Unix nanoseconds),
    and the first pane that `Window.closed` has not given."""

    panes: PaneState
    watermark_ns: int | None
    arrived_ns: int
    next_pane: int | None


class Closed(NamedTuple):
    """A pane that gets no more rows: when it begins, Unix nanoseconds, and its rows."""

    begin_ns: int
    counts: Counts


class Window:
    """The rows of one identity over `drift.window`, and over the other windows, as counts.

    Rows belong to the pane of their event time. The watermark is the latest event time met; rows
    more than `drift.allowed_lateness` behind it are late and left out, and so are rows more than
    `drift.max_future` ahead of their arrival, which would drag the watermark with them. While
    nothing arrives the window moves on with the clock; it goes back when older rows then follow.
    """

    def __init__(self, tables: Tables, settings: Settings) -> None:
        self.tables = tables
        self.lengths = lengths(settings)
        self._primary = settings.window
        self._panes = Panes(tables, [int(length * 1e9) for length in self.lengths], settings.panes)
        self.slices = Slices(tables, settings)
        self.unseen = Unseen(int(settings.window * 1e9)) if settings.unseen_categories else None
        self._lateness_ns = int(settings.allowed_lateness * 1e9)
        self._future_ns = int(settings.max_future * 1e9)
        self._watermark: int | None = None
        self._arrived = 0
        self._plans: WeakKeyDictionary[Layout, Plan] = WeakKeyDictionary()
        self._met: dict[Plan, None] = {}  # since the last `unfit`, or before it
        self._told = False
        self._updates = 0
        self._next: int | None = None  # the first pane that `closed` has not given
        self._ended: list[Closed] = []  # panes that left the window before `closed` gave them
        self._next_end: float = -math.inf  # the watermark at which the next one ends, as `closed` has found
        # What `settle` is to fold, of one plan and for one pane.
        self._waiting: list[Content] = []
        self._where: tuple[Plan, Counts] | None = None

    def update(self, batch: Records) -> Mapping[str, int]:
        """Take a batch in. Returns the rows left out, by reason: `late` or `future`.

        Its numbers wait, for as many batches as possible to be folded at once: until `settle`, or a batch
        that goes elsewhere.
        """
        plan = self._plans.get(batch.layout)
        if plan is None:
            plan = self._plans[batch.layout] = Plan(batch.layout, batch.content.schema, self.tables)
        if self._told:
            self._met, self._told = {}, False
        if len(self._met) < _PLANS:
            self._met[plan] = None
        self._updates += 1
        if plan.timestamp is None:
            return self._at_arrival(plan, batch)
        rows: Content = batch.content
        times = event_times(batch)
        future = late = 0
        latest = batch.received_ns + self._future_ns
        if times.max() > latest:
            rows, times = _only(rows, times, times <= latest)
            future = batch.items - len(times)
        if len(times):
            least = self._advance(int(times.max()), batch.received_ns)
            if times.min() < least:
                rows, times = _only(rows, times, times >= least)
                late = batch.items - future - len(times)
        if len(times):
            assert self._watermark is not None
            texts = self._count(plan, batch.layout, rows)
            self.slices.update(plan, batch.layout, rows, texts, times, self._watermark)
            self._place(plan, rows, texts, times)
        left_out = {"late": late, "future": future}
        return {reason: rows for reason, rows in left_out.items() if rows}

    def unfit(self) -> tuple[tuple[Skipped, ...], frozenset[int], frozenset[int]]:
        """Columns that get no statistics in some batch, and places of profiles and of frames in none.

        Of the batches since the last call, or the ones before it where there are none.
        """
        self._told = True
        skipped = dict.fromkeys(one for plan in self._met for one in plan.skipped)
        absent = _in_all([plan.absent for plan in self._met])
        return tuple(skipped), absent, _in_all([plan.absent_vectors for plan in self._met])

    def settle(self) -> None:
        """Fold what waits."""
        if self._where is not None:
            (plan, pane), waiting = self._where, self._waiting
            self._where, self._waiting = None, []
            plan.fold(waiting, pane)

    def _at_arrival(self, plan: Plan, batch: Records) -> Mapping[str, int]:
        """Take in a batch without event times, all of whose rows have the same one."""
        time = batch.received_ns
        if time < self._advance(time, time):
            return {"late": batch.items}
        assert self._watermark is not None
        pane = self._panes.place(time, time, self._watermark)
        assert pane is not None
        texts = self._count(plan, batch.layout, batch.content)
        if self.slices.takes(batch.layout, batch.content.schema):
            self.slices.update(plan, batch.layout, batch.content, texts, np.array([time]), self._watermark)
        self._put(plan, batch.content, texts, pane)
        return {}

    def _count(self, plan: Plan, layout: Layout, rows: Content) -> Counted | None:
        """Look up the texts of rows that the window takes, once for all, and name those of no reference."""
        if not plan.has_texts:
            return None
        is_named = self.unseen is not None
        texts = plan.count(rows, others=is_named, places=self.slices.takes(layout, rows.schema))
        if texts is not None and self.unseen is not None:
            assert self._watermark is not None
            for column, unknown in plan.others(texts):
                self.unseen.update(column, unknown, self._watermark)
        return texts

    def _advance(self, newest: int, arrived: int) -> int:
        """Move the watermark on; the event time from which rows are not late."""
        known = self._watermark
        self._watermark = watermark = newest if known is None else max(newest, known)
        self._arrived = arrived
        if not self._panes.holds(watermark):
            self.settle()
            self._end_before(watermark)
            self._panes.retire(watermark)
        oldest = self._panes.begin(len(self.lengths) - 1, watermark)
        # Lateness is judged by what was known before: a batch's own rows may come in any order.
        return oldest if known is None else max(oldest, known - self._lateness_ns)

    def _place(self, plan: Plan, rows: Content, texts: Counted | None, times: npt.NDArray[np.int64]) -> None:
        assert self._watermark is not None
        pane = self._panes.place(int(times.min()), int(times.max()), self._watermark)
        if pane is not None:
            self._put(plan, rows, texts, pane)
            return
        rows = rows.rows if isinstance(rows, Plain) else rows
        for pane, mine in self._panes.places(times, self._watermark):
            its = rows if mine is None else rows.filter(pa.array(mine))
            self._put(plan, its, texts if mine is None else None, pane)

    def _put(self, plan: Plan, rows: Content, texts: Counted | None, pane: Counts) -> None:
        if self._where != (plan, pane):
            self.settle()
            self._where = plan, pane
        self._waiting.append(plan.prepare(rows, pane, texts))

    def total(self, now_ns: int, length: Duration | None = None) -> Counts:
        """The sum of the window of that length, or of `drift.window`, at Unix time `now_ns`."""
        self.settle()
        # Panes are kept for a stream that goes on where it paused: the window then goes back to it.
        return self._panes.total(self._level(length), self.clock(now_ns))

    def frequent_unseen(self, column: int, now_ns: int) -> Ranked:
        """The most frequent categories of no reference in a column of `Tables.categorical`, in
        `drift.window` or up to a quarter longer."""
        if self.unseen is None:
            return Ranked((), np.zeros(0, np.int64))
        return self.unseen.frequent(column, self.clock(now_ns))

    def closed(self) -> Iterator[Closed]:
        """The panes of `drift.window` that ended, and got their last rows, since the last call, in order.
        Those of a window that a jump of the watermark has left behind are among them."""
        if self._watermark is None or (self._watermark < self._next_end and not self._ended):
            return
        level = self._level(None)
        end = self._panes.number(level, self._watermark - self._lateness_ns)
        begin = self._panes.number(level, self._panes.begin(level, self._watermark))
        if self._next is not None:
            begin = max(begin, self._next)
        self._next = max(end, begin)
        self._next_end = self._panes.time(level, end + 1) + self._lateness_ns
        if begin < end:
            self.settle()
        ended, self._ended = self._ended, []
        yield from ended
        for number in range(begin, end):
            yield self._close(level, number)

    def _end_before(self, watermark: int) -> None:
        """Keep for `closed` what is about to leave the window: it would not be found there any more."""
        level = self._level(None)
        numbers = self._panes.held(level, self._panes.begin(level, watermark))
        fresh = [number for number in numbers if self._next is None or number >= self._next]
        self._ended += [self._close(level, number) for number in fresh]
        if fresh:
            self._next = fresh[-1] + 1

    def _close(self, level: int, number: int) -> Closed:
        return Closed(self._panes.time(level, number), self._panes.pane(level, number))

    def lifetime(self) -> Counts:
        """The sum of every pane there ever was."""
        self.settle()
        return self._panes.lifetime()

    def capture(self) -> WindowState:
        """All of it; takes microseconds, and nothing is copied before it changes."""
        self.settle()
        return WindowState(self._panes.capture(), self._watermark, self._arrived, self._next)

    def restore(self, state: WindowState, *, anew: bool) -> None:
        """Go on from there. `anew`: `lifetime` begins with no rows.

        Raises:
            ValueError: where the windows have other panes.
        """
        self._panes.restore(state.panes, anew=anew)
        _, self._watermark, self._arrived, self._next = state
        self._next_end = -math.inf

    @property
    def updates(self) -> int:
        """Batches met. Between two equal numbers nothing has changed."""
        return self._updates

    def stamp(self, now_ns: int) -> tuple[int, int]:
        """Differs from an earlier one if a total may."""
        clock = self.clock(now_ns)
        return self._updates, self._panes.begin(0, clock) + self.slices.begin(clock)

    def span(self, now_ns: int) -> tuple[int, int]:
        """The event times at which `drift.window` begins and ends, at Unix time `now_ns`."""
        end = self.clock(now_ns)
        return self._panes.begin(self._level(None), end), end

    def _level(self, length: Duration | None) -> int:
        return self.lengths.index(self._primary if length is None else length)

    def clock(self, now_ns: int) -> int:
        """The event time that it is: the watermark, and what has passed since it was set."""
        return 0 if self._watermark is None else self._watermark + max(now_ns - self._arrived, 0)


def lengths(settings: Settings) -> tuple[Duration, ...]:
    """The lengths of all windows, ascending."""
    return tuple(sorted({settings.window, *settings.other_windows}))


def _only(
    rows: Content, times: npt.NDArray[np.int64], chosen: npt.NDArray[np.bool_]
) -> tuple[Content, npt.NDArray[np.int64]]:
    whole = rows.rows if isinstance(rows, Plain) else rows
    return whole.filter(pa.array(chosen)), times[chosen]


def event_times(batch: Records) -> npt.NDArray[np.int64]:
    """The event time of each row, Unix nanoseconds: int64[rows].

    From the column with the role `timestamp`: an Arrow timestamp, int64 nanoseconds or float64
    seconds. A null, a NaN or a missing column means the time of arrival; what int64 cannot hold is
    clipped.
    """
    index = batch.layout.index(Role.TIMESTAMP)
    if index is None:
        return np.full(batch.items, batch.received_ns, np.int64)
    column = batch.content.column(index)
    if pa.types.is_float64(column.type):
        seconds = column.to_numpy(zero_copy_only=False)
        clipped = (np.clip(np.nan_to_num(seconds), -_FARTHEST_S, _FARTHEST_S) * 1e9).astype(np.int64)
        return np.where(np.isnan(seconds), batch.received_ns, clipped)
    unit = _UNITS[column.type.unit] if pa.types.is_timestamp(column.type) else 1
    whole: Any = pc.cast(column, pa.int64())
    numbers: npt.NDArray[np.int64] = whole.fill_null(0).to_numpy(zero_copy_only=False)
    farthest = int(_FARTHEST_S * 1e9) // unit
    times: npt.NDArray[np.int64] = np.clip(numbers, -farthest, farthest) * np.int64(unit)
    if column.null_count:
        times = np.where(column.is_valid().to_numpy(zero_copy_only=False), times, batch.received_ns)
    return times


def _in_all(places: Sequence[frozenset[int]]) -> frozenset[int]:
    return frozenset.intersection(*places) if places else frozenset()
