"""Two histograms side by side on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from tidegauge.backtest.timeline import Moved
from tidegauge.backtest.wording import percent, short

BINS = 40
"""Bins shown of one column: those that moved most."""

_BAR = 14
_EIGHTHS = " ▏▎▍▌▋▊▉"


def side_by_side(bins: Sequence[Moved], what: str, *, has_parts: bool = True) -> Table:
    """Bins of the reference beside those of `what`, in the order given, and their shares of the PSI."""
    most = sorted(bins, key=lambda one: -one.share)[:BINS]
    table = Table()
    table.add_column("bin", overflow="fold")
    for heading in ("reference", what):
        table.add_column(heading, no_wrap=True)
    table.add_column("of PSI", justify="right")
    widest = max((max(one.reference, one.window) for one in bins), default=0.0)
    for one in bins:
        if not has_parts or one in most:
            bars = (_bar(share, widest) for share in (one.reference, one.window))
            part = percent(one.share) if has_parts else ""
            table.add_row(Text(short(one.bin)), *bars, part, style="bold" if one.share >= 0.1 else "")
    if has_parts and len(bins) > BINS:
        table.caption = f"the {BINS} of {len(bins)} bins that moved most"
    return table


def _bar(share: float, widest: float) -> str:
    eighths = round(share / widest * _BAR * 8) if widest else 0
    bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
    return f"{bar:<{_BAR}} {percent(share):>5}"
