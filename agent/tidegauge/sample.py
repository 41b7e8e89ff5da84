"""A bounded sample of a reference's rows that does not show in which order or parts they came.

Each row has a priority made of its values, and the rows of least priority are kept, equal ones as one row
that is counted (a KMV sketch: Bar-Yossef et al. 2002). So of rows that differ every one is as likely to be
kept, samples of parts merge to the sample of the whole, and the same rows give the same sample. What equal
rows do to it: where all distinct rows are kept their counts are exact, and where they are not, a row that
makes up much of the whole may be missed; the counts tell (`drawn`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidegauge import categories
from tidegauge.layout import FOLDED, Kind, Layout

ROWS = 2_048
"""Distinct rows that are kept: what embeddings are summarised from."""

_HASHED = 8
"""Components of an embedding that go into a row's priority."""

_TRUE_TO = 0.1
"""How far the number of rows that a sample speaks for may be off from the number met. Of distinct rows its
standard error is 1 / sqrt(ROWS), 2 %."""

_FULL = 2.0**64
_SEED = 0

_HEAVY = 0.01
"""Share of the whole from which on a row's number counts as it is, where other rows were left out."""


class RowSample:
    """Folds batches; see above. `categorical` as for `ReferenceBuilder`."""

    def __init__(self, categorical: Collection[str] = (), most: int = ROWS) -> None:
        self._categorical = categorical
        self._most = most
        self._met = 0
        self._keys = np.empty(0, np.uint64)  # ascending
        self._times = np.empty(0, np.int64)
        self._table: pa.Table | None = None
        self._cut = False  # whether some were left out

    def update(self, rows: pa.RecordBatch, layout: Layout) -> None:
        """Fold a batch."""
        keys = np.zeros(rows.num_rows, np.uint64)
        columns: dict[str, Any] = {}
        for place, (name, role, kind) in enumerate(
            zip(layout.names, layout.roles, layout.kinds, strict=True)
        ):
            if role in FOLDED and kind in (Kind.NUMERIC, Kind.CATEGORICAL, Kind.EMBEDDING):
                as_text = kind is Kind.CATEGORICAL or name in self._categorical
                columns[name] = _plain(rows.column(place), kind, as_text=as_text)
                keys += _parts(columns[name], name)
        keys = _mixed(keys)
        self._met += rows.num_rows
        if self._cut:
            chosen = np.flatnonzero(keys <= self._keys[-1])
            keys = keys[chosen]
        else:
            chosen = np.arange(len(keys))
        keys, first, times = np.unique(keys, return_index=True, return_counts=True)
        new = ~np.isin(keys, self._keys)
        np.add.at(self._times, np.searchsorted(self._keys, keys[~new]), times[~new])
        if new.any():
            taken = pa.table(columns).take(chosen[first[new]])
            self._join(keys[new], times[new], taken)

    def merge(self, other: RowSample) -> None:
        """Add what another sample has folded."""
        self._met += other._met
        ends = [one._keys[-1] for one in (self, other) if one._cut]
        known = np.isin(other._keys, self._keys)
        np.add.at(self._times, np.searchsorted(self._keys, other._keys[known]), other._times[known])
        if other._table is not None:
            its = other._table.filter(pa.array(~known))
            self._join(other._keys[~known], other._times[~known], its)
        # What either has left out, the whole leaves out.
        if ends:
            self._cut = True
            self._keep(int((self._keys <= min(ends)).sum()))

    def drawn(self, most: int) -> pa.Table:
        """At most `most` rows that stand for all, chosen among those kept as if by lot, and in no order.

        So any part of them, as every other row, varies as rows do. Equal rows in proportion, one beside the
        other, would make two halves of the same composition: no independent samples, and a classifier
        learned from one half would find on the other what is chance in both.

        Numbers are float64, categories text, embeddings lists of float32; what was missing is null. Empty
        where rows were left out and those kept do not speak for as many rows as there were.
        """
        if self._table is None:
            return pa.table({})
        random = np.random.default_rng(_SEED)
        if not self._cut:
            return self._table.take(_lots(self._times, most, random))
        heavy = self._times > _HEAVY * self._met
        many, few = int(self._times[heavy].sum()), np.where(heavy, 0, self._times)
        share, others = (float(self._keys[-1]) + 1) / _FULL, self._met - many
        if abs(few.sum() / share / max(others, 1) - 1) > _TRUE_TO + 3 / np.sqrt(len(self._keys)):
            return self._table.slice(0, 0)
        # The number of a row that is kept is known, that of all others only by their share.
        size = min(most, self._met)
        wanted = int(random.binomial(size, many / self._met))
        chosen = [_lots(self._times - few, wanted, random), _lots(few, size - wanted, random)]
        return self._table.take(random.permutation(np.concatenate(chosen)))

    def _join(self, keys: npt.NDArray[np.uint64], times: npt.NDArray[np.int64], rows: pa.Table) -> None:
        # Names in order: batches may have their columns in any, and lack some.
        rows = rows.select(sorted(rows.column_names))
        if self._table is not None:
            rows = pa.concat_tables([self._table, rows], promote_options="default")
            rows = rows.select(sorted(rows.column_names))
        keys, times = np.concatenate([self._keys, keys]), np.concatenate([self._times, times])
        order = np.argsort(keys, kind="stable")
        self._keys, self._times = keys[order], times[order]
        self._table = rows.take(order).combine_chunks()
        self._keep(self._most)

    def _keep(self, most: int) -> None:
        if most < len(self._keys):
            self._keys, self._times = self._keys[:most].copy(), self._times[:most].copy()
            assert self._table is not None
            self._table = self._table.take(np.arange(most))
            self._cut = True


def _lots(times: npt.NDArray[np.int64], most: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Places drawn without replacement, each there `times` times: int64[at most `most`], in no order."""
    total = int(times.sum())
    chosen = random.choice(total, min(most, total), replace=False)
    return np.searchsorted(np.cumsum(times), chosen, side="right").astype(np.int64)


def _plain(column: Any, kind: Kind, *, as_text: bool) -> Any:
    if kind is Kind.EMBEDDING:
        return pc.cast(column, pa.list_(pa.float32(), column.type.list_size), safe=False)
    if as_text:
        return categories.texts(column)
    doubles = pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return pa.array(doubles + 0.0, from_pandas=True)


def _parts(column: Any, name: str) -> npt.NDArray[np.uint64]:
    """What each value adds to its row's key: uint64[rows], 0 for what is missing."""
    seed = np.uint64(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little"))
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_floating(column.type):
        bits = column.fill_null(0.0).to_numpy(zero_copy_only=False).view(np.uint64)
    elif pa.types.is_string(column.type):
        coded = column.dictionary_encode()
        texts = [
            hashlib.blake2b(one.encode(), digest_size=8).digest() for one in coded.dictionary.to_pylist()
        ]
        known = np.frombuffer(b"".join(texts), np.uint64) if texts else np.zeros(1, np.uint64)
        bits = known[coded.indices.fill_null(0).to_numpy(zero_copy_only=False)]
    else:
        bits = np.zeros(len(column), np.uint64)
        for component in range(min(column.type.list_size, _HASHED)):
            part = pc.list_element(column, component).fill_null(0.0).to_numpy(zero_copy_only=False)
            bits = _mixed(bits + (part + np.float32(0)).view(np.uint32))
    return np.where(valid, _mixed(bits ^ seed), np.uint64(0))


def _mixed(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014)."""
    z = numbers + np.uint64(0x9E37_79B9_7F4A_7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    return np.asarray(z ^ (z >> np.uint64(31)))
