"""The rows of one identity by the values of its segment columns: region, device, customer tier."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidegauge import categories
from tidegauge.batch import Content
from tidegauge.config import Drift as Settings
from tidegauge.layout import Layout, Role, storage_type
from tidegauge.processors.drift.counts import Counts, Plan, Tables
from tidegauge.processors.drift.panes import Panes, PaneState
from tidegauge.processors.drift.texts import Counted, Texts
from tidegauge.wire.known import Known

OTHER, MISSING = "__other__", "__missing__"
"""The slices of values that have none of their own, and of rows without a value."""

_LONGEST = 128
"""Characters of a value that gets a slice of its own."""


class Slice(NamedTuple):
    """Where a segment column has one value. `is_other`: one of those that have no slice of their own."""

    column: str
    value: str
    is_other: bool = False

    def __str__(self) -> str:
        return f"{self.column}={self.value}"


class SliceState(NamedTuple):
    """A slice as it was at one moment; `text` is the value's, where it has one of its own."""

    slice: Slice
    text: str | None
    panes: PaneState


class SegmentState(NamedTuple):
    """A segment column as it was at one moment, its slices in the order in which they are told."""

    name: str
    slices: tuple[SliceState, ...]


class Segment:
    """One segment column: its slices, `own` those of one value by its text, and how many rows had none."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.slices: dict[Slice, Panes] = {}
        self.own: dict[str, Slice] = {}
        self.known = Known.of([[]])  # the keys of `own`
        self.overflowed = 0

    def find(self, texts: Any) -> npt.NDArray[np.int64]:
        """The place in `own` of each text, -1 where there is none: int64[texts]."""
        found: Any = pc.index_in(texts, value_set=pa.array(list(self.own), pa.string()))
        places: npt.NDArray[np.int64] = found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        return places

    def retire(self, watermark_ns: int) -> None:
        """Let go what has left the windows, as of the watermark."""
        for panes in self.slices.values():
            if not panes.holds(watermark_ns):
                panes.retire(watermark_ns)

    @property
    def is_empty(self) -> bool:
        """Whether no slice has rows."""
        return all(panes.is_empty for panes in self.slices.values())

    def capture(self) -> SegmentState:
        """All but the rows that have left the windows, and `overflowed`."""
        texts = {its: text for text, its in self.own.items()}
        slices = (
            SliceState(its, texts.get(its), panes.capture(lifetime=False))
            for its, panes in self.slices.items()
        )
        return SegmentState(self.name, tuple(slices))


class Slices:
    """Counts by slice, on the reference's bins as the whole has them, over `drift.window`.

    A value gets a slice of its own while there are fewer than `drift.slices.max_values` of its column, of
    one batch the most frequent first; rows of later ones share a slice. One without rows in the window
    makes room. Rows are those that the whole takes, by its watermark, in `drift.slices.panes` panes:
    slices of one column add up to the whole, to the row where those are as many as `drift.panes`.
    """

    def __init__(self, tables: Tables, settings: Settings) -> None:
        self._tables = tables
        self._settings = settings.slices
        self._window_ns = int(settings.window * 1e9)
        self._columns: WeakKeyDictionary[Layout, tuple[tuple[str, int, Texts], ...]] = WeakKeyDictionary()
        self.segments: dict[str, Segment] = {}

    def update(
        self,
        plan: Plan,
        layout: Layout,
        rows: Content,
        texts: Counted | None,
        times_ns: npt.NDArray[np.int64],
        watermark_ns: int,
    ) -> None:
        """Take in rows that the window takes. `times_ns`: int64[rows], or int64[1] for one of all rows.
        `texts` are theirs, with places where this `takes` them."""
        if not self.takes(layout, rows.schema):
            return
        for name, index, column in self._columns[layout]:
            segment = self.segments.get(name)
            if segment is None:
                if not self._has_room(watermark_ns):
                    continue
                segment = self.segments[name] = Segment(name)
            segment.retire(watermark_ns)
            coded = self._coded(segment, index, column, rows)
            self._spread(plan, segment, coded, rows, texts, times_ns, watermark_ns)

    def takes(self, layout: Layout, schema: pa.Schema) -> bool:
        """Whether batches of a layout have segments."""
        columns = self._columns.get(layout)
        if columns is None:
            columns = self._columns[layout] = self._chosen(layout, schema)
        return bool(columns)

    def totals(self, clock_ns: int) -> Iterator[tuple[Slice, Counts]]:
        """Each slice's window at an event time; those without rows are left out."""
        for segment in self.segments.values():
            for its, panes in segment.slices.items():
                total = panes.total(0, clock_ns)
                if total.rows:
                    yield its, total

    def capture(self) -> tuple[SegmentState, ...]:
        """All but the rows that have left the windows, and the counts of those without a slice of their own,
        which begin at 0 again with the process. A pane is copied when rows come to it after this."""
        return tuple(segment.capture() for segment in self.segments.values())

    def restore(self, state: SegmentState) -> None:
        """Go on from there with one column.

        Raises:
            ValueError: where panes or limits are others.
        """
        name, most = state.name, self._settings.max_values
        if len(self.segments) >= self._settings.max_columns:
            raise ValueError("it has more columns of slices than drift.slices.max_columns")
        segment = Segment(name)
        for its, text, panes in state.slices:
            if text is not None:
                segment.own[text] = its
            try:
                self._panes(segment, its).restore(panes, anew=False)
            except ValueError:
                lengths = "drift.window, drift.slices.panes"
                raise ValueError(f"its slices by {name} are of panes of other lengths ({lengths})") from None
        if len(segment.own) > most:
            raise ValueError(f"its slices by {name} are more than drift.slices.max_values")
        segment.known = Known.of([list(segment.own)])
        self.segments[name] = segment

    def begin(self, clock_ns: int) -> int:
        """Differs from an earlier one if a total may: panes change at other times than the whole's."""
        width = max(self._window_ns // self._settings.panes, 1)
        return clock_ns // width if self.segments else 0

    def _has_room(self, watermark_ns: int) -> bool:
        """Whether another column may have slices; those without rows are let go first. A state may have
        brought ones that come no more."""
        if len(self.segments) >= self._settings.max_columns:
            for segment in list(self.segments.values()):
                segment.retire(watermark_ns)
                if segment.is_empty:
                    del self.segments[segment.name]
        return len(self.segments) < self._settings.max_columns

    def _chosen(self, layout: Layout, schema: pa.Schema) -> tuple[tuple[str, int, Texts], ...]:
        """The columns that are segments and can be told as text: their names and places."""
        if self._settings.max_columns == 0:
            return ()
        return tuple(
            (name, index, Texts([(index, 0)], schema))
            for index, (name, role) in enumerate(zip(layout.names, layout.roles, strict=True))
            if (role is Role.SEGMENT or name in self._settings.columns)
            and _is_countable(storage_type(schema.field(index).type))
        )

    def _spread(
        self,
        plan: Plan,
        segment: Segment,
        coded: tuple[npt.NDArray[np.int64], list[Slice]],
        rows: Content,
        texts: Counted | None,
        times_ns: npt.NDArray[np.int64],
        watermark_ns: int,
    ) -> None:
        """Sort the rows by slice and pane, and fold each run of them."""
        codes, slices = coded
        width = max(self._window_ns // self._settings.panes, 1)
        first = watermark_ns // width - self._settings.panes + 1
        # Rows before the window, which another window may have room for, are in the first place.
        panes = np.maximum(times_ns // width - first, -1) + 1
        keys = codes * (self._settings.panes + 1) + panes
        least, most = int(keys.min()), int(keys.max())
        order = None
        if least != most:
            # Stable, and of small integers: a radix sort.
            order = np.argsort(keys.astype(np.int16) if most < 2**15 else keys, kind="stable")
            keys = keys[order]
        cuts = [0, *(np.flatnonzero(np.diff(keys)) + 1).tolist(), len(keys)]
        runs = []
        for begin, end in pairwise(cuts):
            code, place = divmod(int(keys[begin]), self._settings.panes + 1)
            if place:
                time_ns = (place - 1 + first) * width
                pane = self._panes(segment, slices[code]).place(time_ns, time_ns, watermark_ns)
                assert pane is not None
                runs.append((begin, end - begin, pane))
        plan.fold_runs(rows, texts, order, runs)

    def _coded(
        self, segment: Segment, index: int, column: Texts, rows: Content
    ) -> tuple[npt.NDArray[np.int64], list[Slice]]:
        """The slice of each row, int64[rows], as a place in the list."""
        found = column.count(rows, segment.known, places=True)
        if found.totals[0, -1] and self._admit(segment, rows.column(index)):
            found = column.count(rows, segment.known, places=True)
        overflowed = int(found.totals[0, -1])
        segment.overflowed += overflowed
        slices = [
            *segment.own.values(),
            Slice(segment.name, OTHER, is_other=True),
            Slice(segment.name, MISSING),
        ]
        codes = found.places[0].astype(np.int64)
        if found.missing[0]:
            codes[codes < 0] = len(slices) - 1
        return codes, slices

    def _admit(self, segment: Segment, column: Any) -> bool:
        """Give the most frequent of a column's values that have no slice one, if there is room; whether what
        has one has changed."""
        before = list(segment.own)
        room = self._room(segment)
        if room:
            texts, counts, _ = categories.distinct(categories.stored(column))
            unknown = np.flatnonzero((segment.find(texts) < 0) & (counts > 0))
            frequent = unknown[np.argsort(-counts[unknown], kind="stable")]
            for place in frequent[:room].tolist():
                text = texts[place].as_py()
                if len(text) <= _LONGEST:
                    its = segment.own[text] = Slice(segment.name, _quoted(text))
                    self._panes(segment, its)
        if list(segment.own) == before:
            return False
        segment.known = Known.of([list(segment.own)])
        return True

    def _room(self, segment: Segment) -> int:
        """How many values more may have a slice of their own; those without rows are let go first."""
        if len(segment.own) >= self._settings.max_values:
            for text, its in list(segment.own.items()):
                if segment.slices[its].is_empty:
                    del segment.slices[its], segment.own[text]
        return self._settings.max_values - len(segment.own)

    def _panes(self, segment: Segment, its: Slice) -> Panes:
        panes = segment.slices.get(its)
        if panes is None:
            panes = segment.slices[its] = Panes(
                self._tables, [self._window_ns], self._settings.panes, vectors=False
            )
        return panes


def _is_countable(kind: Any) -> bool:
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in (*texts, pa.types.is_boolean, pa.types.is_integer))


def _quoted(text: str) -> str:
    """A value that is one of the agent's own names, or empty, stands in quotes (and so do quoted ones)."""
    return f"'{text}'" if text.strip("'") in ("", OTHER, MISSING) else text
