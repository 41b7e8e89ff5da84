"""How times, shares and reasons are written, on a terminal and on a page alike."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

from tidegauge.backtest.timeline import Episode, Moved


def when(time_ns: float) -> str:
    """A time as ISO 8601 in UTC, to the second.

    >>> when(0)
    '1970-01-01T00:00:00Z'
    """
    return datetime.fromtimestamp(time_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def figure(value: float) -> str:
    """Three digits, or nothing where there is no number."""
    return f"{value:.3g}" if math.isfinite(value) else ""


def percent(share: float) -> str:
    """A share, with enough digits to tell a small one from none."""
    return f"{share:.0%}" if share >= 0.1 or share == 0 else f"{share:.1%}"


def short(bin_label: str) -> str:
    """A bin's label with the digits that a reader needs.

    >>> short("(72.01953125,+inf)")
    '(72.02,+inf)'
    """
    if not bin_label.startswith("("):
        return bin_label
    return re.sub(r"-?\d[\d.]*(?:e[+-]?\d+)?", lambda number: f"{float(number[0]):.4g}", bin_label)


def moves(moved: list[Moved]) -> str:
    """The bins that moved: shares of the reference and of the window, and of the PSI."""
    return "; ".join(
        f"{short(one.bin)} {percent(one.reference)} → {percent(one.window)}" for one in moved if one.share > 0
    )


def why(episode: Episode) -> str:
    """The evidence at an episode's start."""
    one = episode.first
    parts = (
        [f"{one.statistic.upper()} {figure(one.score)}"]
        if math.isfinite(one.score)
        else [f"not judged: {one.unjudged}"]
    )
    if math.isfinite(one.null_quantile):
        parts.append(f"without drift below {figure(one.null_quantile)} in 95 %")
    if math.isfinite(one.p_value):
        parts.append(f"p {figure(one.p_value)}")
    parts.append(f"{one.rows:,.0f} rows")
    if episode.moved:
        parts.append(f"moved most: {moves(episode.moved)}")
    return ", ".join(parts)
