"""The status page: one self-contained HTML document made from a snapshot."""

from __future__ import annotations

import html
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from tidegauge import __version__
from tidegauge.metric import Attributes, ExponentialHistogram, Histogram, Kind, Metric, Number, Point, Table
from tidegauge.snapshot import Snapshot
from tidegauge.stats.exponential import quantile

ROWS = 200
"""Rows shown of one table; /metrics has them all."""
_WIDE, _LONGEST = (
    60,
    200,
)  # characters from which a cell has several lines, and that it has: names have no end

_TIMINGS = ("time_to_first_token", "time_per_output_token", "phase.duration", "tokens")
_IDENTITY = ("model", "version", "stage", "data_source")
_STYLE = """
:root{color-scheme:light dark;--back:#f7f8f9;--card:#fff;--ink:#17212b;--dim:#5d6b78;--line:#dfe4e8;
--well:#0b7a53;--ill:#b3261e;--tint:#fdecea}
@media(prefers-color-scheme:dark){:root{--back:#10161c;--card:#182129;--ink:#e4eaef;--dim:#93a1ae;
--line:#2a3640;--well:#4cc38a;--ill:#ff8a80;--tint:#3a1d1c}}
*{box-sizing:border-box}body{margin:0 auto;padding:1.5rem;max-width:76rem;background:var(--back);
color:var(--ink);font:15px/1.5 system-ui,sans-serif}h1{font-size:1.4rem;margin:0}h2{font-size:1.05rem;
margin:0 0 .5rem}header{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;align-items:baseline;
margin-bottom:1rem}.dim,caption,th{color:var(--dim)}section{background:var(--card);border:1px solid
var(--line);border-radius:10px;padding:1rem 1.2rem;margin:0 0 1rem;overflow-x:auto}table{width:100%;
border-collapse:collapse;font-variant-numeric:tabular-nums}th,td{text-align:left;padding:.25rem .9rem
.25rem 0;border-bottom:1px solid var(--line);white-space:nowrap}th{font-weight:500;font-size:.85rem}
tr:last-child td{border-bottom:0}.n{text-align:right}.long{white-space:normal;overflow-wrap:anywhere}
.ill{color:var(--ill);font-weight:600}
tr.ill td{background:var(--tint)}.well{color:var(--well);font-weight:600}a{color:inherit}p{margin:.3rem 0}
"""

Row = Sequence[str]


def page(snapshot: Snapshot, reasons: Sequence[str], refresh_s: int = 5) -> str:
    """The document. `reasons` says why the agent is not well; it is well where there are none."""
    view = _View(snapshot.metrics)
    age_s = max(0.0, (time.time_ns() - snapshot.time_ns) / 1e9)
    verdict = (
        f'<span class="ill">not well: {html.escape("; ".join(reasons))}</span>'
        if reasons
        else '<span class="well">well</span>'
    )
    sections = "".join(
        (
            _drift(view),
            _latency(view),
            _timings(view),
            _stages(view),
            _errors(view),
            _logs(view),
            _received(view),
            _losses(view),
            _references(view),
            _gpus(view),
            _own(view),
            _pushed(snapshot.metrics),
        )
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Tidegauge</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="refresh" content="{refresh_s}"><style>{_STYLE}</style></head><body>'
        f"<header><h1>Tidegauge</h1>{verdict}"
        f'<span class="dim">{__version__}, snapshot {snapshot.generation}, {age_s:.0f} s old</span>'
        '<span><a href="/metrics">metrics</a> · <a href="/api/v1/snapshot">snapshot</a></span></header>'
        f"{sections}</body></html>"
    )


class _View:
    """A snapshot's metrics by name: the agent's own, for a sender may call its own the same."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self.by_name = {metric.name: metric for metric in metrics if not metric.received}

    def histograms(self, *names: str) -> Iterator[tuple[Metric, ExponentialHistogram]]:
        for metric in filter(None, map(self.by_name.get, names)):
            for point in metric.points:
                if isinstance(point, ExponentialHistogram) and point.count:
                    yield metric, point

    def numbers(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        metric = self.by_name.get(name)
        for point in metric.points if metric else ():
            if isinstance(point, Number):
                yield dict(point.attributes), point.value

    def proper(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        """Those of `drift.window` against the reference, and not of what is judged besides."""
        for at, value in self.numbers(name):
            if at.keys().isdisjoint(("window", "baseline", "reference")):
                yield at, value


def _drift(view: _View) -> str:
    rows: list[tuple[bool, float, Row]] = []
    for what, key in (("feature", "feature"), ("prediction", "output")):
        cells: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
        for column in ("drift.score", "window.rows", "missing", "drifted"):
            for at, value in view.proper(f"{what}.{column}"):
                cells[_identity(at), at.get(key, "")][column] = value
        for at, value in view.proper(f"{what}.drift.p_value"):
            if at.get("statistic") == "psi":  # the score's own, which the verdict goes by
                cells[_identity(at), at.get(key, "")]["p"] = value
        for (identity, name), cell in cells.items():
            if not cell.keys() & {"drift.score", "window.rows"}:
                continue
            score, drifted = cell.get("drift.score", math.nan), bool(cell.get("drifted"))
            row = (
                identity,
                name if what == "feature" else f"{name} (prediction)",
                "drifted" if drifted else "steady" if "drift.score" in cell else "too few rows",
                _figure(score),
                _figure(cell.get("p", math.nan)),
                _count(cell.get("window.rows", math.nan)),
                _percent(cell.get("missing", math.nan)),
            )
            rows.append((not drifted, -score if score == score else math.inf, row))
    rows.sort(key=lambda entry: entry[:2])
    header = ("model", "feature", "verdict", "score", "p-value", "rows", "missing")
    return _table(
        "Drift",
        header,
        [row for _, _, row in rows],
        texts=3,
        empty="No rows were received yet.",
        ill="drifted",
    )


def _latency(view: _View) -> str:
    rows = []
    for metric, point in view.histograms("model.inference.latency"):
        at = dict(point.attributes)
        names = (_identity(at), at.get("operation", _rest(point.attributes)), at.get("status", ""))
        rows.append((*names, *_spread(point, metric.unit), _slow_trace(point)))
    header = ("model", "operation", "status", "requests", "p50", "p95", "p99", "max", "a slow trace")
    return _table("Latency", header, rows, texts=3, empty="No spans were received yet.")


def _timings(view: _View) -> str:
    names = (f"model.inference.{name}" for name in _TIMINGS)
    rows = []
    for metric, point in view.histograms(*names):
        what = metric.name.removeprefix("model.inference.").replace("_", " ").replace(".", " ")
        at = dict(point.attributes)
        of = at.get("phase", at.get("type", ""))
        rows.append((_identity(at), what, of, *_spread(point, metric.unit)))
    header = ("model", "timing", "of", "requests", "p50", "p95", "p99", "max")
    return _table("Timings within a request", header, rows, texts=3)


def _stages(view: _View) -> str:
    rows: list[Row] = []
    requests = {_operation(at): count for at, count in view.numbers("model.inference.stage.requests")}
    times = list(view.numbers("model.inference.stage.time"))
    whole: dict[tuple[str, str], float] = defaultdict(float)
    for at, seconds in times:
        whole[_operation(at)] += seconds
    for at, seconds in times:
        key = _operation(at)
        count = requests.get(key, 0.0)
        share = seconds / whole[key] if whole[key] else math.nan
        each = _duration(seconds / count) if count else ""
        rows.append((*key, at.get("span", ""), _count(count), each, _percent(share)))
    header = ("model", "operation", "span", "requests", "own time each", "share")
    return _table("Where the time of requests goes", header, rows, texts=3)


def _errors(view: _View) -> str:
    rows = [
        (*_operation(at), at.get("cause", ""), _count(count))
        for at, count in view.numbers("model.inference.errors")
    ]
    return _table("Failed requests", ("model", "operation", "failed first", "requests"), rows, texts=3)


def _logs(view: _View) -> str:
    rows = [
        (_identity(at), at.get("severity", ""), _count(count))
        for at, count in view.numbers("model.log.records")
    ]
    return _table("Logs", ("model", "severity", "records"), rows, texts=2)


def _received(view: _View) -> str:
    columns = ("received", "accepted", "rejected", "folded", "dropped", "pending")
    cells: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for column in columns:
        for at, value in view.numbers(f"tidegauge.{column}"):
            row = cells[at.get("receiver", ""), at.get("signal", "")]
            row[column] = row.get(column, 0.0) + value
    rows = [
        (*key, *(_count(row.get(column, 0.0)) for column in columns)) for key, row in sorted(cells.items())
    ]
    return _table("Received", ("receiver", "signal", *columns), rows, texts=2, empty="Nothing arrived yet.")


def _losses(view: _View) -> str:
    rows = []
    for name in ("rejected", "dropped", "export.dropped"):
        for at, value in view.numbers(f"tidegauge.{name}"):
            if value:
                where = " ".join(at[key] for key in ("receiver", "exporter", "signal") if key in at)
                rows.append((name, where, at.get("reason", ""), _count(value)))
    return _table("Turned away and lost", ("counter", "where", "reason", "items"), rows, texts=3)


def _references(view: _View) -> str:
    rows = []
    for name, metric in view.by_name.items():
        # The reference's counts per bin are for sums over a fleet; a page of them tells nothing.
        if "reference" in name and not name.endswith(".count"):
            for at, value in view.numbers(name):
                rows.append((_identity(at), name, _rest(tuple(at.items())), _value(value, metric.unit)))
    return _table("References", ("model", "metric", "attributes", "value"), rows, texts=3)


def _gpus(view: _View) -> str:
    columns: tuple[str, ...] = (
        "hw.gpu.utilization",
        "hw.gpu.memory.usage",
        "hw.gpu.memory.limit",
        "hw.temperature",
        "hw.power",
    )
    cells: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for column in columns:
        for at, value in view.numbers(column):
            if at.get("hw.gpu.task", "general") == "general":
                row = cells[at.get("hw.name", ""), at.get("hw.id", "")]
                row.setdefault(column, _value(value, view.by_name[column].unit))
    # A lost GPU has no reading but its state, and is the one to look at.
    for at, value in view.numbers("hw.status"):
        if value == 1:
            cells[at.get("hw.name", ""), at.get("hw.id", "")]["state"] = at.get("hw.state", "")
    columns = ("state", *columns)
    rows = [(*key, *(row.get(column, "") for column in columns)) for key, row in sorted(cells.items())]
    header = ("GPU", "id", "state", "busy", "memory", "of", "temperature", "power")
    return _table("GPU", header, rows, texts=3)


def _own(view: _View) -> str:
    shown = {
        f"tidegauge.{name}" for name in ("received", "accepted", "rejected", "folded", "dropped", "pending")
    }
    rows = []
    for name, metric in view.by_name.items():
        if name.startswith("tidegauge.") and name not in shown and "reference" not in name:
            for at, value in view.numbers(name):
                rows.append((name, _rest(tuple(at.items())), _value(value, metric.unit)))
    return _table("The agent itself", ("metric", "attributes", "value"), rows, texts=2)


def _pushed(metrics: Iterable[Metric]) -> str:
    """What senders made: a value, or how many observations there are and their mean."""
    rows = [
        (
            metric.name,
            metric.kind.value.replace("_", " "),
            _all(point.attributes),
            *_summed(metric, point),
        )
        for metric in metrics
        if metric.received
        for point in metric.points
    ]
    header = ("metric", "kind", "attributes", "observations", "value or mean")
    return _table("Pushed by the model server", header, rows, texts=3)


def _table(
    title: str, header: Row, rows: Sequence[Row], *, texts: int, empty: str = "", ill: str = ""
) -> str:
    """A section, or `empty` where there are no rows. Columns from `texts` on are figures; a row stands out
    where its last text is `ill`.
    """
    if not rows:
        return f'<section><h2>{title}</h2><p class="dim">{empty}</p></section>' if empty else ""
    more = f'<p class="dim">and {len(rows) - ROWS} more in /metrics</p>' if len(rows) > ROWS else ""
    body = "".join(
        f"<tr{' class=ill' if ill and row[texts - 1] == ill else ''}>{_cells('td', row, texts)}</tr>"
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


def _quantile(point: ExponentialHistogram, q: float) -> float:
    value = quantile(point.scale, point.offset, point.counts, point.zero_count, q)
    return min(max(value, point.min), point.max)


def _spread(point: ExponentialHistogram, unit: str) -> Row:
    values = (*(_quantile(point, q) for q in (0.5, 0.95, 0.99)), point.max)
    return (_count(point.count), *(_value(value, unit) for value in values))


def _slow_trace(point: ExponentialHistogram) -> str:
    slowest = max(point.exemplars, key=lambda exemplar: exemplar.value, default=None)
    return "" if slowest is None else dict(slowest.attributes).get("trace_id", "")


def _summed(metric: Metric, point: Point) -> Row:
    assert not isinstance(point, Table)  # Snapshot.metrics has none
    # As in names: of a counter a unit of 1 makes no ratio.
    unit = "" if (metric.kind, metric.unit) == (Kind.COUNTER, "1") else metric.unit
    if isinstance(point, Number):
        return "", _value(point.value, unit)
    count = sum(point.counts) if isinstance(point, Histogram) else point.count
    return _count(count), _value(point.sum / count, unit) if count else ""


def _operation(at: dict[str, str]) -> tuple[str, str]:
    return _identity(at), at.get("operation", "")


def _identity(at: dict[str, str]) -> str:
    if at.get("otel_metric_overflow"):
        return "(over the limit)"
    return " ".join(at[key] for key in _IDENTITY if key in at)


def _rest(attributes: Attributes) -> str:
    return _all(tuple(pair for pair in attributes if pair[0] not in _IDENTITY))


def _all(attributes: Attributes) -> str:
    return ", ".join(f"{key}={value}" for key, value in attributes)


def _value(value: float, unit: str) -> str:
    formats = {"By": _size, "s": _duration, "1": _percent, "Cel": "{:.0f} °C".format, "W": "{:.0f} W".format}
    if not math.isfinite(value):
        return str(value)
    return formats[unit](value) if unit in formats else _figure(value)


def _count(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else ""


def _figure(value: float) -> str:
    if value == int(value) if math.isfinite(value) else False:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value == value else ""


def _percent(value: float) -> str:
    return f"{value:.1%}" if math.isfinite(value) else ""


def _size(value: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def _duration(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
