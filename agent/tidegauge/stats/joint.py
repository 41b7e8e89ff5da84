"""Two samples of rows against each other, all columns at once: a classifier, a projection, correlations.

Columns come in as float64, NaN where a value is missing, and are first made alike (`alike`) by the ranks of
both samples together: without drift the samples are exchangeable afterwards as they were before, and no
outlier has a say of its own. What is learned is learned from one half of the rows and judged on the other
one, so that every p-value is that of two independent samples (Mann & Whitney 1947), whatever was learned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidegauge.stats.nulls import TAIL

Floats = npt.NDArray[np.float64]

_PENALTY = 0.001
"""Ridge penalty over the kernel's mean diagonal. Of 0.0005 to 0.02, with 500 rows a side: the smaller ones
see a scale (one column of 20 by 1.7) and a correlation (two of ten, 0.8 from 0) that the largest one
misses; it sees a shift (one of 20 by half a standard deviation) a little better, an AUC of 0.62 for 0.61."""

_EXPLAINED = 0.8
"""Share of the variance that the components kept explain at least."""

_LEAST = 20
"""Rows of either sample, for the normal law of Mann and Whitney's statistic."""

_CATEGORIES = 8
"""Categories told apart, the most frequent ones."""

_RARE = 0.005
"""Share of missing values below which missing is not told apart."""


class Separation(NamedTuple):
    """How well scores tell two samples apart. `auc` is the probability that one of the second is the
    larger; `p_value` is that of an AUC as far above (or, two-sided, away from) a half; `limit` is what it
    exceeds with probability TAIL without drift."""

    auc: float
    p_value: float
    limit: float


def separation(first: Floats, second: Floats, *, two_sided: bool = False) -> Separation:
    """The AUC of scores, and its p-value by Mann and Whitney's normal law with ties."""
    n, m = len(first), len(second)
    pooled = np.concatenate([first, second])
    _, place, times = np.unique(pooled, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(times) - (times - 1) / 2)[place]
    auc = float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))
    total = n + m
    ties = float((times.astype(np.float64) ** 3 - times).sum()) / (total * (total - 1))
    error = math.sqrt(max((total + 1 - ties) / (12 * n * m), 0.0))
    if error == 0:
        return Separation(auc, 1.0, 0.5)
    z = (auc - 0.5) / error
    p_value = math.erfc(abs(z) / math.sqrt(2)) if two_sided else math.erfc(z / math.sqrt(2)) / 2
    return Separation(auc, p_value, 0.5 + NormalDist().inv_cdf(1 - TAIL) * error)


def alike(reference: Floats, window: Floats, categorical: Sequence[bool]) -> tuple[Floats, Floats]:
    """Both samples with columns of mean 0 and variance about 1: float64[rows, made columns].

    A number becomes the normal score of its rank among both samples (van der Waerden 1952), 0 where it is
    missing; a category a column for each of the most frequent ones; and where values are missing, that is
    a column too. Columns that are constant are left out.
    """
    pooled = np.concatenate([reference, window])
    made = []
    for column, is_category in zip(pooled.T, categorical, strict=True):
        missing = np.isnan(column)
        if is_category:
            codes, times = np.unique(column[~missing], return_counts=True)
            most = codes[np.argsort(-times, kind="stable")[:_CATEGORIES]]
            made += [_standard(column == code) for code in (most[1:] if len(codes) == len(most) else most)]
        else:
            made.append(_scores(column, missing))
        if missing.mean() > _RARE:
            made.append(_standard(missing))
    whole = np.column_stack([one for one in made if one.any()] or [np.zeros(len(pooled))])
    return whole[: len(reference)], whole[len(reference) :]


def _scores(column: Floats, missing: npt.NDArray[np.bool_]) -> Floats:
    found = np.zeros(len(column))
    present = column[~missing]
    if len(present):
        _, place, times = np.unique(present, return_inverse=True, return_counts=True)
        if len(times) > 1:
            middles = 2 * np.cumsum(times) - times  # twice the mean rank, less one
            found[~missing] = _normal_scores(len(present))[middles][place]
    return found


@lru_cache(maxsize=4)
def _normal_scores(rows: int) -> Floats:
    """The normal quantile of k / (2 rows), for k up to 2 rows - 1."""
    normal = NormalDist()
    return np.array([0.0, *(normal.inv_cdf(k / (2 * rows)) for k in range(1, 2 * rows))])


def _standard(marks: npt.NDArray[np.bool_]) -> Floats:
    share = float(marks.mean())
    spread = math.sqrt(share * (1 - share))
    return np.asarray((marks - share) / spread if spread > 0 else np.zeros(len(marks)), np.float64)


def apart(reference: Floats, window: Floats) -> tuple[Floats, Floats]:
    """Both samples without the repeats of rows that only one of them has.

    What comes again and again on one side only, as the same few customers' rows or doubled training data,
    is no independent row each time. Rows that both have, as those of a few categories, stay as they are.
    """
    whose, first = _values(np.concatenate([reference, window]))
    n = len(reference)
    kept = np.isin(whose, np.intersect1d(whose[:n], whose[n:]))
    kept[first] = True
    return reference[kept[:n]], window[kept[n:]]


def _values(rows: Floats) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The number of each row's value among the distinct ones, and the first row of each: int64."""
    plain = np.ascontiguousarray(rows + 0.0)  # no negative zeros
    known = plain.view(np.dtype((np.void, plain.itemsize * plain.shape[1])))[:, 0]
    _, first, whose = np.unique(known, return_index=True, return_inverse=True)
    return whose, first


def _unlearned(rows: Sequence[Floats]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which rows to judge, of `rows`: the learned ones of two samples, and the others of both.

    Not those that were learned as ones of one sample alone: they would be known by heart. Where learned
    rows repeat by chance, as those of few categories, both samples have them. A row that was not learned
    counts once in each sample. Which are left out depends on what was learned and on each sample alone, so
    that the others of both samples stay exchangeable without drift.
    """
    whose, _ = _values(np.concatenate(rows))
    one, other, *judged = np.split(whose, np.cumsum([len(part) for part in rows])[:-1])
    by_heart, learned = np.setxor1d(one, other), np.union1d(one, other)
    found = []
    for part in judged:
        once = np.zeros(len(part), bool)
        once[np.unique(part, return_index=True)[1]] = True
        found.append((once | np.isin(part, learned)) & ~np.isin(part, by_heart))
    return found[0], found[1]


def domain_auc(reference: Floats, window: Floats) -> Separation:
    """How well a classifier tells the window's rows from the reference's, on rows that it has not seen.

    It is learned from every other row of each sample (rows come in no order) by ridge regression of which
    sample a row is of, on a kernel that is half linear and half Gaussian with the median distance: the
    linear half finds columns that shift, the Gaussian half what changes between them. The classifier
    two-sample test of Lopez-Paz & Oquab 2017, with the AUC instead of the accuracy. NaN where fewer than
    `_LEAST` rows of a sample are other ones than were learned.
    """
    learned = np.concatenate([reference[::2], window[::2]])
    n, m = len(reference[::2]), len(window[::2])
    known, seen = _unlearned([reference[::2], window[::2], reference[1::2], window[1::2]])
    if min(known.sum(), seen.sum()) < _LEAST:
        return Separation(math.nan, math.nan, math.nan)
    labels = np.concatenate([np.full(n, -m / (n + m)), np.full(m, n / (n + m))])
    judged = np.concatenate([reference[1::2][known], window[1::2][seen]])
    squared = _distances(learned, learned)
    median = float(np.median(squared[np.triu_indices(len(learned), 1)])) or 1.0
    kernel = _kernel(learned, learned, squared, median)
    kernel[np.diag_indices(len(kernel))] += _PENALTY * len(learned) * float(np.trace(kernel)) / len(kernel)
    weights = np.linalg.solve(kernel, labels)
    scores = _kernel(judged, learned, _distances(judged, learned), median) @ weights
    return separation(scores[: known.sum()], scores[known.sum() :])


def _distances(a: Floats, b: Floats) -> Floats:
    return np.asarray((a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None, :] - 2 * a @ b.T)


def _kernel(a: Floats, b: Floats, squared: Floats, median: float) -> Floats:
    return np.asarray(0.5 * (a @ b.T) / a.shape[1] + 0.5 * np.exp(-squared / median))


class Reconstruction(NamedTuple):
    """The error of a window's rows put through the reference's principal components, over that of rows of
    the reference that the components were not taken from: 1 without drift. `kept` components of them."""

    ratio: float
    p_value: float
    kept: int


def reconstruction(reference: Floats, window: Floats) -> Reconstruction:
    """Principal components of half of the reference, at least `_EXPLAINED` of its variance, judged on the
    other half and the window. NaN where nothing is left over to be an error."""
    reference, window = apart(reference, window)
    learned, judged = reference[::2], reference[1::2]
    mean = learned.mean(axis=0)
    values, vectors = components(learned - mean)
    explained = np.cumsum(values) / max(float(values.sum()), 1e-300)
    kept = min(int(np.searchsorted(explained, _EXPLAINED)) + 1, len(values))
    basis = vectors[:, :kept]
    before, after = (residuals(rows - mean, basis) for rows in (judged, window))
    if kept == reference.shape[1] or before.mean() <= 1e-12:
        return Reconstruction(math.nan, math.nan, kept)
    p_value = separation(before, after, two_sided=True).p_value
    return Reconstruction(float(after.mean() / before.mean()), p_value, kept)


def components(centred: Floats) -> tuple[Floats, Floats]:
    """Variances, descending, and principal components as columns, of rows less their mean."""
    values, vectors = np.linalg.eigh(centred.T @ centred / max(len(centred) - 1, 1))
    return np.maximum(values[::-1], 0.0), vectors[:, ::-1]


def residuals(centred: Floats, basis: Floats) -> Floats:
    """Squared length of what an orthonormal basis, as columns, leaves of each row: float64[rows]."""
    left = centred - (centred @ basis) @ basis.T
    return np.asarray((left * left).sum(axis=1))


def correlated(scores: Floats, least: float) -> npt.NDArray[np.int64]:
    """Pairs of columns whose correlation is at least `least` or at most -`least`: int64[pairs, 2]."""
    spread = scores.std(axis=0)
    standard = (scores - scores.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    matrix = np.triu(standard.T @ standard / len(scores), 1)
    return np.argwhere(np.abs(matrix) >= least)


def groups(members: Sequence[int], pairs: npt.NDArray[np.int64]) -> list[list[int]]:
    """Members that pairs connect, by way of other members only: the groups of two and more, ascending."""
    root = {member: member for member in members}

    def find(member: int) -> int:
        while root[member] != member:
            member = root[member]
        return member

    for one, other in pairs.tolist():
        if one in root and other in root:
            a, b = find(one), find(other)
            root[max(a, b)] = min(a, b)
    found: dict[int, list[int]] = {}
    for member in sorted(root):
        found.setdefault(find(member), []).append(member)
    return [group for group in found.values() if len(group) > 1]


def normal_scores(sample: Floats) -> Floats:
    """Numbers as normal scores of their ranks in this sample alone: float64 of the same shape."""
    return np.column_stack([_scores(column, np.isnan(column)) for column in sample.T])
