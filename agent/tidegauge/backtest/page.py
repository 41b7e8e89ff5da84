"""A backtest as one HTML document that needs nothing else: charts are inline SVG."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidegauge import __version__
from tidegauge.backtest.timeline import ALARM, Column, Lines, Summary, Timeline
from tidegauge.backtest.wording import figure, percent, when, why

CHARTS = 100
"""Columns drawn; the table has them all."""

EPISODES = 5
"""Alarms of a column that are told in words."""

_WIDTH, _TALL, _LOW, _GAP, _LEFT, _RIGHT, _TOP = 900.0, 120.0, 60.0, 22.0, 48.0, 60.0, 8.0

_LEGEND = (
    "In the charts: blue, the score (PSI, of an embedding MMD); grey, its 95 % quantile without drift; "
    "dashed, the thresholds and the evidence that makes an alarm; violet, evidence; shaded, in alarm."
)
_STYLE = """
:root{color-scheme:light dark;--back:#f7f8f9;--card:#fff;--ink:#17212b;--dim:#5d6b78;--line:#dfe4e8;
--score:#1764ab;--null:#8a96a3;--ill:#b3261e;--tint:#f6c9c5;--evidence:#7a4fb5}
@media(prefers-color-scheme:dark){:root{--back:#10161c;--card:#182129;--ink:#e4eaef;--dim:#93a1ae;
--line:#2a3640;--score:#6db3f2;--null:#71808e;--ill:#ff8a80;--tint:#5a2725;--evidence:#b897e8}}
body{margin:0 auto;padding:1.5rem;max-width:62rem;background:var(--back);color:var(--ink);
font:15px/1.5 system-ui,sans-serif}h1{font-size:1.4rem;margin:0}h2{font-size:1.05rem;margin:0}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1rem 1.2rem;
margin:1rem 0;overflow-x:auto}.dim,th,text{color:var(--dim);fill:var(--dim)}table{border-collapse:collapse;
width:100%;font-variant-numeric:tabular-nums}th,td{text-align:left;padding:.25rem .9rem .25rem 0;
border-bottom:1px solid var(--line);white-space:nowrap}.n{text-align:right}.ill{color:var(--ill);
font-weight:600}svg{width:100%;height:auto;font-size:11px}path{fill:none;stroke-width:1.4}
.score{stroke:var(--score)}.null{stroke:var(--null)}.evidence{stroke:var(--evidence)}
.at{stroke:var(--ill);stroke-dasharray:4 3;stroke-width:1}.band{fill:var(--tint)}.frame{stroke:var(--line)}
ul{margin:.3rem 0;padding-left:1.2rem}
"""


class Trial(NamedTuple):
    """One threshold, and what came of it. Embeddings have their own threshold, of the MMD, in all trials."""

    threshold: float
    timeline: Timeline
    mmd_threshold: float
    embeddings: frozenset[Column] = frozenset()

    def measure(self, column: Column) -> str:
        """What a column's score is called."""
        return "MMD" if column in self.embeddings else "PSI"

    def limit(self, column: Column) -> float:
        """From where on a column's score is material."""
        return self.mmd_threshold if column in self.embeddings else self.threshold


def page(title: str, about: Sequence[str], trials: Sequence[Trial]) -> str:
    """The document. The first trial says in which order the columns come and is told in full."""
    first = trials[0]
    summaries = first.timeline.summaries()
    body = [_comparison(trials)] if len(trials) > 1 else []
    body.append(_overview(summaries, first.threshold))
    body.append(f'<p class="dim">{_LEGEND}</p>')
    body += [_chart(one, trials) for one in summaries[:CHARTS]]
    if len(summaries) > CHARTS:
        body.append(f'<p class="dim">The other {len(summaries) - CHARTS} columns have no chart.</p>')
    lines = "".join(f'<div class="dim">{html.escape(line)}</div>' for line in about)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>"
        f'<h1>{html.escape(title)}</h1>{lines}{"".join(body)}<p class="dim">Tidegauge {__version__}</p>'
        "</body></html>\n"
    )


def _comparison(trials: Sequence[Trial]) -> str:
    rows = []
    for threshold, timeline, *_ in trials:
        found = timeline.summaries()
        alarms = [one for one in timeline.episodes if one.what == ALARM]
        start = when(min(one.first.time_ns for one in alarms)) if alarms else "none"
        columns = str(sum(one.alarms > 0 for one in found))
        rows.append((figure(threshold), start, str(len(alarms)), columns, _most(found)))
    header = ("threshold", "first alarm", "alarms", "columns in alarm", "longest in alarm")
    return f"<section><h2>Thresholds</h2>{_table(header, rows, texts=2)}</section>"


def _most(found: Sequence[Summary]) -> str:
    longest = max(found, key=lambda one: one.alarming)
    return f"{longest.column[1]} {percent(longest.alarming)}" if longest.alarming else ""


def _overview(summaries: Sequence[Summary], threshold: float) -> str:
    header = ("column", "alarms", "in alarm", "drifted", "judged", "peak score", "peak evidence")
    rows = [
        (
            one.column[1],
            str(one.alarms),
            percent(one.alarming),
            percent(one.drifted),
            percent(one.judged),
            figure(one.peak_score),
            figure(one.peak_evidence),
        )
        for one in summaries
    ]
    ill = {row for row, one in enumerate(summaries) if one.alarms}
    table = _table(header, rows, texts=1, ill=ill)
    return f"<section><h2>Columns, worst first (threshold {figure(threshold)})</h2>{table}</section>"


def _chart(one: Summary, trials: Sequence[Trial]) -> str:
    kind, name = one.column
    alarms = [episode for episode in one.episodes if episode.what == ALARM]
    items = "".join(
        f"<li><b>{when(episode.first.time_ns)}</b>"
        f"{f' to {when(episode.end_ns)}' if episode.end_ns else ', not over at the end'}: "
        f"{html.escape(why(episode))}</li>"
        for episode in alarms[:EPISODES]
    )
    more = f'<div class="dim">and {len(alarms) - EPISODES} more</div>' if len(alarms) > EPISODES else ""
    what = "" if kind == "feature" else ' <span class="dim">(prediction)</span>'
    return (
        f"<section><h2>{html.escape(name)}{what}</h2>{_svg(one.column, trials)}"
        f"<ul>{items}</ul>{more}</section>"
    )


def _svg(column: Column, trials: Sequence[Trial]) -> str:
    lines = [trial.timeline.lines(column) for trial in trials]
    first = lines[0]
    known = first.time_ns[np.isfinite(first.time_ns)]
    if not len(known):
        return '<p class="dim">no rows</p>'
    begin, end = float(known[0]), float(known[-1])
    x = _LEFT + (first.time_ns - begin) / max(end - begin, 1.0) * (_WIDTH - _LEFT - _RIGHT)
    thresholds = dict.fromkeys(trial.limit(column) for trial in trials)
    drawn = [*thresholds, *first.score[np.isfinite(first.score)].tolist()]
    highest = 1.08 * max(drawn)
    base, low = _TOP + _TALL, _TOP + _TALL + _GAP
    parts = [*_bands(first, x, _TOP, low + _LOW)]
    for threshold in thresholds:
        y = base - threshold / highest * _TALL
        parts.append(f'<path class="at" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_WIDTH - _RIGHT + 4}" y="{y + 4:.1f}">{figure(threshold)}</text>')
    parts.append(_path("null", x, base - np.minimum(first.null_quantile / highest, 1.0) * _TALL))
    parts.append(_path("score", x, base - first.score / highest * _TALL))
    heights = [np.minimum(one.evidence, 1.25) / 1.25 * _LOW for one in lines]
    parts += [_path("evidence", x, low + _LOW - height) for height in heights]
    parts.append(f'<path class="at" d="M{_LEFT} {low + 0.2 * _LOW:.1f}H{_WIDTH - _RIGHT}"/>')
    for top, bottom in ((_TOP, base), (low, low + _LOW)):
        parts.append(f'<path class="frame" d="M{_LEFT} {top}V{bottom}H{_WIDTH - _RIGHT}"/>')
    foot = low + _LOW + 14
    parts += [
        f'<text x="0" y="{_TOP + 10}">{trials[0].measure(column)}</text><text x="0" y="{base}">0</text>',
        f'<text x="0" y="{low + 10}">evid-</text><text x="0" y="{low + 22}">ence</text>',
        f'<text x="{_WIDTH - _RIGHT + 4}" y="{low + 0.2 * _LOW + 4:.1f}">alarm</text>',
        f'<text x="{_LEFT}" y="{foot}">{when(begin)}</text>',
        f'<text x="{_WIDTH - _RIGHT}" y="{foot}" text-anchor="end">{when(end)}</text>',
    ]
    return f'<svg viewBox="0 0 {_WIDTH:.0f} {foot + 6:.0f}" role="img">{"".join(parts)}</svg>'


def _bands(lines: Lines, x: npt.NDArray[np.float64], top: float, bottom: float) -> Iterator[str]:
    """A rectangle for each run of steps in alarm."""
    for is_alarm, run in groupby(range(len(x)), key=lambda step: lines.alarm[step] == 1):
        steps = list(run)
        if is_alarm:
            left, width = x[steps[0]], max(x[steps[-1]] - x[steps[0]], 2.0)
            size = f'x="{left:.1f}" y="{top}" width="{width:.1f}" height="{bottom - top}"'
            yield f'<rect class="band" {size}/>'


def _path(name: str, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> str:
    """A line with gaps where there is no number."""
    told, pen = [], "M"
    for across, down in zip(x.tolist(), y.tolist(), strict=True):
        if math.isfinite(down):
            told.append(f"{pen}{across:.1f} {down:.1f}")
            pen = "L"
        else:
            pen = "M"
    return f'<path class="{name}" d="{"".join(told)}"/>'


def _table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int, ill: set[int] | None = None
) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=n' if place >= texts else ''}>{html.escape(cell)}</{tag}>"
            for place, cell in enumerate(row)
        )

    body = "".join(
        f"<tr{' class=ill' if ill and number in ill else ''}>{cells('td', row)}</tr>"
        for number, row in enumerate(rows)
    )
    return f"<table><thead><tr>{cells('th', header)}</tr></thead><tbody>{body}</tbody></table>"
