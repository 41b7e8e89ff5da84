"""Rules for the owners of models: drift, what is predicted, data quality, how rows come."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from tidegauge.generate.plan import BESIDE, PROPER, Plan, Watched, number
from tidegauge.generate.rule import Alert, Group, Record, Rule, RuleFile, matchers, rising

HEAD = """\
Alerts on what the agent says of models. docs/runbooks has a page on each. They are made for a scrape every 15 s,
and good for up to one a minute. `promtool test rules models.test.yaml` tests them."""

WHO = "model, version, stage, data_source"
_NAMED = "{{ $labels.model }} {{ $labels.version }}"

_DRIFT: tuple[Rule, ...] = (
    Record(
        name="model:feature_drift_score:max",
        expr=f"max by ({WHO}) (feature_drift_score{{{PROPER}}})",
        note="Of drift.window against the reference. Of replicas the worst one: fleet-drift.yaml has the drift of them all.",
    ),
    Record(
        name="model:features_drifted:count",
        expr=f"count by ({WHO}) (max by ({WHO}, feature) (feature_drifted{{{PROPER}}}) == 1)",
    ),
    Alert(
        name="ModelDrifted",
        expr=f"max by ({WHO}) (model_drift_alarm) == 1",
        severity="critical",
        summary=f"{_NAMED}: what it sees or says has drifted",
    ),
    Alert(
        name="FeatureDrifted",
        expr=f"max by ({WHO}, feature) (feature_drifted{{{PROPER}}}) == 1",
        wait="15m",
        severity="info",
        summary=f"{_NAMED}: {{{{ $labels.feature }}}} has drifted",
    ),
    Alert(
        name="PredictionDrifted",
        expr=f"max by ({WHO}, output) (prediction_drifted{{{PROPER}}}) == 1",
        wait="15m",
        severity="info",
        summary=f"{_NAMED}: {{{{ $labels.output }}}} has drifted",
    ),
    Alert(
        name="EmbeddingDrifted",
        expr=f"""
        max by ({WHO}, feature) (
          feature_drifted{{{PROPER}}} == 1 and ignoring (statistic) feature_drift_statistic{{statistic="mmd"}}
        )
        """,
        wait="30m",
        severity="warning",
        summary=f"{_NAMED}: the embedding {{{{ $labels.feature }}}} has drifted",
        note="Embeddings have no alarm over time, which ModelDrifted goes by.",
    ),
    Alert(
        name="FeaturesDriftedTogether",
        expr=f"max by ({WHO}) (model_drifted) == 1",
        wait="30m",
        severity="info",
        summary=f"{_NAMED}: its rows can be told from the reference's by all features together",
    ),
    Alert(
        name="SliceDrifted",
        expr=f"max by ({WHO}, slice) (model_slice_drifted_columns) > 0",
        wait="30m",
        severity="info",
        summary=f"{_NAMED}: {{{{ $value }}}} columns of {{{{ $labels.slice }}}} have drifted",
    ),
    Alert(
        name="PredictionChanged",
        expr=rising("prediction_changes_total"),
        severity="info",
        summary=f"{_NAMED}: {{{{ $labels.detector }}}} finds a change of {{{{ $labels.output }}}} ({{{{ $labels.of }}}})",
    ),
    Alert(
        name="ReferenceSwitched",
        expr='max by (model, version, reference) (model_reference_info{state="outgoing"}) == 1',
        severity="info",
        summary=f"{_NAMED}: reference {{{{ $labels.reference }}}} was replaced",
    ),
    Alert(
        name="ReferenceFromFirstRows",
        expr='reference_ready{source="first_rows"} == 1',
        wait="1h",
        severity="info",
        summary=f"{_NAMED}: the reference is of first rows, not of training data",
    ),
)

_QUALITY = (
    Alert(
        name="DataQualityViolated",
        expr=f"max by ({WHO}, check) (model_data_quality_violations) > 0",
        wait="15m",
        severity="warning",
        summary=f"{_NAMED}: {{{{ $value }}}} columns violate the check {{{{ $labels.check }}}}",
    ),
    Alert(
        name="SchemaChanged",
        expr=rising("model_schema_changes_total"),
        severity="warning",
        summary=f"{_NAMED}: rows came with other columns or types than before",
    ),
    Alert(
        name="PredictionsRepeated",
        expr="increase(prediction_id_duplicates_total[15m]) > 0",
        wait="15m",
        severity="warning",
        summary=f"{_NAMED}: rows come with prediction ids that came before",
    ),
    Alert(
        name="RowsOutOfTime",
        expr="increase(records_left_out_total[15m]) > 0",
        wait="15m",
        severity="warning",
        summary=f"{_NAMED}: rows are left out for their event time ({{{{ $labels.reason }}}})",
    ),
)

_HEALTH = (
    Alert(
        name="ServingUnwell",
        expr="min by (model, version) (model_serving_health_ratio) < 0.5",
        wait="10m",
        severity="warning",
        summary=f"{_NAMED}: its health index is {{{{ $value | humanizePercentage }}}}",
    ),
)

_STREAMS = (
    Alert(
        name="StreamStale",
        expr=f"min by ({WHO}) (records_stale) == 1",
        wait="1m",
        severity="warning",
        summary=f"{_NAMED}: no rows come, for longer than is usual",
        note="Of replicas all: one that gets no traffic is no news.",
    ),
    Alert(
        name="NoRecords",
        expr='sum without (receiver) (rate(tidegauge_received_total{signal="records"}[15m])) == 0',
        wait="15m",
        severity="warning",
        summary="{{ $labels.instance }}: no rows come any more, so drift cannot be seen",
    ),
)


def rules(plan: Plan) -> RuleFile:
    """Groups of drift, predictions, data quality and streams."""
    drift = (*_DRIFT, *_high_scores(plan))
    streams = (*_STREAMS, *map(_silent, plan.models))
    groups = (
        Group("model-drift", drift),
        Group("model-predictions", tuple(_predictions(plan))),
        Group("model-data-quality", _QUALITY),
        Group("model-streams", streams),
        Group("model-health", _HEALTH),
    )
    return RuleFile(HEAD, groups)


def _high_scores(plan: Plan) -> Iterator[Alert]:
    """One for each model and feature that is named; else one for all.

    One for a feature is as teams write it, and finds other windows and baselines too, if there are any.
    """
    models = [one.labels() for one in plan.models] or [()]
    features: list[tuple[tuple[str, str], ...]] = [(("feature", name),) for name in plan.features] or [()]
    proper = () if plan.features else tuple((label, "") for label in BESIDE)
    for model, feature in itertools.product(models, features):
        yield Alert(
            name="FeatureDriftHigh",
            expr=f"abs(feature_drift_score{matchers((*model, *feature, *proper))}) > {number(plan.score)}",
            wait="30m",
            severity="warning",
            summary=f'{_NAMED}: {{{{ $labels.feature }}}} is at {{{{ $value | printf "%.2f" }}}}',
        )


def _predictions(plan: Plan) -> Iterator[Rule]:
    yield Record(
        name="model_output:prediction_mean:avg1h",
        expr=f"""
        sum by ({WHO}, output) (avg_over_time(prediction_mean[1h]) * avg_over_time(prediction_window_rows[1h]))
          / (sum by ({WHO}, output) (avg_over_time(prediction_window_rows[1h])) > 0)
        """,
        note="The last hour's average, over replicas by their rows.",
    )
    yield Alert(
        name="PredictionMeanShifted",
        expr=f"""
        abs(model_output:prediction_mean:avg1h - model_output:prediction_mean:avg1h offset 1d)
          / abs(model_output:prediction_mean:avg1h offset 1d)
          > {number(plan.prediction_change)}
        """,
        wait="15m",
        severity="warning",
        summary=(
            f"{_NAMED}: the hourly average of {{{{ $labels.output }}}} is "
            "{{ $value | humanizePercentage }} off the day before's"
        ),
    )


def _silent(watched: Watched) -> Alert:
    columns = "feature_window_rows" if watched.features else "prediction_window_rows"
    return Alert(
        name="ModelSilent",
        expr=f"absent({columns}{matchers(watched.labels())})",
        wait="30m",
        severity="warning",
        summary=f"{_NAMED}: no agent has seen a row of it",
    )
