"""How far each slice is from the reference, which ones are worst, and how that is written down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from tidegauge.config import Drift as Settings
from tidegauge.identity import OVERFLOW, Identity
from tidegauge.metric import Attributes, Number, Point, Table
from tidegauge.processors.drift.counts import Counts, Tables
from tidegauge.processors.drift.report import family
from tidegauge.processors.drift.slices import Slice
from tidegauge.processors.drift.window import Window
from tidegauge.profile import Profile
from tidegauge.stats import bins
from tidegauge.stats.comparison import PSI, STATISTICS, compare, psi_rows
from tidegauge.stats.distances import false_discoveries
from tidegauge.stats.parts import psi_parts

_STATISTICS = tuple(("statistic", name) for name in STATISTICS)

Pair = tuple[int, int]
"""Places of a slice and of a column."""


class Judgement(NamedTuple):
    """Slices by columns, in the order of `Tables.profiles`: arrays of [slices, columns].

    `rows` int64: those with a value. `scores`, `p_values` and `null_quantiles` float64: of the PSI, NaN
    without rows. `drifted` bool: PSI is significant, at the false discovery rate over all judged columns
    of all slices, and material. `worst` are the judged pairs, the worst first: what is drifted, then what
    is significant, then the larger PSI. The column that a slice is made by has one value in it, which tells
    nothing: `own` bool has it, and it is not judged.
    """

    slices: Sequence[Slice]
    totals: Sequence[Counts]
    rows: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    p_values: npt.NDArray[np.float64]
    null_quantiles: npt.NDArray[np.float64]
    own: npt.NDArray[np.bool_]
    judged: npt.NDArray[np.bool_]
    drifted: npt.NDArray[np.bool_]
    worst: Sequence[Pair]

    @classmethod
    def of(
        cls, tables: Tables, slices: Sequence[Slice], totals: Sequence[Counts], settings: Settings
    ) -> Self:
        """Judge the windows of slices."""
        windows = (
            np.array([one.counts for one in totals]),
            np.array([one.categories for one in totals]),
        )
        parts = [
            np.array([psi_rows(its.bins, its.counts, one, its.limits) for one in those])
            for its, those in zip(tables.baselines, windows, strict=True)
        ]
        scores, p_values, null_quantiles = np.moveaxis(np.concatenate(parts, axis=1), 2, 0)
        rows = np.concatenate([one.sum(axis=2) for one in windows], axis=1)
        referenced = np.array([profile.rows > 0 for profile in tables.profiles], bool)
        own = np.array([[one.column == name for name in tables.names] for one in slices], bool)
        judged = (rows >= settings.min_rows) & referenced & ~own
        rare = np.zeros(judged.shape, bool)
        rare[judged] = false_discoveries(p_values[judged], settings.significance)
        drifted = rare & (scores >= settings.threshold)
        places = np.argwhere(judged)
        at = tuple(places.T)
        order = np.lexsort((-scores[at], ~rare[at], ~drifted[at]))
        worst = [(one, column) for one, column in places[order].tolist()]
        return cls(slices, totals, rows, scores, p_values, null_quantiles, own, judged, drifted, worst)


def report(identity: Identity, window: Window, now_ns: int, settings: Settings) -> dict[str, list[Point]]:
    """Points of every slice of a window, and of the worst `drift.slices.worst` columns of slices."""
    points: dict[str, list[Point]] = {}
    tables, slices = window.tables, window.slices
    overflow = [
        Number(identity.attributes(segment=one.name), float(one.overflowed))
        for one in slices.segments.values()
    ]
    if overflow:
        points["model.slice.overflow"] = [*overflow]
    held = list(slices.totals(window.clock(now_ns)))
    if not held:
        return points
    its = Judgement.of(tables, [one for one, _ in held], [total for _, total in held], settings)
    names = [_named(identity, one) for one in its.slices]
    points["model.slice.rows"] = [
        Number(where, float(total.rows)) for where, total in zip(names, its.totals, strict=True)
    ]
    points["model.slice.drifted_columns"] = [
        Number(where, float(count)) for where, count in zip(names, its.drifted.sum(axis=1), strict=True)
    ]
    points["model.slice.columns"] = [_table(tables, names[one], its, one) for one in range(len(names))]
    shown = its.worst[: settings.slices.worst]
    for pair in shown:
        _tell(tables, names[pair[0]], its, pair, points)
    points["model.slice.bins"] = [
        _bins(tables, names[one], its, (one, column)) for one, column in _explained(its, shown)
    ]
    return {name: told for name, told in points.items() if told}


def _named(identity: Identity, its: Slice) -> Attributes:
    where = identity.attributes(slice=str(its))
    return (*where, *OVERFLOW) if its.is_other else where


def _column(profile: Profile) -> tuple[str, str]:
    return family(profile.role)[1], profile.name


def _table(tables: Tables, where: Attributes, its: Judgement, one: int) -> Table:
    """All columns of a slice but its own."""
    others = np.flatnonzero(~its.own[one])
    found = {
        "rows": its.rows[one],
        "score": its.scores[one],
        "p_value": its.p_values[one],
        "null_quantile": its.null_quantiles[one],
        "judged": its.judged[one],
        "drifted": its.drifted[one],
    }
    values = {name: tuple(row[others].astype(np.float64).tolist()) for name, row in found.items()}
    return Table(where, tuple(tables.names[column] for column in others.tolist()), values)


def _tell(
    tables: Tables, where: Attributes, its: Judgement, pair: Pair, points: dict[str, list[Point]]
) -> None:
    """Points of one column of one slice."""
    at = (*where, _column(tables.profiles[pair[1]]))
    values, p_values = _statistics(tables, its, pair)
    points.setdefault("model.slice.drift.score", []).append(Number(at, values[PSI]))
    points.setdefault("model.slice.drifted", []).append(Number(at, float(its.drifted[pair])))
    for name, told in (("statistic", values), ("p_value", p_values)):
        points.setdefault(f"model.slice.drift.{name}", []).extend(
            Number((*at, key), value) for key, value in zip(_STATISTICS, told, strict=True) if value == value
        )


def _statistics(tables: Tables, its: Judgement, pair: Pair) -> tuple[list[float], list[float]]:
    """All statistics of one column of a slice, and their p-values."""
    one, column = pair
    total, numeric = its.totals[one], len(tables.numeric)
    is_number = column < numeric
    baselines = tables.baselines[not is_number]
    row = slice(column, column + 1) if is_number else slice(column - numeric, column - numeric + 1)
    alone = baselines._replace(**{name: getattr(baselines, name)[row] for name in _BY_COLUMN})
    if is_number:
        infinite = np.ascontiguousarray(total.tallies[row, bins.INFINITE])
        squares = np.ascontiguousarray(total.squares[row, 0])
        found = compare(alone, total.counts[row], total.sums[row], squares, infinite, ordered=True)
    else:
        none: Any = np.zeros(total.categories[row].shape)
        found = compare(alone, total.categories[row], none, np.zeros(1), np.zeros(1, np.int64), ordered=False)
    return found.values[0].tolist(), found.p_values[0].tolist()


_BY_COLUMN = ("bins", "counts", "sums", "moments", "squared", "tables", "finite")


def _explained(its: Judgement, shown: Sequence[Pair]) -> list[Pair]:
    """The worst pairs, and each slice's own worst."""
    own: dict[int, Pair] = {}
    for pair in its.worst:
        own.setdefault(pair[0], pair)
    return [*dict.fromkeys((*shown, *own.values()))]


def _bins(tables: Tables, where: Attributes, its: Judgement, pair: Pair) -> Table:
    """Both histograms of one column of a slice, as shares, and each bin's part of the PSI."""
    one, column = pair
    profile, numeric = tables.profiles[column], len(tables.numeric)
    total = its.totals[one]
    counts = total.counts[column] if column < numeric else total.categories[column - numeric]
    window = counts[: len(profile.counts)].astype(np.float64)
    reference = profile.counts.astype(np.float64)
    values = {
        "reference": reference / reference.sum(),
        "slice": window / window.sum(),
        "psi": psi_parts(reference, window),
    }
    labels = tuple(label for _, label in tables.bins[column])
    told = {name: tuple(row.tolist()) for name, row in values.items()}
    return Table((*where, _column(profile)), labels, told)
