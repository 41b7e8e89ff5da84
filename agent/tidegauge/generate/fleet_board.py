"""The dashboard of everything: models, their objectives, their drift over all replicas, and the agents."""

from __future__ import annotations

from tidegauge.generate import marks
from tidegauge.generate.dashboard import Dashboard, Row, link
from tidegauge.generate.marks import RATE, of_model
from tidegauge.generate.panel import Panel, Query
from tidegauge.generate.plan import PROPER, Plan, number

BY = "model, version"
_COUNT = of_model("model_inference_latency_seconds_count")
_BUCKETS = of_model("model_inference_latency_seconds_bucket")
_ERRORS = f"""\
(sum by ({BY}) (rate({of_model("model_inference_latency_seconds_count", 'status="error"')}[{RATE}]))
  or 0 * sum by ({BY}) (rate({_COUNT}[{RATE}])))
/ sum by ({BY}) (rate({_COUNT}[{RATE}]))"""
_P99 = f"histogram_quantile(0.99, sum by ({BY}, le) (rate({_BUCKETS}[{RATE}])))"
_REQUESTS = f"sum by ({BY}) (rate({_COUNT}[{RATE}]))"
_NAMED = "{{model}} {{version}}"
_CLOSER = link(marks.MODEL, model="model", version="version")


def board(plan: Plan) -> Dashboard:
    """It needs the recorded rules of slo.yaml and fleet-drift.yaml for objectives and drift."""
    rows = (
        Row("Now", _now()),
        Row("Models", (_table(), *_traffic())),
        Row("Objectives", tuple(_objectives(plan))),
        Row("Drift over all replicas", tuple(_drift(plan))),
        Row("Agents", _agents()),
    )
    return Dashboard(
        uid=marks.FLEET,
        title="Tidegauge: fleet",
        about="All models and agents. Objectives and drift over replicas come from the rule files.",
        variables=marks.models(plan),
        annotations=(marks.references(), marks.alarms()),
        rows=rows,
    )


def _now() -> tuple[Panel, ...]:
    asked = (
        ("Agents", "count(tidegauge_build_info)", "short", None),
        ("Models", f"count(count by ({BY}) ({of_model('reference_ready')}))", "short", None),
        ("Requests", f"sum(rate({_COUNT}[{RATE}]))", "reqps", None),
        ("Models in alarm", f"sum(max by ({BY}) ({of_model('model_drift_alarm')}))", "short", 1.0),
        (
            "Columns of bad quality",
            f"sum(max by ({BY}, check) ({of_model('model_data_quality_violations')}))",
            "short",
            1.0,
        ),
        ("Alerts firing", 'count(ALERTS{alertstate="firing"}) or vector(0)', "short", 1.0),
    )
    return tuple(
        Panel(title=title, queries=(Query(expr),), kind="stat", unit=unit, width=4, height=4, limit=limit)
        for title, expr, unit, limit in asked
    )


def _table() -> Panel:
    queries = (
        _REQUESTS,
        _ERRORS,
        _P99,
        f"max by ({BY}) ({of_model('feature_drift_score', PROPER)})",
        f"max by ({BY}) ({of_model('model_drift_alarm')})",
        f"sum by ({BY}) (max by ({BY}, check) ({of_model('model_data_quality_violations')}))",
    )
    titles = ("Requests/s", "Errors", "p99, s", "Worst drift", "Alarm", "Bad columns")
    columns = (("model", "Model"), ("version", "Version"))
    return Panel(
        title="Models",
        queries=tuple(Query(expr, now=True) for expr in queries),
        kind="table",
        width=24,
        columns=columns
        + tuple((f"Value #{ref}", title) for ref, title in zip("ABCDEF", titles, strict=True)),
        link=f"/d/{marks.MODEL}?${{__url_time_range}}&var-model=${{__data.fields.Model}}",
    )


def _traffic() -> tuple[Panel, ...]:
    return (
        Panel(
            title="Requests", queries=(Query(_REQUESTS, _NAMED),), unit="reqps", link=_CLOSER, stacked=True
        ),
        Panel(title="Share of errors", queries=(Query(_ERRORS, _NAMED),), unit="percentunit", link=_CLOSER),
        Panel(title="p99", queries=(Query(_P99, _NAMED),), unit="s", link=_CLOSER),
    )


def _objectives(plan: Plan) -> tuple[Panel, ...]:
    budgets = (
        ("Errors", "inference_errors", plan.error_objective),
        ("Slow answers", "inference_slow", plan.latency_objective),
    )
    return tuple(
        Panel(
            title=f"{title}, share in the last hour and in six",
            queries=tuple(
                Query(of_model(f"model:{name}:ratio_rate{window}"), f"{_NAMED} {window}")
                for window in ("1h", "6h")
            ),
            unit="percentunit",
            width=12,
            limit=1 - objective,
            about=f"The line is the objective of {number(100 * objective)} %.",
            link=_CLOSER,
        )
        for title, name, objective in budgets
    )


def _drift(plan: Plan) -> tuple[Panel, ...]:
    kinds = (("feature", "Features", marks.FEATURE), ("output", "Outputs", marks.OUTPUT))
    return tuple(
        Panel(
            title=f"{title}: PSI",
            queries=(Query(f"topk(10, {of_model(f'model_{kind}:psi')})", f"{_NAMED} {{{{{kind}}}}}"),),
            width=12,
            limit=plan.psi,
            about="Of the counts of all replicas, added up.",
            link=link(uid, model="model", version="version", **{kind: kind}),
        )
        for kind, title, uid in kinds
    )


def _agents() -> tuple[Panel, ...]:
    closer = link(marks.AGENT, instance="instance")
    received = f"sum by (instance) (rate(tidegauge_received_total[{RATE}]))"
    lost = f"""\
sum by (instance) (rate(tidegauge_rejected_total[{RATE}]))
  or sum by (instance) (rate(tidegauge_dropped_total[{RATE}]))"""
    return (
        Panel(title="Items received", queries=(Query(received, "{{instance}}"),), unit="cps", link=closer),
        Panel(
            title="Items refused or left out", queries=(Query(lost, "{{instance}}"),), unit="cps", link=closer
        ),
        Panel(
            title="Memory",
            queries=(Query("tidegauge_memory_usage_bytes", "{{instance}}"),),
            unit="bytes",
            link=closer,
        ),
    )
