"""Building a reference from rows, one pass, in memory that does not grow with them."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidegauge import categories
from tidegauge.heavy_hitters import HeavyHitters
from tidegauge.layout import FOLDED, Kind, Layout, Role
from tidegauge.profile import Embedding, Profile, ProfileError, Reference
from tidegauge.sample import ROWS, RowSample
from tidegauge.stats.bins import bin_index, grid, quantile_edges
from tidegauge.stats.embedding import summarise
from tidegauge.stats.value_counts import ValueCounts

SAMPLE_ROWS = 1_000
"""Rows of the sample that a reference keeps, for what is told of several columns together."""

MAX_DISTINCT = 100_000
"""Distinct texts counted exactly per column. Of more, the most frequent are counted (`heavy_hitters`)."""


class ReferenceBuilder:
    """Folds record batches into profiles. The order and the size of the batches leave no trace, nor does
    it show how they were shared out among builders that were merged; but for columns of more than
    MAX_DISTINCT texts, whose counts may then be too small by the summary's error: less than one row
    in MAX_DISTINCT.

    `categorical` names numeric columns whose numbers are codes, to be counted one by one.
    """

    def __init__(self, *, bins: int, max_categories: int, categorical: Collection[str] = ()) -> None:
        self._bins = bins
        self._max_categories = max_categories
        self._categorical = categorical
        self._columns: dict[str, _Numbers | _Texts | _Vectors] = {}
        self._rows = 0
        self._sample = RowSample(categorical)

    @property
    def rows(self) -> int:
        """Rows folded so far."""
        return self._rows

    def update(self, rows: pa.RecordBatch, layout: Layout, only: str | None = None) -> None:
        """Fold a batch, or its column `only`.

        A column that is missing from a batch counts as missing in all its rows.

        Raises:
            ProfileError: where a column changes between numbers and text.
        """
        met = set()
        for place, (name, role, kind) in enumerate(
            zip(layout.names, layout.roles, layout.kinds, strict=True)
        ):
            if role not in FOLDED or only not in (None, name):
                continue
            wanted = _wanted(kind, name in self._categorical)
            if wanted is _Texts and pa.types.is_floating(rows.schema.field(place).type):
                raise ProfileError(f"column {name!r} holds fractions; only whole numbers can be codes")
            column = self._column(name, wanted)
            column.stand(place, role)
            column.update(rows.column(place))
            met.add(name)
        for name in self._columns.keys() - met:
            self._columns[name].missing += rows.num_rows
        self._rows += rows.num_rows
        if only is None:
            self._sample.update(rows, layout)

    def merge(self, other: ReferenceBuilder) -> None:
        """Add what a builder with the same settings has folded; it is not to be used any more.

        Raises:
            ProfileError: where a column holds numbers in one and text in the other.
        """
        for name, its in other._columns.items():
            column = self._column(name, type(its))
            column.stand(its.place, its.role)
            column.missing += its.missing
            column.merge(its)
        for name in self._columns.keys() - other._columns.keys():
            self._columns[name].missing += other._rows
        self._rows += other._rows
        self._sample.merge(other._sample)

    def _column(self, name: str, wanted: type[_Numbers | _Texts | _Vectors]) -> Any:
        """The column, which was missing in all rows so far where it is new."""
        column = self._columns.get(name)
        if column is None:
            column = self._columns[name] = wanted()
            column.missing = self._rows
        if not isinstance(column, wanted):
            raise ProfileError(
                f"column {name!r} holds {column.HOLDS} in some files and {wanted.HOLDS} in others"
            )
        return column

    def build(self, model: str, version: str, source: str) -> Reference:
        """The reference of all rows folded.

        Raises:
            ProfileError: where there was no row, or no column that can have statistics.
        """
        if not self._rows or not self._columns:
            raise ProfileError("there are no rows, or no columns with statistics, to build from")
        profiles = []
        for name, column in sorted(self._columns.items(), key=lambda item: (item[1].place, item[0])):
            if isinstance(column, _Numbers):
                profiles.append(column.profile(name, self._bins))
            elif isinstance(column, _Texts):
                profiles.append(column.profile(name, self._max_categories))
        reference = Reference(model, version, source, self._rows, tuple(profiles))
        return with_sample(reference, self._sample, self.vectors)

    @property
    def vectors(self) -> dict[str, Vectors]:
        """The embedding columns met, in the order in which they stand."""
        found = [(name, column) for name, column in self._columns.items() if isinstance(column, _Vectors)]
        found.sort(key=lambda item: (item[1].place, item[0]))
        return {name: Vectors(column.role, column.missing) for name, column in found}


class Vectors(NamedTuple):
    """An embedding column without its vectors."""

    role: Role
    missing: int


def with_sample(reference: Reference, sample: RowSample, vectors: Mapping[str, Vectors]) -> Reference:
    """The reference with a sample of its rows, and the embeddings that are summarised from one.

    An embedding of which the sample has fewer than two vectors is left out.
    """
    drawn = sample.drawn(SAMPLE_ROWS)
    profiles = []
    for profile in reference.profiles:
        found = np.full(len(drawn), np.nan, np.float32)  # where a column was met, it held nothing
        if profile.name in drawn.column_names and len(drawn):
            column: Any = drawn.column(profile.name).combine_chunks()
            if profile.kind is Kind.CATEGORICAL:
                found = categories.numbered(column, pa.array(profile.categories, pa.string()))
            else:
                with np.errstate(over="ignore"):
                    found = column.to_numpy(zero_copy_only=False).astype(np.float32)
        profiles.append(replace(profile, sample=found))
    embeddings = []
    if vectors:
        rows = sample.drawn(ROWS)
        for name, (role, missing) in vectors.items():
            known = name in rows.column_names and len(rows)
            found = finite_vectors(rows.column(name).combine_chunks()) if known else _NO_VECTORS
            if len(found) > 1:
                embeddings.append(Embedding(name, role, missing, summarise(found)))
    return replace(reference, profiles=tuple(profiles), embeddings=tuple(embeddings))


_NO_VECTORS = np.empty((0, 1), np.float32)


def finite_vectors(column: Any) -> npt.NDArray[np.float32]:
    """The vectors of an embedding column, float32[rows, width], but those with a null or a NaN inside."""
    column = column.drop_null()
    values = pc.cast(column.flatten(), pa.float32(), safe=False).to_numpy(zero_copy_only=False)
    rows = values.reshape(len(column), column.type.list_size)
    return np.ascontiguousarray(rows[np.isfinite(rows).all(axis=1)])


def _wanted(kind: Kind, as_codes: bool) -> type[_Numbers | _Texts | _Vectors]:
    if kind is Kind.EMBEDDING:
        return _Vectors
    return _Texts if kind is Kind.CATEGORICAL or as_codes else _Numbers


class _Column:
    """Where a column stands and what it is for. Schemas may differ, and none of them is the first one: it
    stands as far ahead as it does anywhere, and a role that was given goes before `feature`."""

    def __init__(self) -> None:
        self.place = sys.maxsize
        self.role = Role.FEATURE
        self.missing = 0

    def stand(self, place: int, role: Role) -> None:
        self.place = min(self.place, place)
        self.role = max(self.role, role, key=FOLDED.index)


class _Numbers(_Column):
    HOLDS = "numbers"

    def __init__(self) -> None:
        super().__init__()
        self._values = ValueCounts()
        self._lowest, self._highest = np.inf, -np.inf
        self._infinite = np.zeros(2, np.int64)  # below, above

    def update(self, column: Any) -> None:
        present = pc.cast(column, pa.float64(), safe=False).drop_null().to_numpy(zero_copy_only=False)
        nans = int(np.isnan(present).sum())
        self.missing += len(column) - len(present) + nans
        finite = present[np.isfinite(present)]
        self._infinite += (int((present == -np.inf).sum()), int((present == np.inf).sum()))
        if len(finite):
            # Adding zero makes one of -0.0 and 0.0, of which the first met would stay.
            self._lowest = min(self._lowest, float(finite.min()) + 0.0)
            self._highest = max(self._highest, float(finite.max()) + 0.0)
            self._values.update(finite)

    def merge(self, other: _Numbers) -> None:
        self._infinite += other._infinite
        self._lowest = min(self._lowest, other._lowest)
        self._highest = max(self._highest, other._highest)
        self._values.merge(other._values)

    def profile(self, name: str, bins: int) -> Profile:
        counted = self._values.sorted()
        edges = quantile_edges(*counted, bins)
        counts = np.zeros(len(edges) + 1, np.int64)
        sums, squares = np.zeros(len(edges) + 1), np.zeros(len(edges) + 1)
        center = fourth = 0.0
        if len(counted.counts):
            values = counted.lower / 2 + counted.upper / 2
            # Halved, so that the mean of the largest doubles does not overflow on the way.
            mean = 2.0 * float((values / 2 * (counted.counts / counted.counts.sum())).sum())
            center = min(max(mean, self._lowest), self._highest)
            place = bin_index(counted.upper, *grid(edges))
            np.add.at(counts, place, counted.counts)
            with np.errstate(over="ignore"):
                gaps = values - center
                np.add.at(sums, place, counted.counts * gaps)
                np.add.at(squares, place, counted.counts * gaps**2)
                fourth = float((counted.counts * gaps**4).sum())
        counts[0] += self._infinite[0]
        counts[-1] += self._infinite[1]
        lowest, highest = (self._lowest, self._highest) if len(counted.counts) else (0.0, 0.0)
        return Profile(
            name=name,
            role=self.role,
            kind=Kind.NUMERIC,
            missing=self.missing,
            counts=counts,
            edges=edges,
            sums=sums,
            lowest=lowest,
            highest=highest,
            center=center,
            infinite=int(self._infinite.sum()),
            squares=squares,
            fourth=fourth,
        )


class _Vectors(_Column):
    HOLDS = "vectors"

    def __init__(self) -> None:
        super().__init__()
        self._width = 0

    def update(self, column: Any) -> None:
        self._agree(column.type.list_size)
        self.missing += column.null_count

    def merge(self, other: _Vectors) -> None:
        self._agree(other._width)

    def _agree(self, width: int) -> None:
        if self._width not in (0, width):
            raise ProfileError(
                f"an embedding has {self._width} components in some files and {width} in others"
            )
        self._width = width


class _Texts(_Column):
    HOLDS = "text"

    def __init__(self) -> None:
        super().__init__()
        self._counts = HeavyHitters(MAX_DISTINCT)

    def update(self, column: Any) -> None:
        texts, counts, missing = categories.distinct(column)
        self.missing += missing
        self._counts.update(texts, counts)

    def merge(self, other: _Texts) -> None:
        self._counts.merge(other._counts)

    def profile(self, name: str, most: int) -> Profile:
        # Ties are broken by the text, so that the order of the rows leaves no trace.
        ranked, error = self._counts.ranked(), self._counts.error
        kept = min(most, len(ranked.texts))
        first_out = int(ranked.counts[most]) if len(ranked.texts) > most else 0
        if len(ranked.texts) > most or error:
            # Of categories about as frequent, those kept were lucky, and would fall back in every
            # window: only what stands out of the first one left out (four standard errors) is kept,
            # which may have as many rows more than were counted as the summary's error.
            cut = first_out + error
            kept = min(kept, int((ranked.counts > cut + 4 * math.sqrt(cut)).sum()))
        other = self._counts.rows - int(ranked.counts[:kept].sum())
        counts = np.array([*ranked.counts[:kept], other], np.int64)
        empty = np.empty(0)
        texts = ranked.texts[:kept]
        return Profile(name, self.role, Kind.CATEGORICAL, self.missing, counts, empty, empty, empty, texts)
