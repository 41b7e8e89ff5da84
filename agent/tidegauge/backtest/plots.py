"""A column's replay as a PNG, drawn off-screen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tidegauge.backtest.page import Trial
from tidegauge.backtest.timeline import Column

MOST = 100
"""Columns drawn, worst first."""


def draw(folder: Path, trials: Sequence[Trial]) -> int:
    """Write a file for each column, numbered from the worst one on. Returns how many there are.

    Raises:
        ImportError: where matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    summaries = trials[0].timeline.summaries()[:MOST]
    for number, one in enumerate(summaries, 1):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        _column(figure, one.column, trials)
        name = re.sub(r"[^\w.-]+", "_", one.column[1])[:80]
        figure.savefig(folder / f"{number:03d}-{name}.png", dpi=100)
    return len(summaries)


def _column(figure: object, column: Column, trials: Sequence[Trial]) -> None:
    score, evidence = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))  # type: ignore[attr-defined]
    first = trials[0].timeline.lines(column)
    times = np.nan_to_num(first.time_ns).astype("int64").astype("datetime64[ns]")
    score.plot(times, first.null_quantile, color="0.6", label="95 % quantile without drift")
    score.plot(times, first.score, color="tab:blue", label=trials[0].measure(column))
    for trial in trials:
        lines = trial.timeline.lines(column)
        score.axhline(trial.limit(column), color="tab:red", linestyle="--", linewidth=1)
        evidence.plot(times, np.minimum(lines.evidence, 1.25), label=f"threshold {trial.threshold:g}")
    evidence.axhline(1.0, color="tab:red", linestyle="--", linewidth=1)
    for axes in (score, evidence):
        label = "in alarm" if axes is score else None
        where = {"where": first.alarm == 1, "step": "post", "transform": axes.get_xaxis_transform()}
        axes.fill_between(times, 0, 1, **where, color="tab:red", alpha=0.15, linewidth=0, label=label)
    score.set_title(column[1])
    score.set_ylabel(trials[0].measure(column))
    score.set_ylim(bottom=0)
    score.legend(loc="upper left", fontsize="small")
    evidence.set_ylabel("evidence")
    evidence.set_ylim(0, 1.3)
    if len(trials) > 1:
        evidence.legend(loc="upper left", fontsize="small")
