"""Reads the agent's snapshot, as served at /api/v1/snapshot, and shows it as tables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

SHOWN_FEATURES = 8


class Latency(NamedTuple):
    """Seconds, by operation and status."""

    operation: str
    status: str
    requests: int
    p50_s: float
    p95_s: float
    p99_s: float


class Drift(NamedTuple):
    """One feature's evidence: its distance from the reference, and how surprising that is."""

    rows: int
    score: float
    p_value: float
    drifted: bool


class Stage(NamedTuple):
    """What requests of an operation spent in their spans of one name."""

    operation: str
    span: str
    seconds: float
    requests: int


class Snapshot:
    """Lookups in one snapshot of the agent, for one model."""

    def __init__(self, snapshot: Mapping[str, Any], model: str) -> None:
        self._points: dict[str, list[tuple[dict[str, str], dict[str, Any]]]] = {}
        for metric in snapshot["metrics"]:
            points = [(dict(point["attributes"]), point) for point in metric["points"]]
            self._points[metric["name"]] = [
                (labels, point) for labels, point in points if self._of(labels, model)
            ]

    @staticmethod
    def _of(labels: Mapping[str, str], model: str) -> bool:
        return labels.get("model", model) == model

    def total(self, name: str, **wanted: str) -> int:
        """The sum of a counter's series that carry all of `wanted`."""
        return sum(int(value) for _, value in self._numbers(name, wanted))

    def stages(self) -> list[Stage]:
        """What each operation's time goes to, most of it first."""
        requests = {
            labels["operation"]: int(value)
            for labels, value in self._numbers("model.inference.stage.requests", {})
        }
        found = [
            Stage(labels["operation"], labels["span"], seconds, requests[labels["operation"]])
            for labels, seconds in self._numbers("model.inference.stage.time", {})
        ]
        return sorted(found, key=lambda stage: (stage.operation, -stage.seconds))

    def log_records(self) -> dict[str, int]:
        """How many the server wrote, by severity."""
        return {labels["severity"]: int(n) for labels, n in self._numbers("model.log.records", {})}

    def share_below(self, name: str, bound: float) -> float:
        """Of a pushed histogram's values, those up to one of its bounds; NaN where it was not pushed."""
        for _, point in self._points.get(name, ()):
            below = point["bounds"].index(bound) + 1
            return float(sum(point["counts"][:below]) / sum(point["counts"]))
        return math.nan

    def features(self) -> dict[str, Drift]:
        """The features that have an estimate."""
        return self._drifts("feature", "feature")

    def outputs(self) -> dict[str, Drift]:
        """The model's outputs that have one."""
        return self._drifts("prediction", "output")

    def _drifts(self, family: str, key: str) -> dict[str, Drift]:
        rows, scores, p_values, drifted = (
            {labels[key]: value for labels, value in self._numbers(f"{family}.{name}", wanted)}
            for name, wanted in (
                ("window.rows", {}),
                ("drift.score", {}),
                ("drift.p_value", {"statistic": "psi"}),
                ("drifted", {}),
            )
        )
        return {
            name: Drift(int(rows[name]), score, p_values[name], drifted[name] == 1)
            for name, score in scores.items()
        }

    def _numbers(self, name: str, wanted: Mapping[str, str]) -> Iterator[tuple[dict[str, str], float]]:
        for labels, point in self._points.get(name, ()):
            if wanted.items() <= labels.items():
                yield labels, point["value"]

    def latencies(self) -> Iterator[Latency]:
        """One for each operation and status seen."""
        points = self._points.get("model.inference.latency", [])
        for labels, histogram in sorted(
            points, key=lambda point: (point[0]["operation"], point[0]["status"])
        ):
            counts = histogram["counts"]
            requests = histogram["zero_count"] + sum(counts)
            quantiles = (quantile(histogram, q) for q in (0.5, 0.95, 0.99))
            yield Latency(labels["operation"], labels["status"], requests, *quantiles)


def quantile(histogram: Mapping[str, Any], q: float) -> float:
    """Of a base-2 exponential histogram: the geometric middle of the bucket that holds the quantile."""
    rank = q * (histogram["zero_count"] + sum(histogram["counts"]) - 1)
    seen = histogram["zero_count"]
    if rank < seen:
        return 0.0
    for index, count in enumerate(histogram["counts"], histogram["offset"]):
        seen += count
        if rank < seen:
            return float(2.0 ** ((index + 0.5) * 2.0 ** -histogram["scale"]))
    return math.nan


def latency_table(latencies: Iterable[Latency]) -> Table:
    table = Table(
        title="Latency, from the server's own traces", title_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("operation")
    table.add_column("status")
    for column in ("requests", "p50", "p95", "p99"):
        table.add_column(column, justify="right")
    for one in latencies:
        times = (f"{seconds * 1e3:.2f} ms" for seconds in (one.p50_s, one.p95_s, one.p99_s))
        table.add_row(one.operation, one.status, f"{one.requests:,}", *times)
    return table


def stage_table(stages: Iterable[Stage]) -> Table:
    title = "What the requests' time goes to, without what a span's children took"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("operation")
    table.add_column("span")
    for column in ("per request", "share"):
        table.add_column(column, justify="right")
    for operation, group in itertools.groupby(stages, key=lambda stage: stage.operation):
        spans = list(group)
        whole_s = sum(stage.seconds for stage in spans)
        for stage in spans:
            each = f"{stage.seconds / stage.requests * 1e3:.2f} ms"
            table.add_row(operation, stage.span, each, f"{stage.seconds / whole_s:.0%}")
        table.add_section()
    return table


def pushed_lines(snapshot: Snapshot) -> list[str]:
    """What the server counts itself, and its log."""
    severities = ", ".join(f"{count:,} {severity}" for severity, count in snapshot.log_records().items())
    return [
        f" screening.biopsies     {snapshot.total('screening.biopsies'):,}",
        f" screening.confidence   below 0.9 for {snapshot.share_below('screening.confidence', 0.9):.0%}",
        f" log records            {severities}",
    ]


def drift_table(before: Snapshot, after: Snapshot, moved: str) -> Table:
    """The moved feature, those that score highest beside it, and the model's outputs."""
    first, last = before.features(), after.features()
    rows = [max((drift.rows for drift in drifts.values()), default=0) for drifts in (first, last)]
    title = f"Drift from the reference: {rows[0]:,} rows before {moved} moved, {rows[1]:,} after"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("\nfeature", no_wrap=True)
    for phase in ("before", "after"):
        table.add_column(f"{phase}\nPSI", justify="right")
        table.add_column("\np-value", justify="right")
        table.add_column("\ndrift")
    order = sorted(last, key=lambda feature: (feature != moved, -last[feature].score))
    for feature in order[:SHOWN_FEATURES]:
        style = "bold" if feature == moved else ""
        table.add_row(feature, *_cells(first.get(feature)), *_cells(last[feature]), style=style)
    if rest := order[SHOWN_FEATURES:]:
        table.add_row(
            f"{len(rest)} more, the highest", *_highest(first, rest), *_highest(last, rest), style="dim"
        )
    table.add_section()
    for output, drift in after.outputs().items():
        table.add_row(f"the model's {output}", *_cells(before.outputs().get(output)), *_cells(drift))
    return table


def _highest(drifts: Mapping[str, Drift], features: Iterable[str]) -> tuple[str, str, str]:
    found = [drifts[feature] for feature in features if feature in drifts]
    return _cells(max(found, key=lambda drift: (drift.drifted, drift.score), default=None))


def _cells(drift: Drift | None) -> tuple[str, str, str]:
    if drift is None:
        return "", "", "unknown"
    return f"{drift.score:.4f}", f"{drift.p_value:.1g}", "[bold red]yes" if drift.drifted else "[green]no"


def missing(snapshot: Snapshot) -> list[str]:
    """What the server's own spans, metrics and log should have led to and did not."""
    seen = {stage.span for stage in snapshot.stages()}
    found = [f'no request has a span "{span}"' for span in ("features", "model") if span not in seen]
    if not snapshot.total("screening.biopsies"):
        found.append("no biopsy was counted")
    if not snapshot.log_records():
        found.append("no log record was received")
    return found


def misses(
    before: Mapping[str, Drift], after: Mapping[str, Drift], features: Iterable[str], moved: str
) -> list[str]:
    """What the agent got wrong: alarms missed, false ones, and features without an estimate."""
    found = []
    for feature in features:
        for phase, drifts in (("before", before), ("after", after)):
            expected = feature == moved and phase == "after"
            if feature not in drifts:
                found.append(f"{feature} has no estimate {phase} the move")
            elif drifts[feature].drifted != expected:
                found.append(f"{feature} was {'not ' if expected else ''}flagged {phase} the move")
    return found
