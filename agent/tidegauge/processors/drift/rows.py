"""A bounded sample of the rows of a window, each as likely to be in it as any other."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidegauge.batch import Records
from tidegauge.config import Drift as Settings
from tidegauge.identity import Identity
from tidegauge.layout import FOLDED, Kind, Layout, Role
from tidegauge.processors.drift.counts import CODES, Tables, countable, spots_of
from tidegauge.processors.drift.texts import Texts
from tidegauge.processors.drift.window import event_times
from tidegauge.stats.gather import gather

_TOGETHER = 4
"""A quarter of a pane's rows are joined at once."""

MOST_BYTES = 2 << 20
"""Memory of a window's sample, whatever `drift.multivariate.sample_rows`: 2600 rows of 100 columns."""

_Chunk = tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]
"""Rows and their priorities."""


class PaneRows(NamedTuple):
    """A pane's rows as they were at one moment, which nobody changes any more: the priority that they lie
    below, those that are joined, float32[rows, columns], with their priorities, float64[rows], and more of
    them that wait to be."""

    below: float
    joined: _Chunk
    waiting: tuple[_Chunk, ...]


class RowsState(NamedTuple):
    """A sample as it was at one moment: how long its panes are, nanoseconds, how many rows one keeps, its
    panes by number, and the generator's state."""

    width_ns: int
    most: int
    panes: Mapping[int, PaneRows]
    random: Mapping[str, Any]


class Rows:
    """Rows of one identity over `drift.window`, as float32[rows, columns] in the order of `Tables.profiles`.

    Categories are their places among the reference's, others the place after these; NaN is what is missing.

    A row's priority is a random number, and a pane keeps its rows of least priority, at most `sample_rows`
    (bottom-k sampling: Cohen & Kaplan 2007); where all panes together hold twice as many, the fullest one
    lets half of its rows go. So panes merge: the rows of less priority than every pane has kept in full are
    a sample of all. Which rows of a batch can have so low a priority is drawn without drawing the others',
    so that a batch costs a few microseconds once panes are full.
    """

    def __init__(self, identity: Identity, tables: Tables, settings: Settings) -> None:
        columns = max(len(tables.profiles), 1)
        wanted = min(settings.multivariate.sample_rows, MOST_BYTES // (8 * columns))
        self._tables = tables
        self._most = wanted
        self._panes = settings.panes
        self._width_ns = max(int(settings.window * 1e9) // settings.panes, 1)
        self._future_ns = int(settings.max_future * 1e9)
        self._held: dict[int, _Pane] = {}
        self._plans: WeakKeyDictionary[Layout, _Places] = WeakKeyDictionary()
        self._random = np.random.default_rng(zlib.crc32(repr(identity).encode()))

    def update(self, batch: Records) -> None:
        """Take rows of a batch. Those that are late for the window, or from the future, are passed over."""
        for number, rows in self._places(batch):
            pane = self._held.get(number)
            if pane is None:
                # What waits in panes that hardly get rows any more would wait for the whole window.
                self._join()
                pane = self._held[number] = _Pane(len(self._tables.profiles))
            count = batch.items if rows is None else len(rows)
            drawn = pane.draw(count, self._most, self._random)
            if drawn is not None:
                chosen, priorities = drawn
                encoded = self._encode(batch, chosen if rows is None else rows[chosen])
                # To join one batch's few rows copies all of them: it waits for some more.
                if pane.add(encoded, priorities) > self._most // _TOGETHER:
                    pane.trim(self._most)
                    self._fit()
        if len(self._held) > self._panes:
            newest = max(self._held)
            for number in [number for number in self._held if number <= newest - self._panes]:
                del self._held[number]

    def _join(self) -> None:
        for pane in self._held.values():
            pane.trim(self._most)
        self._fit()

    def _fit(self) -> None:
        while sum(len(one.priorities) for one in self._held.values()) > 2 * self._most:
            fullest = max(self._held.values(), key=lambda one: len(one.priorities))
            fullest.trim(len(fullest.priorities) // 2)

    def reach(self, clock_ns: int) -> bool:
        """Whether any rows lie in the window at an event time."""
        return bool(self._held) and max(self._held) > clock_ns // self._width_ns - self._panes

    def sample(self) -> npt.NDArray[np.float32]:
        """The rows, in no order: float32[at most `sample_rows`, columns]."""
        if not self._held:
            return np.empty((0, len(self._tables.profiles)), np.float32)
        newest = max(self._held)
        held = [pane for number, pane in self._held.items() if number > newest - self._panes]
        for pane in held:
            pane.trim(self._most)
        self._fit()
        below = min(pane.below for pane in held)
        priorities = np.concatenate([pane.priorities for pane in held])
        rows = np.concatenate([pane.rows for pane in held])
        chosen = np.flatnonzero(priorities < below)
        return np.asarray(rows[chosen[np.argsort(priorities[chosen])[: self._most]]])

    def capture(self) -> RowsState:
        """All of it, without a copy: what it holds is replaced and never changed."""
        panes = {number: pane.capture() for number, pane in self._held.items()}
        return RowsState(self._width_ns, self._most, panes, self._random.bit_generator.state)

    def restore(self, state: RowsState) -> None:
        """Go on from there. Rows keep their priorities, and the generator goes on too: begun anew it would
        give rows to come the priorities of those that are there.

        Raises:
            ValueError: where the window has other panes.
        """
        if state.width_ns != self._width_ns:
            raise ValueError("its sample of rows is of panes of other lengths (drift.window, drift.panes)")
        self._random.bit_generator.state = state.random
        self._held = {number: _Pane.of(pane) for number, pane in state.panes.items()}
        if state.most != self._most:
            self._join()

    def _places(self, batch: Records) -> Iterator[tuple[int, npt.NDArray[np.int64] | None]]:
        """The pane of each row, as pairs of its number and which rows; None stands for all."""
        if batch.layout.index(Role.TIMESTAMP) is None:
            yield batch.received_ns // self._width_ns, None
            return
        times = event_times(batch)
        numbers = times // self._width_ns
        valid = times <= batch.received_ns + self._future_ns
        if not valid.any():
            return
        newest = max(int(numbers[valid].max()), *self._held) if self._held else int(numbers[valid].max())
        valid &= numbers > newest - self._panes
        for number in np.unique(numbers[valid]).tolist():
            mine = np.flatnonzero(valid & (numbers == number))
            yield number, None if len(mine) == batch.items else mine

    def _encode(self, batch: Records, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        places = self._plans.get(batch.layout)
        if places is None:
            places = self._plans[batch.layout] = _Places(batch.layout, batch.content.schema, self._tables)
        return places.encode(batch, rows, len(self._tables.profiles))


class _Pane:
    """`below` is the priority that its rows lie below: 1 while all rows are kept."""

    def __init__(self, columns: int) -> None:
        self.below = 1.0
        self.priorities = np.empty(0)
        self.rows = np.empty((0, columns), np.float32)
        self._new: list[_Chunk] = []
        self._news = 0

    @classmethod
    def of(cls, state: PaneRows) -> Self:
        """One that goes on from there."""
        rows, priorities = state.joined
        pane = cls(rows.shape[1])
        pane.below, pane.rows, pane.priorities = state.below, rows, priorities
        for chunk in state.waiting:
            pane.add(*chunk)
        return pane

    def capture(self) -> PaneRows:
        """All of it, without a copy."""
        return PaneRows(self.below, (self.rows, self.priorities), tuple(self._new))

    def draw(
        self, count: int, most: int, random: np.random.Generator
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]] | None:
        """Which of `count` rows have a priority below `below`, and theirs; at most the `most` least ones."""
        wanted = count if self.below >= 1 else int(random.binomial(count, self.below))
        if not wanted:
            return None
        priorities = random.random(wanted) * self.below
        if wanted > most:
            self.below = float(np.partition(priorities, most)[most])
            priorities = priorities[priorities < self.below]
        chosen = random.choice(count, len(priorities), replace=False, shuffle=False)
        return chosen.astype(np.int64), priorities

    def add(self, rows: npt.NDArray[np.float32], priorities: npt.NDArray[np.float64]) -> int:
        """Add rows; returns how many wait to be joined with the others."""
        self._new.append((rows, priorities))
        self._news += len(rows)
        return self._news

    def trim(self, most: int) -> None:
        """Join what was added, and keep the `most` rows of least priority."""
        if self._new:
            rows, priorities = zip(*self._new, strict=True)
            self.rows = np.concatenate([self.rows, *rows])
            self.priorities = np.concatenate([self.priorities, *priorities])
            self._new, self._news = [], 0
        if len(self.priorities) > most:
            self.below = min(self.below, float(np.partition(self.priorities, most)[most]))
        if len(self.priorities) and self.priorities.max() >= self.below:
            kept = self.priorities < self.below
            self.priorities, self.rows = self.priorities[kept], self.rows[kept]


class _Places:
    """Which columns of a layout go where in a row of the sample, and how."""

    def __init__(self, layout: Layout, schema: pa.Schema, tables: Tables) -> None:
        self._known = tables.known
        self._first = len(tables.numeric)
        self._casts: list[tuple[int, int]] = []
        numeric = {profile.name: row for row, profile in enumerate(tables.numeric)}
        categorical = {profile.name: row for row, profile in enumerate(tables.categorical)}
        columns, texts = [], []
        for index, (name, role, kind) in enumerate(
            zip(layout.names, layout.roles, layout.kinds, strict=True)
        ):
            its = schema.field(index).type
            if role not in FOLDED:
                continue
            if name in categorical and countable(its, kind):
                texts.append((index, categorical[name]))
            elif name in numeric and kind is Kind.NUMERIC and its in CODES:
                columns.append((index, numeric[name], CODES[its]))
            elif name in numeric and kind is Kind.NUMERIC:
                self._casts.append((index, numeric[name]))
        self._columns = np.array(columns, np.int64).reshape(len(columns), 3)
        self._texts = Texts(texts, schema)

    def encode(self, batch: Records, rows: npt.NDArray[np.int64], columns: int) -> npt.NDArray[np.float32]:
        found = np.full((len(rows), columns), np.nan, np.float32)
        if len(self._columns):
            spots, keeper = spots_of(batch.content)
            gather(spots, self._columns, rows, found)
            del keeper
        for index, place in self._casts:
            column: Any = batch.content.column(index)
            doubles: Any = pc.cast(column.take(pa.array(rows)), pa.float64(), safe=False)
            with np.errstate(over="ignore"):
                found[:, place] = doubles.to_numpy(zero_copy_only=False)
        if len(self._texts):
            self._texts.pick(batch.content, self._known, rows, self._first, found)
        return found
