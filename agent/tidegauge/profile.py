"""A reference: what each column of a model looked like, as counts on fixed bins, and its file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidegauge.layout import Kind, Role
from tidegauge.stats.embedding import Summary
from tidegauge.stats.fourier import FREQUENCIES

FORMAT = "2"

_COLUMNS: dict[str, pa.DataType] = {
    "name": pa.string(),
    "role": pa.string(),
    "kind": pa.string(),
    "missing": pa.int64(),
    "lowest": pa.float64(),
    "highest": pa.float64(),
    "center": pa.float64(),
    "infinite": pa.int64(),
    "edges": pa.list_(pa.float64()),
    "categories": pa.list_(pa.string()),
    "counts": pa.list_(pa.int64()),
    "sums": pa.list_(pa.float64()),
    "squares": pa.list_(pa.float64()),
    "fourth": pa.float64(),
}
_FIRST_SCHEMA = pa.schema(_COLUMNS)
"""What was there before samples and embeddings: such files are read, and have none."""

_SCHEMA = pa.schema(
    {
        **_COLUMNS,
        "sample": pa.list_(pa.float32()),
        "mean": pa.list_(pa.float64()),
        "variance": pa.list_(pa.float64()),
        "bandwidth": pa.float64(),
        "waves": pa.list_(pa.float64()),
        "powers": pa.list_(pa.float64()),
    }
)
_NO_SAMPLE = np.empty(0, np.float32)


class ProfileError(Exception):
    """A reference that cannot be built or read, and why."""


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """One column of the reference.

    Numeric: bin b holds the values in (edges[b-1], edges[b]]; `counts` int64[edges + 1]; `sums`
    and `squares` float64[edges + 1] of finite values about `center`, `fourth` the sum of their fourth
    powers. Categorical: `counts` int64[categories + 1],
    the last being all other values. `missing` counts nulls and NaNs, `infinite` those of `counts` that
    are not in `sums`. `sample` is the column's float32 values in rows that stand for all, the same ones for
    all columns: categories as their places, NaN what is missing; empty where there is no such sample.
    """

    name: str
    role: Role
    kind: Kind
    missing: int
    counts: npt.NDArray[np.int64]
    edges: npt.NDArray[np.float64]
    sums: npt.NDArray[np.float64]
    squares: npt.NDArray[np.float64]
    categories: tuple[str, ...] = ()
    lowest: float = 0.0
    highest: float = 0.0
    center: float = 0.0
    infinite: int = 0
    fourth: float = 0.0
    sample: npt.NDArray[np.float32] = field(default_factory=lambda: _NO_SAMPLE)

    @property
    def rows(self) -> int:
        """Rows with a value."""
        return int(self.counts.sum())

    def bin_labels(self) -> tuple[str, ...]:
        """A name for each bin: an interval, or a category; `__unseen__` for all others."""
        if self.kind is Kind.CATEGORICAL:
            return (*map(category_label, self.categories), "__unseen__")
        bounds = ["-inf", *map(repr, self.edges.tolist()), "+inf"]
        ends = [*["]"] * len(self.edges), ")"]
        return tuple(f"({bounds[b]},{bounds[b + 1]}{end}" for b, end in enumerate(ends))


def category_label(category: str) -> str:
    """The category, in quotes where it is empty or one of the agent's own labels (and so quoted already)."""
    return f"'{category}'" if category.strip("'") in ("", "__unseen__", "__missing__") else category


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """One column of vectors, all of `summary.mean`'s length, in the reference."""

    name: str
    role: Role
    missing: int
    summary: Summary


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """The profiles of a model's columns. `source` tells where it came from: `file` or `first_rows`."""

    model: str
    version: str
    source: str
    rows: int
    profiles: tuple[Profile, ...]
    embeddings: tuple[Embedding, ...] = ()

    def save(self, path: str | Path) -> None:
        """Write it as Parquet: one row per column. The same reference gives the same bytes."""
        metadata = {
            "tidegauge.reference": FORMAT,
            "model": self.model,
            "version": self.version,
            "rows": str(self.rows),
        }
        rows = [_row(profile) for profile in self.profiles]
        rows += [_embedding_row(embedding) for embedding in self.embeddings]
        table = pa.Table.from_pylist(rows, schema=_SCHEMA.with_metadata(metadata))
        import pyarrow.parquet as pq

        target = Path(path)
        partial = target.with_name(target.name + ".partial")
        try:
            pq.write_table(table, partial)
            partial.replace(target)
        except OSError as error:
            raise ProfileError(f"{path} cannot be written: {error}") from error

    @classmethod
    def load(cls, path: str | Path, source: str = "file") -> Reference:
        """Read what `save` wrote.

        Raises:
            ProfileError: for a file that is not there or not a reference.
        """
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
        except FileNotFoundError as error:
            raise ProfileError(f"{path} is not there; make it with `tidegauge reference build`") from error
        except (OSError, pa.ArrowException) as error:
            raise ProfileError(f"{path} is not a reference: {error}") from error
        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        known = any(table.schema.equals(schema) for schema in (_SCHEMA, _FIRST_SCHEMA))
        if metadata.get("tidegauge.reference") != FORMAT or not known:
            raise ProfileError(
                f"{path} is not a reference of format {FORMAT}; make one with `tidegauge reference build`"
            )
        told = table.to_pylist()
        profiles = tuple(_profile(row) for row in told if row["kind"] != Kind.EMBEDDING)
        embeddings = tuple(_embedding(row) for row in told if row["kind"] == Kind.EMBEDDING)
        name = metadata["model"], metadata["version"]
        return cls(*name, source, int(metadata["rows"]), profiles, embeddings)


def _row(profile: Profile) -> dict[str, Any]:
    return {
        "name": profile.name,
        "role": profile.role.value,
        "kind": profile.kind.value,
        "missing": profile.missing,
        "lowest": profile.lowest,
        "highest": profile.highest,
        "center": profile.center,
        "infinite": profile.infinite,
        "edges": profile.edges,
        "categories": profile.categories,
        "counts": profile.counts,
        "sums": profile.sums,
        "squares": profile.squares,
        "fourth": profile.fourth,
        "sample": profile.sample,
    }


def _embedding_row(embedding: Embedding) -> dict[str, Any]:
    its = embedding.summary
    lists: dict[str, list[Any]] = {name: [] for name, kind in _COLUMNS.items() if pa.types.is_list(kind)}
    return {
        **lists,
        "name": embedding.name,
        "role": embedding.role.value,
        "kind": Kind.EMBEDDING.value,
        "missing": embedding.missing,
        "counts": [its.rows],
        "mean": its.mean,
        "variance": its.variance,
        "bandwidth": its.bandwidth,
        "waves": its.waves.ravel(),
        "powers": its.powers.ravel(),
    }


def _embedding(row: dict[str, Any]) -> Embedding:
    mean, variance, waves, powers = (
        np.array(row[name], np.float64) for name in ("mean", "variance", "waves", "powers")
    )
    summary = Summary(
        row["counts"][0],
        mean,
        variance,
        row["bandwidth"],
        waves.reshape(2, FREQUENCIES),
        powers.reshape(3, 3),
    )
    return Embedding(row["name"], Role(row["role"]), row["missing"], summary)


def _profile(row: dict[str, Any]) -> Profile:
    return Profile(
        name=row["name"],
        role=Role(row["role"]),
        kind=Kind(row["kind"]),
        missing=row["missing"],
        counts=np.array(row["counts"], np.int64),
        edges=np.array(row["edges"], np.float64),
        sums=np.array(row["sums"], np.float64),
        categories=tuple(row["categories"]),
        lowest=row["lowest"],
        highest=row["highest"],
        center=row["center"],
        infinite=row["infinite"],
        squares=np.array(row["squares"], np.float64),
        fourth=row["fourth"],
        sample=np.array(row.get("sample") or [], np.float32),
    )
