"""Counts of one pane, and how a batch's columns are folded into them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidegauge.batch import Content
from tidegauge.layout import FOLDED, Kind, Layout, Role
from tidegauge.metric import Attributes
from tidegauge.plain import Plain
from tidegauge.processors.drift.texts import Counted, Texts, address_of
from tidegauge.processors.drift.unseen import Unknown
from tidegauge.processors.drift.vectors import Frame, frames
from tidegauge.profile import Profile, Reference
from tidegauge.stats import bins
from tidegauge.stats.comparison import Baseline, Baselines
from tidegauge.stats.spots import LENGTH, OFFSET, locate
from tidegauge.wire.known import Known
from tidegauge.wire.texts import tally

CODES: dict[pa.DataType, int] = {
    pa.float64(): bins.FLOAT64,
    pa.float32(): bins.FLOAT32,
    pa.int64(): bins.INT64,
    pa.int32(): bins.INT32,
}


class Tables:
    """A reference's profiles, laid out for the kernel. Numeric ones first, then categorical ones.

    `is_of_first_rows`: whether they were made of rows that followed each other in the stream itself.
    """

    def __init__(self, reference: Reference) -> None:
        self.labelled: dict[
            Attributes, tuple[tuple[Attributes, ...], ...]
        ] = {}  # kept by `report.bin_labels`
        self.is_of_first_rows = reference.source == "first_rows"
        self.numeric = tuple(p for p in reference.profiles if p.kind is Kind.NUMERIC)
        self.categorical = tuple(p for p in reference.profiles if p.kind is Kind.CATEGORICAL)
        self.frames = frames(reference.embeddings)
        self.rows = reference.rows
        self.known = Known.of([profile.categories for profile in self.categorical])
        self.most_categories = max((len(profile.counts) for profile in self.categorical), default=1)
        grids = [bins.grid(profile.edges) for profile in self.numeric]
        features = len(grids)
        self.most_bins = max((len(profile.counts) for profile in self.numeric), default=1)
        self.edges = np.full((features, max((len(g.edges) for g in grids), default=1)), np.inf)
        self.grids = np.zeros((features, bins.CELLS), np.uint16)
        self.places = np.zeros((features, 5))
        self.steps = [g.steps for g in grids]
        for row, (profile, g) in enumerate(zip(self.numeric, grids, strict=True)):
            self.edges[row, : len(g.edges)] = g.edges
            self.grids[row] = g.table
            self.places[row] = (
                g.origin,
                g.scale,
                *bins.widened(profile.lowest, profile.highest),
                profile.center,
            )

    @cached_property
    def baselines(self) -> tuple[Baselines, Baselines]:
        """What windows are compared with: numeric and categorical columns. The first use takes a while."""
        numeric, categorical = (
            Baselines.of([Baseline(p.counts, p.sums, p.squares, p.fourth, p.infinite) for p in profiles])
            for profiles in (self.numeric, self.categorical)
        )
        return numeric, categorical

    def has_bins_of(self, other: Tables) -> bool:
        """Whether counts and sums on the other's bins are ones on these, column by column."""
        if [frame.about for frame in self.frames] != [frame.about for frame in other.frames]:
            return False
        return len(self.profiles) == len(other.profiles) and all(
            (mine.name, mine.role, mine.kind, mine.categories, mine.center, mine.lowest, mine.highest)
            == (its.name, its.role, its.kind, its.categories, its.center, its.lowest, its.highest)
            and np.array_equal(mine.edges, its.edges)
            for mine, its in zip(self.profiles, other.profiles, strict=True)
        )

    @cached_property
    def fingerprint(self) -> str:
        """Differs for references whose bins, counts or columns do."""
        found = hashlib.blake2b(digest_size=16)
        for one in self.profiles:
            found.update(repr((one.name, one.role.value, one.kind.value, one.categories)).encode())
            for values in (one.edges, one.counts, np.array([one.center, one.lowest, one.highest])):
                found.update(values.tobytes())
        for frame in self.frames:
            found.update(repr((frame.embedding.name, frame.embedding.role.value)).encode())
            found.update(frame.embedding.summary.mean.tobytes() + frame.embedding.summary.waves.tobytes())
        return found.hexdigest()

    @cached_property
    def bins(self) -> tuple[tuple[tuple[str, str], ...], ...]:
        """The attribute of each bin of each profile, for all who tell counts to share."""
        return tuple(tuple(("bin", label) for label in profile.bin_labels()) for profile in self.profiles)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the profiles."""
        return tuple(profile.name for profile in self.profiles)

    @cached_property
    def profiles(self) -> tuple[Profile, ...]:
        """In the order of the counts' rows."""
        return self.numeric + self.categorical


_WHOLE = ("counts", "tallies", "categories", "missing")
_NARROW = tuple((np.iinfo(kind).max, np.dtype(kind)) for kind in (np.uint8, np.uint16, np.uint32))


class Counts:
    """What a pane holds: counts and sums per bin, squares and tallies. Sums of panes are panes.

    Whole numbers are int64 where rows are folded into them. Those of a pane that waits may be `narrow`.

    Without `vectors` it holds nothing of embeddings.
    """

    def __init__(self, tables: Tables, *, vectors: bool = True) -> None:
        features = len(tables.numeric)
        self.counts = np.zeros((features, tables.most_bins), np.int64)
        self.sums = np.zeros((features, tables.most_bins))
        self.squares = np.zeros((features, 1))
        self.tallies = np.zeros((features, bins.TALLIES), np.int64)
        self.categories = np.zeros((len(tables.categorical), tables.most_categories), np.int64)
        self.missing = np.zeros(len(tables.categorical), np.int64)
        self.vectors = np.zeros(tables.frames[-1].end if vectors and tables.frames else 0)

    @property
    def rows(self) -> int:
        """Of which any column has all, with a value or without."""
        if len(self.counts):
            return int(self.counts[0].sum() + self.tallies[0, [bins.MISSING, bins.NAN]].sum())
        return int(self.categories[0].sum() + self.missing[0]) if len(self.categories) else 0

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What it is made of, by name."""
        return vars(self)

    @classmethod
    def of(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Those that are made of such `arrays`, which become theirs."""
        made = cls.__new__(cls)
        vars(made).update(arrays)
        return made

    def narrow(self) -> None:
        """Keep whole numbers in as few bytes as the largest one needs: a pane of 500 rows takes half."""
        held = self.arrays()
        vars(self).update({name: narrowed(held[name]) for name in _WHOLE})

    def widen(self) -> None:
        """Have whole numbers as `fold` takes them."""
        held = self.arrays()
        vars(self).update({name: held[name].astype(np.int64, copy=False) for name in _WHOLE})

    def copy(self) -> Counts:
        """Another one with the same counts."""
        return Counts.of({name: array.copy() for name, array in self.arrays().items()})

    def __isub__(self, other: Counts) -> Self:
        for mine, its in zip(self.arrays().values(), other.arrays().values(), strict=True):
            np.subtract(mine, its, out=mine)
        return self

    def __iadd__(self, other: Counts) -> Self:
        self.counts += other.counts
        with np.errstate(over="ignore", invalid="ignore"):  # of values near the largest double
            self.sums += other.sums
            self.squares += other.squares
        self.tallies += other.tallies
        self.categories += other.categories
        self.missing += other.missing
        self.vectors += other.vectors
        return self


def narrowed(counts: npt.NDArray[np.integer[Any]]) -> npt.NDArray[Any]:
    """The same numbers, of the smallest unsigned type that has them all, else int64."""
    least, most = (int(counts.min()), int(counts.max())) if counts.size else (0, 0)
    wanted = [kind for largest, kind in _NARROW if least >= 0 and most <= largest]
    return counts.astype(wanted[0] if wanted else np.int64, copy=False)


class Skipped(NamedTuple):
    """A column that gets no statistics, and why: `no_reference` or `type_changed`."""

    name: str
    role: Role
    reason: str


class Plan:
    """Which columns of a layout go where in the counts. Made once per stream.

    `absent` are the places in `Tables.profiles` of the columns that the layout lacks, and `absent_vectors`
    those in `Tables.frames`.
    """

    def __init__(self, layout: Layout, schema: pa.Schema, tables: Tables) -> None:
        self._tables = tables
        self.timestamp = layout.index(Role.TIMESTAMP)
        self.skipped: list[Skipped] = []
        self._casts: list[int] = []
        self._vectors: list[tuple[int, Frame]] = []
        embedded = {frame.embedding.name: frame for frame in tables.frames}
        numeric = {profile.name: row for row, profile in enumerate(tables.numeric)}
        categorical = {profile.name: row for row, profile in enumerate(tables.categorical)}
        columns, texts = [], []
        for index, (name, role, kind) in enumerate(
            zip(layout.names, layout.roles, layout.kinds, strict=True)
        ):
            if role not in FOLDED:
                continue
            if name in categorical and countable(schema.field(index).type, kind):
                texts.append((index, categorical[name]))
            elif name in numeric and kind is Kind.NUMERIC:
                row = numeric[name]
                code = CODES.get(schema.field(index).type)
                if code is None:
                    self._casts.append(index)
                    code = bins.FLOAT64
                columns.append((index, row, code, tables.steps[row]))
            elif (
                name in embedded
                and kind is Kind.EMBEDDING
                and _fits(schema.field(index).type, embedded[name])
            ):
                self._vectors.append((index, embedded[name]))
            else:
                known = name in numeric or name in categorical or name in embedded
                self.skipped.append(Skipped(name, role, "type_changed" if known else "no_reference"))
        self._columns = np.array(columns, np.int64).reshape(len(columns), 4)
        self._texts = Texts(texts, schema)
        here = set(layout.names)
        self._absent = [row for name, row in numeric.items() if name not in here]
        self._absent_texts = [row for name, row in categorical.items() if name not in here]
        self._absent_vectors = [frame for name, frame in embedded.items() if name not in here]
        self.absent = frozenset(
            place for place, profile in enumerate(tables.profiles) if profile.name not in here
        )
        self.absent_vectors = frozenset(
            place for place, frame in enumerate(tables.frames) if frame.embedding.name not in here
        )

    @property
    def has_texts(self) -> bool:
        return len(self._texts) > 0

    def count(self, content: Content, *, others: bool = False, places: bool = False) -> Counted | None:
        """Look up a batch's texts (`Texts.count`); None where it has none."""
        if not len(self._texts):
            return None
        return self._texts.count(content, self._tables.known, others=others, places=places)

    def others(self, texts: Counted) -> Iterator[tuple[int, Unknown]]:
        """Places in `Tables.categorical`, and their texts that the reference lacks."""
        return self._texts.others(self._tables.known, texts)

    def prepare(self, content: Content, counts: Counts, texts: Counted | None = None) -> Content:
        """Add all but the numbers of a batch to the counts; returns it with the numbers as `fold` reads them.

        Columns that the batch lacks are missing in all its rows. `texts` are those that were counted already.
        """
        self._add_absent(content.num_rows, counts)
        texts = self.count(content) if texts is None else texts
        if texts is not None:
            counts.categories[self._texts.columns, : texts.totals.shape[1]] += texts.totals
            counts.missing[self._texts.columns] += texts.missing
        if not self._casts and not self._vectors:
            return content
        rows = content.rows if isinstance(content, Plain) else content
        for index, frame in self._vectors:
            frame.fold(rows.column(index), counts.vectors)
        return self._numbers(rows)

    def _add_absent(self, rows: int, counts: Counts) -> None:
        if self._absent:
            counts.tallies[self._absent, bins.MISSING] += rows
        if self._absent_texts:
            counts.missing[self._absent_texts] += rows
        for frame in self._absent_vectors if len(counts.vectors) else ():
            frame.miss(rows, counts.vectors)

    def _numbers(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """The rows with numbers of types that the kernel does not read as doubles."""
        for index in self._casts:
            doubles: Any = pc.cast(rows.column(index), pa.float64(), safe=False)
            rows = rows.set_column(index, rows.schema.names[index], doubles)
        return rows

    def fold_runs(
        self,
        content: Content,
        texts: Counted | None,
        order: npt.NDArray[np.int64] | None,
        runs: Sequence[tuple[int, int, Counts]],
    ) -> None:
        """Add runs of a batch's rows, all but their vectors, to the counts of each.

        `order` int64[rows] are the rows one run after the other, None where they come so; a run is its first
        place among these, a number of rows, and its counts. `texts` are the batch's, with the places of all
        rows.
        """
        all_rows = np.arange(content.num_rows) if order is None else order
        spots, keeper = self._ordered(content, order)
        for begin, length, counts in runs:
            self._add_absent(length, counts)
            if texts is not None:
                mine = all_rows[begin : begin + length]
                tally(texts.places, mine, self._texts.columns, counts.categories, counts.missing)
            its = spots.copy()
            its[:, OFFSET] += begin
            its[:, LENGTH] = length
            self._fold(its.reshape(1, *its.shape), counts)
        del keeper

    def _ordered(
        self, content: Content, order: npt.NDArray[np.int64] | None
    ) -> tuple[npt.NDArray[np.int64], object]:
        """The spots of the numbers of a batch, in that order of its rows."""
        rows = self._numbers(content.rows if isinstance(content, Plain) else content)
        spots = np.zeros((rows.num_columns, 4), np.int64)
        chosen = np.unique(self._columns[:, 0])
        if not len(chosen):
            return spots, None
        rows = rows.select(chosen.tolist())
        spots[chosen], keeper = spots_of(rows if order is None else rows.take(order))
        return spots, keeper

    def fold(self, prepared: Sequence[Content], counts: Counts) -> None:
        """Add the numbers of batches to the counts, in one call."""
        if not len(self._columns):
            return
        # What is exported is released with its capsule: they must outlive the kernel.
        located = [spots_of(one) for one in prepared]
        self._fold(np.array([spots for spots, _ in located]), counts)
        del located

    def _fold(self, spots: npt.NDArray[np.int64], counts: Counts) -> None:
        if not len(self._columns):
            return
        tables = self._tables
        bins.fold(
            spots,
            self._columns,
            tables.edges,
            tables.grids,
            tables.places,
            counts.counts,
            counts.sums,
            counts.squares,
            counts.tallies,
        )


def spots_of(content: Any) -> tuple[npt.NDArray[np.int64], object]:
    """Where the columns lie, int64[columns, 4], and what keeps them there."""
    if isinstance(content, Plain):
        return content.spots, content
    spots = np.zeros((content.num_columns, 4), np.int64)
    address, keeper = address_of(content)
    locate(address, spots)
    return spots, keeper


def countable(kind: pa.DataType, folded: Kind) -> bool:
    return folded is Kind.CATEGORICAL or pa.types.is_integer(kind)


def _fits(kind: Any, frame: Frame) -> bool:
    return bool(kind.list_size == frame.width)


_NONE = np.empty(0)


class Tally(NamedTuple):
    """One profile's share of some counts."""

    profile: Profile
    counts: npt.NDArray[np.int64]
    sums: npt.NDArray[np.float64]
    squares: float  # of finite values about the centre
    missing: int
    nan: int  # of the missing ones
    out_of_range: int
    infinite: int

    @property
    def rows(self) -> int:
        """Rows with a value."""
        return int(self.counts.sum())


def tallies(tables: Tables, counts: Counts) -> list[Tally]:
    """The counts of each profile, in the order of `tables.profiles`."""
    found = []
    for row, profile in enumerate(tables.numeric):
        used = len(profile.counts)
        tally = counts.tallies[row]
        missing = int(tally[bins.MISSING] + tally[bins.NAN])
        outside = int(tally[bins.BELOW] + tally[bins.ABOVE])
        infinite = int(tally[bins.INFINITE])
        found.append(
            Tally(
                profile,
                counts.counts[row, :used],
                counts.sums[row, :used],
                float(counts.squares[row, 0]),
                missing,
                int(tally[bins.NAN]),
                outside,
                infinite,
            )
        )
    for row, profile in enumerate(tables.categorical):
        used = len(profile.counts)
        missing = int(counts.missing[row])
        found.append(Tally(profile, counts.categories[row, :used], _NONE, 0.0, missing, 0, 0, 0))
    return found
