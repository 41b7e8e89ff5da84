"""A section of the status page: a table, and how figures are written in it."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from datetime import UTC, datetime

Row = Sequence[str]

ROWS = 200
"""Rows shown of one table; /metrics has them all."""

_WIDE, _LONGEST = 60, 200
"""Characters from which a cell has several lines, and that it has: names have no end."""


def section(
    title: str, header: Row, rows: Sequence[Row], *, texts: int, empty: str = "", ill: Sequence[str] = ()
) -> str:
    """A section, or `empty` where there are no rows. Columns from `texts` on are figures; a row stands out
    where its last text is one of `ill`.
    """
    if not rows:
        return f'<section><h2>{title}</h2><p class="dim">{empty}</p></section>' if empty else ""
    more = f'<p class="dim">and {len(rows) - ROWS} more in /metrics</p>' if len(rows) > ROWS else ""
    body = "".join(
        f"<tr{' class=ill' if row[texts - 1] in ill else ''}>{_cells('td', row, texts)}</tr>"
        for row in rows[:ROWS]
    )
    return (
        f"<section><h2>{title}</h2><table><thead><tr>{_cells('th', header, texts)}</tr></thead>"
        f"<tbody>{body}</tbody></table>{more}</section>"
    )


def _cells(tag: str, row: Row, texts: int) -> str:
    kinds = ("n" if index >= texts else "long" if len(cell) > _WIDE else "" for index, cell in enumerate(row))
    return "".join(
        f"<{tag}{f' class={kind}' if kind else ''}>{html.escape(cell[:_LONGEST])}</{tag}>"
        for kind, cell in zip(kinds, row, strict=True)
    )


def value_text(value: float, unit: str) -> str:
    formats = {
        "By": size_text,
        "s": duration_text,
        "1": percent_text,
        "Cel": "{:.0f} °C".format,
        "W": "{:.0f} W".format,
    }
    if not math.isfinite(value):
        return str(value)
    return formats[unit](value) if unit in formats else figure_text(value)


def count_text(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else ""


def figure_text(value: float) -> str:
    if value == int(value) if math.isfinite(value) else False:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value == value else ""


def percent_text(value: float) -> str:
    return f"{value:.1%}" if math.isfinite(value) else ""


def size_text(value: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def time_text(unix_s: float) -> str:
    """A point in time, in UTC; 0 is none."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if unix_s else "never"


def duration_text(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
