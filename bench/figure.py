"""One line of the table."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from rich.console import Console
from rich.table import Table


class Figure(NamedTuple):
    """What was measured, once per element of `values`, and what the peer did in the same run.

    `less` tells that less is better, so that a ratio above one is always in the agent's favour.
    """

    what: str
    unit: str
    values: Sequence[float]
    peer: str = ""
    peer_values: Sequence[float] = ()
    less: bool = False

    @property
    def ratio(self) -> float | None:
        """How many times as good as the peer, by medians."""
        if not self.peer_values:
            return None
        own, other = median(self.values), median(self.peer_values)
        return other / own if self.less else own / other


def show(figures: list[Figure], console: Console) -> None:
    """Print the table: medians, and the range where a measurement was repeated."""
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("measured", no_wrap=True)
    table.add_column("tidegauge", justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    table.add_column("peer", no_wrap=True)
    table.add_column("peer's", justify="right", no_wrap=True)
    table.add_column("ratio", justify="right", no_wrap=True)
    for figure in figures:
        ratio = figure.ratio
        table.add_row(
            figure.what,
            _range(figure.values),
            figure.unit,
            figure.peer,
            _range(figure.peer_values),
            "" if ratio is None else f"{ratio:.3g}x",
        )
    console.print(table)


def _range(values: Sequence[float]) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.3g}"
    return f"{median(values):.3g} ({min(values):.3g} to {max(values):.3g})"
