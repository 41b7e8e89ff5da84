"""What a snapshot says of slices, on a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import NamedTuple

import click
from rich.console import Console
from rich.table import Table as Drawn
from rich.text import Text

from tidegauge.backtest.timeline import Moved
from tidegauge.backtest.wording import figure
from tidegauge.cli.histograms import side_by_side
from tidegauge.metric import Metric, Table

SLICES = 20
"""Slices shown of a model: the worst ones."""


class _Column(NamedTuple):
    """What is said of one column of a slice."""

    name: str
    rows: float
    score: float
    p_value: float
    null_quantile: float
    judged: float
    drifted: float

    @property
    def verdict(self) -> str:
        return ("steady", "drifted")[self.drifted == 1] if self.judged else "not judged"

    @property
    def goodness(self) -> tuple[bool, bool, float]:
        """Less for what is worse."""
        return self.drifted != 1, self.judged != 1, -self.score if math.isfinite(self.score) else math.inf


def overview(console: Console, tables: Sequence[Metric]) -> None:
    """Print the slices, worst first; nothing where there are none."""
    ranked = ((name, sorted(_columns(table), key=_goodness)) for name, table in _named(tables).items())
    told = [(name, columns) for name, columns in ranked if columns]
    if not told:
        return
    drawn = _drawn("slice", "drifted", "of", "worst\ncolumn", "PSI", "95 % null", "rows")
    told.sort(key=lambda one: (one[1][0].goodness, one[0]))
    for name, (worst, *others) in told[:SLICES]:
        drifted = sum(column.drifted == 1 for column in (worst, *others))
        judged = sum(column.judged == 1 for column in (worst, *others))
        figures = (figure(worst.score), figure(worst.null_quantile), f"{worst.rows:,.0f}")
        style = "yellow" if drifted else ""
        drawn.add_row(Text(name), str(drifted), str(judged), Text(worst.name), *figures, style=style)
    if len(told) > SLICES:
        drawn.caption = f"the worst {SLICES} of {len(told)} slices"
    console.print(drawn)


def explain(console: Console, tables: Sequence[Metric], name: str, feature: str | None) -> None:
    """Print what is said of one slice: its columns, worst first, and how the worst one's values moved.

    Raises:
        click.ClickException: where there is no such slice.
    """
    known = _named(tables)
    if name not in known:
        near = get_close_matches(name, known, cutoff=0.5) or sorted(known)[:10]
        hint = f"did you mean {' or '.join(near)}?" if near else "no segment column was received"
        raise click.ClickException(f"there is no slice {name!r}; {hint}")
    if feature not in (None, *known[name].columns):
        raise click.ClickException(
            f"{feature} has no statistics in {name}: embeddings and the slice's own column have none"
        )
    drawn = _drawn("column", "verdict", "PSI", "95 % null", "p", "rows")
    for column in sorted(_columns(known[name]), key=_goodness):
        if feature in (None, column.name):
            figures = map(figure, (column.score, column.null_quantile, column.p_value))
            style = "yellow" if column.drifted == 1 else ""
            drawn.add_row(Text(column.name), column.verdict, *figures, f"{column.rows:,.0f}", style=style)
    console.print(drawn)
    for table in _tables(tables, "model.slice.bins"):
        at = dict(table.attributes)
        moved = at.get("feature", at.get("output", ""))
        if at["slice"] == name and feature in (None, moved):
            console.print(Text(f"{moved}, reference and {name}"))
            console.print(side_by_side(_moved(table), "slice"))


def _drawn(*headings: str) -> Drawn:
    drawn = Drawn()
    for heading in headings:
        is_text = heading in ("slice", "column", "worst\ncolumn", "verdict")
        drawn.add_column(heading, justify="left" if is_text else "right", overflow="fold")
    return drawn


def _goodness(column: _Column) -> tuple[bool, bool, float]:
    return column.goodness


def _named(tables: Sequence[Metric]) -> dict[str, Table]:
    """The columns of each slice, by its name."""
    return {dict(table.attributes)["slice"]: table for table in _tables(tables, "model.slice.columns")}


def _tables(tables: Sequence[Metric], name: str) -> Iterator[Table]:
    for metric in tables:
        if metric.name == name:
            yield from (point for point in metric.points if isinstance(point, Table))


def _columns(table: Table) -> list[_Column]:
    rows = zip(*(table.values[field] for field in _Column._fields[1:]), strict=True)
    return [_Column(name, *row) for name, row in zip(table.columns, rows, strict=True)]


def _moved(table: Table) -> list[Moved]:
    whole = sum(table.values["psi"]) or 1.0
    rows = zip(*(table.values[field] for field in ("reference", "slice", "psi")), strict=True)
    return [
        Moved(name, reference, its, part / whole)
        for name, (reference, its, part) in zip(table.columns, rows, strict=True)
    ]
