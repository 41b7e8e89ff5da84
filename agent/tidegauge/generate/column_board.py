"""The dashboards of a feature and of an output: why it is drifted, or is not."""

from __future__ import annotations

from typing import Protocol

from tidegauge.generate import marks
from tidegauge.generate.dashboard import Dashboard, Row, Variable, chosen
from tidegauge.generate.panel import Panel, Query
from tidegauge.generate.plan import PROPER, Plan

_BY = "by (bin)"
_CURRENT = 'reference=""'
_SCORE = 'statistic=~"psi|mmd"'


class _Selector(Protocol):
    """Selects a metric of the column, by its name without the family's."""

    def __call__(self, metric: str, more: str = "") -> str: ...


def features(plan: Plan) -> Dashboard:
    """Of features."""
    named = (*plan.features, *(name for one in plan.models for name in one.features))
    return _board(plan, "feature", "feature", named)


def outputs(plan: Plan) -> Dashboard:
    """Of predictions and scores."""
    return _board(plan, "prediction", "output", tuple(name for one in plan.models for name in one.outputs))


def _board(plan: Plan, family: str, column: str, named: tuple[str, ...]) -> Dashboard:
    def of(metric: str, more: str = "") -> str:
        return chosen(f"{family}_{metric}", "model", "version", column, more=more)

    variable = Variable(
        name=column,
        series=f'{family}_window_rows{{model=~"$model",version=~"$version"}}',
        several=False,
        values=tuple(dict.fromkeys(named)),
    )
    # An alert on the whole model has no such label.
    alarms = f'model=~"$model",version=~"$version",{column}=~"|${column}"'
    rows = [
        Row("Drift", _drift(plan, of)),
        Row("Distribution", _distribution(of)),
        Row("Values", _values(of)),
    ]
    if family == "prediction":
        mean = Panel(title="Mean", queries=(Query(of("mean"), "{{instance}}"),), width=12)
        found = f"sum by (detector, of) (increase({of('changes_total')}[5m]))"
        changes = Panel(title="Changes found", queries=(Query(found, "{{detector}}, {{of}}"),), width=12)
        rows.append(Row("Predictions", (mean, changes)))
    return Dashboard(
        uid=f"tidegauge-{column}",
        title=f"Tidegauge: {column}",
        about=f"One {column} of a model: statistics with what is usual without drift, bins, data quality.",
        variables=(*marks.models(plan), variable),
        annotations=(marks.references(), marks.alarms(alarms)),
        rows=tuple(rows),
    )


def _drift(plan: Plan, of: _Selector) -> tuple[Panel, ...]:
    return (
        Panel(
            title="Score, by window and baseline",
            queries=(
                Query(of("drift_score"), "{{window}} {{baseline}} {{reference}} {{instance}}"),
                Query(of("drift_null_quantile", f"{_SCORE},{PROPER}"), "usual {{instance}}"),
            ),
            limit=plan.psi,
            about="What is usual: 95 of 100 windows of this size stay below it without drift.",
        ),
        Panel(
            title="p-value",
            queries=(Query(of("drift_p_value", f"{_SCORE},{PROPER}"), "{{instance}}"),),
            at_most=1,
        ),
        Panel(
            title="Evidence over time",
            queries=(
                Query(of("drift_evidence_ratio"), "{{reference}} {{instance}}"),
                Query(of("drift_alarm"), "alarm {{reference}} {{instance}}"),
            ),
            unit="percentunit",
            limit=1,
        ),
        Panel(
            title="Every statistic",
            queries=(
                Query(f"max by (statistic) ({of('drift_statistic', PROPER)})"),
                Query(f"max by (statistic) ({of('drift_null_quantile', PROPER)})"),
                Query(f"min by (statistic) ({of('drift_p_value', PROPER)})"),
            ),
            kind="table",
            width=12,
            columns=(
                ("statistic", "Statistic"),
                ("Value #A", "Value"),
                ("Value #B", "Usual, 95 of 100"),
                ("Value #C", "p-value"),
            ),
        ),
        Panel(
            title="Verdict, by window and baseline",
            queries=(
                Query(
                    f"max by (window, baseline) ({of('drifted', _CURRENT)})",
                    "drifted {{window}} {{baseline}}",
                ),
            ),
            kind="state-timeline",
            width=12,
            limit=1,
        ),
    )


def _distribution(of: _Selector) -> tuple[Panel, ...]:
    window, reference = of("window_count"), of("reference_count")
    shares = (
        f"sum {_BY} ({window}) / on () group_left () sum({window})",
        f"max {_BY} ({reference}) / on () group_left () sum(max {_BY} ({reference}))",
    )
    moved = f"topk(10, {shares[0]} - {shares[1]})"
    return (
        Panel(
            title="Share of rows in each bin: window and reference",
            queries=tuple(Query(share) for share in shares),
            kind="barchart",
            unit="percentunit",
            width=16,
            height=10,
            columns=(("bin", "Bin"), ("Value #A", "Window"), ("Value #B", "Reference")),
            about="Of all replicas. Choose one model and version.",
        ),
        Panel(
            title="Bins that gained most",
            queries=(Query(moved, "{{bin}}"),),
            unit="percentunit",
            height=10,
        ),
    )


def _values(of: _Selector) -> tuple[Panel, ...]:
    shares = ("missing", "nan", "infinite", "out_of_range", "unseen")
    return (
        Panel(title="Rows in the window", queries=(Query(of("window_rows"), "{{instance}}"),)),
        Panel(
            title="Values that are not as they should be",
            queries=tuple(
                Query(of(f"{name}_ratio"), f"{name.replace('_', ' ')} {{{{instance}}}}") for name in shares
            ),
            unit="percentunit",
        ),
        Panel(
            title="Constant, vanished, not judged, skipped",
            queries=(
                Query(f"max({of('constant')})", "constant"),
                Query(f"max({of('vanished')})", "vanished"),
                Query(f"max by (reason) ({of('drift_unjudged', PROPER)})", "not judged: {{reason}}"),
                Query(f"max by (reason) ({of('skipped')})", "skipped: {{reason}}"),
            ),
            kind="state-timeline",
            limit=1,
        ),
    )
