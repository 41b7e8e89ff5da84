"""What is wrong with the values of a window, whatever their distribution."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from tidegauge.config import Drift as Settings
from tidegauge.identity import Identity
from tidegauge.layout import Kind
from tidegauge.metric import Number
from tidegauge.processors.drift.counts import Skipped, Tally
from tidegauge.processors.drift.report import Labels, Points
from tidegauge.profile import Profile

SHARES = ("missing", "nan", "infinite", "out_of_range", "unseen")
CHECKS = (*SHARES, "constant", "vanished", "new", "type_changed")
"""What a column may violate. Each value counts in one of SHARES at most."""

_REASONS = {"no_reference": "new", "type_changed": "type_changed"}
"""The check for the reason of a skipped column."""

_ERRORS = 4.0
"""Standard errors by which a share must pass the reference's: once in 30 000 without a change."""

_CONSTANT = 1e-8
"""Of the reference's variance, or the squared distance from its mean: less than this cannot be told from
none, the sums being doubles."""


def inspect(
    labels: Sequence[Labels], columns: Sequence[Tally], settings: Settings, points: Points
) -> Counter[str]:
    """Points of every column of a window; returns how many of them violate each of CHECKS."""
    violations: Counter[str] = Counter()
    for names, column in zip(labels, columns, strict=True):
        present, rows = column.rows, column.rows + column.missing
        if column.profile.kind is Kind.NUMERIC and rows:
            points[f"{names.prefix}.nan"].note(names.column, column.nan / rows)
            if present:
                points[f"{names.prefix}.infinite"].note(names.column, column.infinite / present)
        if present >= settings.min_rows and varies(column.profile):
            constant = is_constant(column)
            points[f"{names.prefix}.constant"].note(names.column, float(constant))
            violations["constant"] += constant
        violations.update(unusual(column, settings))
    return violations


def missing_columns(
    labels: Sequence[Labels], vanished: Sequence[int], skipped: Sequence[Skipped], points: Points
) -> Counter[str]:
    """Points of the columns that batches lack; returns what these and the skipped ones violate."""
    for column in vanished:
        points[f"{labels[column].prefix}.vanished"].note(labels[column].column, 1.0)
    found = Counter(_REASONS[one.reason] for one in skipped if one.reason in _REASONS)
    found["vanished"] = len(vanished)
    return found


def summarise(identity: Identity, violations: Counter[str], points: Points) -> None:
    """How many columns violate each check, none included."""
    points["model.data_quality.violations"].extend(
        Number(identity.attributes(check=check), float(violations[check])) for check in CHECKS
    )


def unusual(column: Tally, settings: Settings) -> list[str]:
    """The SHARES that are above the reference's by `drift.quality_margin`, and not by chance."""
    profile = column.profile
    present, rows = column.rows, column.rows + column.missing
    known, known_rows = profile.rows, profile.rows + profile.missing
    categorical = profile.kind is Kind.CATEGORICAL
    unseen, known_unseen = (int(side.counts[-1]) if categorical else 0 for side in (column, profile))
    found = {
        "missing": (column.missing - column.nan, rows, profile.missing, known_rows),
        "nan": (column.nan, rows, profile.missing, known_rows),
        "infinite": (column.infinite, present, profile.infinite, known),
        "out_of_range": (column.out_of_range - column.infinite, present, 0, known),
        "unseen": (unseen, present, known_unseen, known),
    }
    return [
        check
        for check, (bad, of, before, of_before) in found.items()
        if is_unusual(bad, of, before, of_before, settings)
    ]


def is_unusual(bad: int, of: int, before: int, of_before: int, settings: Settings) -> bool:
    """Whether bad/of, of rows enough, is above before/of_before by `drift.quality_margin`, and by chance's
    error (two proportions)."""
    if of < settings.min_rows or not of_before:
        return False
    gap = bad / of - before / of_before
    share = (bad + before) / (of + of_before)
    error = math.sqrt(share * (1 - share) * (1 / of + 1 / of_before))
    return gap >= settings.quality_margin and gap > _ERRORS * error


def varies(profile: Profile) -> bool:
    """Whether the reference has more than one bin in use: a constant that stays one is no violation."""
    return int(np.count_nonzero(profile.counts)) > 1


def is_constant(column: Tally) -> bool:
    """Whether the window's values are all one category, or one number as far as its sums can tell."""
    profile = column.profile
    if np.count_nonzero(column.counts) != 1:
        return False
    if profile.kind is Kind.CATEGORICAL:
        return not column.counts[-1]  # different unseen ones share that bin
    if column.infinite:
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        gap = float(column.sums.sum()) / column.rows
        variance = column.squares / column.rows - gap * gap
        finite = max(profile.rows - profile.infinite, 1)
        scale = max(float(profile.squares.sum()) / finite, gap * gap)
    return variance <= _CONSTANT * scale
