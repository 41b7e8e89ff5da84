"""The status page: one self-contained HTML document made from a snapshot."""

from __future__ import annotations

import html
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence

from tidegauge import __version__
from tidegauge.exporters.model_sections import drift, health, slices, together
from tidegauge.exporters.section import (
    Row,
    count_text,
    duration_text,
    percent_text,
    section,
    time_text,
    value_text,
)
from tidegauge.exporters.view import View, all_text, identity_text, rest_text
from tidegauge.metric import ExponentialHistogram, Histogram, Kind, Metric, Number, Point, Table
from tidegauge.snapshot import Snapshot
from tidegauge.stats.exponential import quantile

_TIMINGS = ("time_to_first_token", "time_per_output_token", "phase.duration", "tokens")
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


def page(snapshot: Snapshot, reasons: Sequence[str], refresh_s: int = 5) -> str:
    """The document. `reasons` says why the agent is not well; it is well where there are none."""
    view = View(snapshot.metrics)
    age_s = max(0.0, (time.time_ns() - snapshot.time_ns) / 1e9)
    verdict = (
        f'<span class="ill">not well: {html.escape("; ".join(reasons))}</span>'
        if reasons
        else '<span class="well">well</span>'
    )
    sections = "".join(
        (
            health(view),
            drift(view),
            together(view),
            slices(view),
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


def _latency(view: View) -> str:
    rows = []
    for metric, point in view.histograms("model.inference.latency"):
        at = dict(point.attributes)
        names = (identity_text(at), at.get("operation", rest_text(point.attributes)), at.get("status", ""))
        rows.append((*names, *_spread(point, metric.unit), _slow_trace(point)))
    header = ("model", "operation", "status", "requests", "p50", "p95", "p99", "max", "a slow trace")
    return section("Latency", header, rows, texts=3, empty="No spans were received yet.")


def _timings(view: View) -> str:
    names = (f"model.inference.{name}" for name in _TIMINGS)
    rows = []
    for metric, point in view.histograms(*names):
        what = metric.name.removeprefix("model.inference.").replace("_", " ").replace(".", " ")
        at = dict(point.attributes)
        of = at.get("phase", at.get("type", ""))
        rows.append((identity_text(at), what, of, *_spread(point, metric.unit)))
    header = ("model", "timing", "of", "requests", "p50", "p95", "p99", "max")
    return section("Timings within a request", header, rows, texts=3)


def _stages(view: View) -> str:
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
        each = duration_text(seconds / count) if count else ""
        rows.append((*key, at.get("span", ""), count_text(count), each, percent_text(share)))
    header = ("model", "operation", "span", "requests", "own time each", "share")
    return section("Where the time of requests goes", header, rows, texts=3)


def _errors(view: View) -> str:
    rows = [
        (*_operation(at), at.get("cause", ""), count_text(count))
        for at, count in view.numbers("model.inference.errors")
    ]
    return section("Failed requests", ("model", "operation", "failed first", "requests"), rows, texts=3)


def _logs(view: View) -> str:
    rows = [
        (identity_text(at), at.get("severity", ""), count_text(count))
        for at, count in view.numbers("model.log.records")
    ]
    return section("Logs", ("model", "severity", "records"), rows, texts=2)


def _received(view: View) -> str:
    columns = ("received", "accepted", "rejected", "folded", "dropped", "pending")
    cells: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for column in columns:
        for at, value in view.numbers(f"tidegauge.{column}"):
            row = cells[at.get("receiver", ""), at.get("signal", "")]
            row[column] = row.get(column, 0.0) + value
    rows = [
        (*key, *(count_text(row.get(column, 0.0)) for column in columns))
        for key, row in sorted(cells.items())
    ]
    return section("Received", ("receiver", "signal", *columns), rows, texts=2, empty="Nothing arrived yet.")


def _losses(view: View) -> str:
    rows = []
    for name in ("rejected", "dropped", "export.dropped"):
        for at, value in view.numbers(f"tidegauge.{name}"):
            if value:
                where = " ".join(at[key] for key in ("receiver", "exporter", "signal") if key in at)
                rows.append((name, where, at.get("reason", ""), count_text(value)))
    return section("Turned away and lost", ("counter", "where", "reason", "items"), rows, texts=3)


def _references(view: View) -> str:
    rows = []
    for name, metric in view.by_name.items():
        # The reference's counts per bin are for sums over a fleet; a page of them tells nothing.
        if "reference" in name and not name.endswith(".count"):
            for at, value in view.numbers(name):
                rows.append(
                    (identity_text(at), name, rest_text(tuple(at.items())), value_text(value, metric.unit))
                )
    return section("References", ("model", "metric", "attributes", "value"), rows, texts=3)


def _gpus(view: View) -> str:
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
                row.setdefault(column, value_text(value, view.by_name[column].unit))
    # A lost GPU has no reading but its state, and is the one to look at.
    for at, value in view.numbers("hw.status"):
        if value == 1:
            cells[at.get("hw.name", ""), at.get("hw.id", "")]["state"] = at.get("hw.state", "")
    columns = ("state", *columns)
    rows = [(*key, *(row.get(column, "") for column in columns)) for key, row in sorted(cells.items())]
    header = ("GPU", "id", "state", "busy", "memory", "of", "temperature", "power")
    return section("GPU", header, rows, texts=3)


def _own(view: View) -> str:
    shown = {
        f"tidegauge.{name}" for name in ("received", "accepted", "rejected", "folded", "dropped", "pending")
    }
    rows = []
    for name, metric in view.by_name.items():
        if name.startswith("tidegauge.") and name not in shown and "reference" not in name:
            is_time = name.endswith((".time", "timestamp"))
            for at, value in view.numbers(name):
                text = time_text(value) if is_time else value_text(value, metric.unit)
                rows.append((name, rest_text(tuple(at.items())), text))
    return section("The agent itself", ("metric", "attributes", "value"), rows, texts=2)


def _pushed(metrics: Iterable[Metric]) -> str:
    """What senders made: a value, or how many observations there are and their mean."""
    rows = [
        (
            metric.name,
            metric.kind.value.replace("_", " "),
            all_text(point.attributes),
            *_summed(metric, point),
        )
        for metric in metrics
        if metric.received
        for point in metric.points
    ]
    header = ("metric", "kind", "attributes", "observations", "value or mean")
    return section("Pushed by the model server", header, rows, texts=3)


def _quantile(point: ExponentialHistogram, q: float) -> float:
    value = quantile(point.scale, point.offset, point.counts, point.zero_count, q)
    return min(max(value, point.min), point.max)


def _spread(point: ExponentialHistogram, unit: str) -> Row:
    values = (*(_quantile(point, q) for q in (0.5, 0.95, 0.99)), point.max)
    return (count_text(point.count), *(value_text(value, unit) for value in values))


def _slow_trace(point: ExponentialHistogram) -> str:
    slowest = max(point.exemplars, key=lambda exemplar: exemplar.value, default=None)
    return "" if slowest is None else dict(slowest.attributes).get("trace_id", "")


def _summed(metric: Metric, point: Point) -> Row:
    assert not isinstance(point, Table)  # Snapshot.metrics has none
    # As in names: of a counter a unit of 1 makes no ratio.
    unit = "" if (metric.kind, metric.unit) == (Kind.COUNTER, "1") else metric.unit
    if isinstance(point, Number):
        return "", value_text(point.value, unit)
    count = sum(point.counts) if isinstance(point, Histogram) else point.count
    return count_text(count), value_text(point.sum / count, unit) if count else ""


def _operation(at: dict[str, str]) -> tuple[str, str]:
    return identity_text(at), at.get("operation", "")
