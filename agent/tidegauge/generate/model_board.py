"""The dashboard of a model: its requests, where their time goes, its drift and its data."""

from __future__ import annotations

from tidegauge.generate import drift_rows, marks
from tidegauge.generate.dashboard import Dashboard, Row, Variable, link
from tidegauge.generate.marks import RATE, of_model
from tidegauge.generate.panel import Panel, Query
from tidegauge.generate.plan import PROPER, Plan

_CHOSEN = 'operation=~"$operation"'
_COUNT = of_model("model_inference_latency_seconds_count", _CHOSEN)
_BUCKETS = of_model("model_inference_latency_seconds_bucket", _CHOSEN)


def board(plan: Plan) -> Dashboard:
    """One dashboard for all models: `model` chooses."""
    operation = Variable(
        name="operation", series=of_model("model_inference_latency_seconds_count"), label="operation"
    )
    rows = (
        Row("Requests", _requests(plan)),
        Row("Health", _health()),
        Row("Where the time goes", _time()),
        Row("Timings that the server tells", _timings()),
        Row("Drift", _drift(plan)),
        *drift_rows.rows(),
        Row("Data", _quality()),
    )
    return Dashboard(
        uid=marks.MODEL,
        title="Tidegauge: model",
        about="Requests, stages, drift and data quality of a model and version.",
        variables=(*marks.models(plan), operation),
        annotations=(marks.references(), marks.alarms('model=~"$model",version=~"$version"')),
        rows=rows,
    )


def _requests(plan: Plan) -> tuple[Panel, ...]:
    rate = f"sum by (operation, status) (rate({_COUNT}[{RATE}]))"
    quantiles = tuple(
        Query(f"histogram_quantile({q}, sum by (le) (rate({_BUCKETS}[{RATE}])))", name)
        for q, name in ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"))
    )
    return (
        Panel(
            title="Requests",
            queries=(Query(rate, "{{operation}} {{status}}"),),
            unit="reqps",
            stacked=True,
        ),
        Panel(title="Latency", queries=quantiles, unit="s", limit=plan.latency_s),
        Panel(
            title="Latency, all of it",
            queries=(Query(f"sum by (le) (rate({_BUCKETS}[{RATE}]))", "{{le}}"),),
            kind="heatmap",
            unit="reqps",
        ),
    )


def _health() -> tuple[Panel, ...]:
    return (
        Panel(
            title="Serving Health Index, and its parts",
            queries=(
                Query(of_model("model_serving_health_ratio"), "index {{instance}}"),
                Query(of_model("model_serving_health_part_ratio"), "{{part}} {{instance}}"),
            ),
            unit="percentunit",
            at_most=1,
            width=12,
        ),
        Panel(
            title="First cause: data, model or machine",
            queries=(Query(of_model("model_first_cause_ratio"), "{{cause}}: {{evidence}} {{instance}}"),),
            unit="percentunit",
            at_most=1,
            width=12,
            about="While there is a symptom: how strong the evidence is.",
        ),
        Panel(
            title="What goes before latency, errors and drift",
            queries=(
                Query(f"topk(10, abs({of_model('signal_lagged_correlation')}))", "{{signal}} → {{symptom}}"),
            ),
            at_most=1,
            width=24,
            about="Rank correlations over health.window; signal_lag_seconds has by how much.",
        ),
    )


def _time() -> tuple[Panel, ...]:
    spent = of_model("model_inference_stage_time_seconds_total", _CHOSEN)
    requests = of_model("model_inference_stage_requests_total", _CHOSEN)
    cold = of_model("model_inference_stage_cold_requests_total", _CHOSEN)
    failed = of_model("model_inference_errors_total", _CHOSEN)
    each = f"sum by (span) (rate({spent}[{RATE}])) / on () group_left () sum(rate({requests}[{RATE}]))"
    return (
        Panel(
            title="Seconds per request, by span",
            queries=(Query(each, "{{span}}"),),
            unit="s",
            stacked=True,
            about="A span's own time, without its children's.",
        ),
        Panel(
            title="Failures, by the span that failed first",
            queries=(Query(f"sum by (cause) (rate({failed}[{RATE}]))", "{{cause}}"),),
            unit="reqps",
            stacked=True,
        ),
        Panel(
            title="Share of cold starts",
            queries=(Query(f"sum(rate({cold}[{RATE}])) / sum(rate({requests}[{RATE}]))", "cold"),),
            unit="percentunit",
        ),
    )


def _timings() -> tuple[Panel, ...]:
    def p99(metric: str, *by: str) -> str:
        series = of_model(f"model_inference_{metric}_bucket")
        return f"histogram_quantile(0.99, sum by ({', '.join((*by, 'le'))}) (rate({series}[{RATE}])))"

    mean = "sum by (phase) (rate({}[{}])) / sum by (phase) (rate({}[{}]))"
    total, count = (of_model(f"model_inference_phase_duration_seconds_{part}") for part in ("sum", "count"))
    tokens = f"sum by (type) (rate({of_model('model_inference_tokens_sum')}[{RATE}]))"
    return (
        Panel(
            title="Tokens: time to the first, and for each after it (p99)",
            queries=(
                Query(p99("time_to_first_token_seconds"), "to the first"),
                Query(p99("time_per_output_token_seconds"), "each"),
            ),
            unit="s",
        ),
        Panel(
            title="Phases, mean",
            queries=(Query(mean.format(total, RATE, count, RATE), "{{phase}}"),),
            unit="s",
            stacked=True,
        ),
        Panel(title="Tokens per second", queries=(Query(tokens, "{{type}}"),)),
    )


def _drift(plan: Plan) -> tuple[Panel, ...]:
    feature = link(marks.FEATURE, model="model", version="version", feature="feature")
    output = link(marks.OUTPUT, model="model", version="version", output="output")
    return (
        Panel(
            title="In alarm",
            queries=(
                Query(f"max by (feature) ({of_model('feature_drift_alarm')})", "{{feature}}"),
                Query(f"max by (output) ({of_model('prediction_drift_alarm')})", "{{output}}"),
            ),
            kind="state-timeline",
            width=12,
            limit=1,
            about="Evidence over time, made to page: docs/metrics.md, Alarms.",
        ),
        Panel(
            title="Evidence",
            queries=(
                Query(f"topk(10, {of_model('feature_drift_evidence_ratio')})", "{{feature}}"),
                Query(f"topk(5, {of_model('prediction_drift_evidence_ratio')})", "{{output}}"),
            ),
            unit="percentunit",
            width=12,
            limit=1,
            about="As a share of what makes an alarm.",
        ),
        Panel(
            title="Features: score",
            queries=(Query(f"topk(10, {of_model('feature_drift_score', PROPER)})", "{{feature}}"),),
            limit=plan.psi,
            link=feature,
        ),
        Panel(
            title="Outputs: score",
            queries=(Query(of_model("prediction_drift_score", PROPER), "{{output}}"),),
            limit=plan.psi,
            link=output,
        ),
        Panel(
            title="Mean of predictions, and the day before",
            queries=(
                Query(of_model("model_output:prediction_mean:avg1h"), "{{output}}"),
                Query(
                    f"{of_model('model_output:prediction_mean:avg1h')} offset 1d", "{{output}}, day before"
                ),
            ),
            about="Of the last hour, over replicas by their rows: recorded by models.yaml.",
            link=output,
        ),
    )


def _quality() -> tuple[Panel, ...]:
    feature = link(marks.FEATURE, model="model", version="version", feature="feature")
    rows = f"max by (model, version) ({of_model('feature_window_rows')})"
    missing = f"topk(10, {of_model('feature_missing_ratio')})"
    log = f"sum by (severity) (rate({of_model('model_log_records_total')}[{RATE}]))"
    return (
        Panel(
            title="Columns that violate a check",
            queries=(Query(f"max by (check) ({of_model('model_data_quality_violations')})", "{{check}}"),),
            limit=1,
        ),
        Panel(title="Missing", queries=(Query(missing, "{{feature}}"),), unit="percentunit", link=feature),
        Panel(
            title="Rows in the window, and seconds since the latest",
            queries=(
                Query(rows, "rows"),
                Query(f"min by (model, version) ({of_model('records_age_seconds')})", "seconds"),
            ),
        ),
        Panel(
            title="Schemas, ids and times",
            queries=(
                Query(f"sum(increase({of_model('model_schema_changes_total')}[5m]))", "new schemas"),
                Query(f"sum(rate({of_model('prediction_id_duplicates_total')}[{RATE}]))", "repeated ids/s"),
                Query(
                    f"sum by (reason) (rate({of_model('records_left_out_total')}[{RATE}]))", "{{reason}}/s"
                ),
            ),
            width=12,
        ),
        Panel(title="Log records", queries=(Query(log, "{{severity}}"),), width=12, stacked=True),
    )
