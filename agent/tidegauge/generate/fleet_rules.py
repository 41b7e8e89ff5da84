"""Rules for the drift of a fleet: replicas' counts are added up, and compared with their reference."""

from __future__ import annotations

from dataclasses import replace

from tidegauge.generate.plan import Plan, number
from tidegauge.generate.rule import Alert, Group, Record, Rule, RuleFile

HEAD = """\
Drift of a fleet: the counts of all replicas are added up, and compared with the reference that they share.
That gives what one agent would say of all the rows, to the last digits; a mean of scores would not.

Replicas must have the same reference: FleetReferencesDiffer says so where they have not. Counts are those of
drift.window. Stages and data sources are added up too: put `stage` or `data_source` into the `by` of the
first rule of a group and into every `by` and `on` after it, and `group_left` to the reference, where they
are to be told apart. The two groups are alike, but for features and outputs."""

_RECORDS = (
    Record(
        name="model_feature_bin:window_rows",
        expr='sum by (model, version, feature, bin) (feature_window_count{bin!="__missing__"})',
    ),
    Record(
        name="model_feature_bin:reference_rows",
        expr="max by (model, version, feature, bin) (feature_reference_count)",
    ),
    Record(
        name="model_feature:window_rows",
        expr="sum by (model, version, feature) (model_feature_bin:window_rows) > 0",
    ),
    Record(
        name="model_feature:reference_rows",
        expr="sum by (model, version, feature) (model_feature_bin:reference_rows) > 0",
    ),
    Record(
        name="model_feature:bins",
        expr="""
            count by (model, version, feature) (
              model_feature_bin:window_rows + model_feature_bin:reference_rows > 0)
        """,
        note="Bins that are empty on both sides count for nothing.",
    ),
    Record(
        name="model_feature_bin:window_share",
        expr="""
            (model_feature_bin:window_rows + 0.5
                and (model_feature_bin:window_rows + model_feature_bin:reference_rows > 0))
              / on (model, version, feature) group_left ()
            (model_feature:window_rows + 0.5 * model_feature:bins)
        """,
        note="PSI, of shares smoothed by half a row a bin, as the agents do.",
    ),
    Record(
        name="model_feature_bin:reference_share",
        expr="""
            (model_feature_bin:reference_rows + 0.5
                and (model_feature_bin:window_rows + model_feature_bin:reference_rows > 0))
              / on (model, version, feature) group_left ()
            (model_feature:reference_rows + 0.5 * model_feature:bins)
        """,
    ),
    Record(
        name="model_feature:psi",
        expr="""
            sum by (model, version, feature) (
              (model_feature_bin:window_share - model_feature_bin:reference_share)
                * ln(model_feature_bin:window_share / model_feature_bin:reference_share))
        """,
    ),
    Record(
        name="model_feature_bin:window_ratio",
        expr="model_feature_bin:window_rows / on (model, version, feature) group_left () model_feature:window_rows",
        note="Jensen-Shannon distance, of plain shares, in nats.",
    ),
    Record(
        name="model_feature_bin:reference_ratio",
        expr="model_feature_bin:reference_rows / on (model, version, feature) group_left () model_feature:reference_rows",
    ),
    Record(
        name="model_feature:js",
        expr="""
            sqrt(clamp_min(0.5 * (
              sum by (model, version, feature) ((model_feature_bin:window_ratio > 0)
                * ln(2 * model_feature_bin:window_ratio / (model_feature_bin:window_ratio + model_feature_bin:reference_ratio)))
              + sum by (model, version, feature) ((model_feature_bin:reference_ratio > 0)
                * ln(2 * model_feature_bin:reference_ratio / (model_feature_bin:window_ratio + model_feature_bin:reference_ratio)))
            ), 0))
        """,
    ),
    Record(
        name="model_feature:chi2",
        expr="""
            sum by (model, version, feature) (
              (model_feature_bin:reference_rows * on (model, version, feature) group_left () model_feature:window_rows
                - model_feature_bin:window_rows * on (model, version, feature) group_left () model_feature:reference_rows) ^ 2
                / (model_feature_bin:window_rows + model_feature_bin:reference_rows > 0))
              / (model_feature:window_rows * model_feature:reference_rows)
        """,
        note=(
            "Pearson's chi-square of the two rows of counts, with model_feature:bins - 1 degrees of freedom."
        ),
    ),
    Record(
        name="model_feature:chi2_deviate",
        expr="""
            ((model_feature:chi2 / (model_feature:bins - 1)) ^ (1 / 3) - 1 + 2 / 9 / (model_feature:bins - 1))
              / sqrt(2 / 9 / (model_feature:bins - 1))
              and model_feature:bins > 1
        """,
        note=(
            "PromQL has no chi-square distribution: how far out chi2 is, as a standard normal "
            "deviate, by Wilson and Hilferty's cube root (1931). 3.1 is passed once in a thousand "
            "windows without drift, about."
        ),
    ),
)

_REFERENCES = (
    Alert(
        name="FleetReferencesDiffer",
        expr="""
            max by (model, version) (count by (model, version, feature, bin) (feature_reference_count))
              > min by (model, version) (count by (model, version, feature, bin) (feature_reference_count))
            or max by (model, version) (
              max by (model, version, feature, bin) (feature_reference_count)
                - min by (model, version, feature, bin) (feature_reference_count)) > 0
        """,
        wait="15m",
        severity="warning",
        summary="{{ $labels.model }} {{ $labels.version }}: replicas have other references, and no common drift",
        description="References made of first rows differ from pod to pod: build one with `tidegauge reference build`.",
        note="A bin that some replicas have and others do not, or one with other counts.",
    ),
)

_RENAMED = (
    ("feature_window", "prediction_window"),
    ("feature_reference", "prediction_reference"),
    ("model_prediction", "model_feature"),
    ("feature", "output"),
    ("Feature", "Output"),
)


def rules(plan: Plan) -> RuleFile:
    """Groups of features and of outputs, and one on references."""
    features: tuple[Rule, ...] = (*_RECORDS, _drifted(plan))
    groups = (
        Group("fleet-drift-features", features),
        Group("fleet-drift-outputs", tuple(map(_of_outputs, features))),
        Group("fleet-drift-references", _REFERENCES),
    )
    return RuleFile(HEAD, groups)


def _drifted(plan: Plan) -> Alert:
    return Alert(
        name="FleetFeatureDrifted",
        expr=(
            f"model_feature:psi >= {number(plan.psi)} and model_feature:chi2_deviate > 3.1 "
            f"and model_feature:window_rows >= {plan.min_rows}"
        ),
        wait="15m",
        severity="warning",
        summary="{{ $labels.model }} {{ $labels.version }}: {{ $labels.feature }} has drifted, over all replicas",
        description='PSI {{ $value | printf "%.3f" }}. model_feature_bin:window_share beside reference_share shows where.',
    )


def _of_outputs(rule: Rule) -> Rule:
    """The rule on features as one on what the model says."""
    name, expr, note = _renamed(rule.name), _renamed(rule.expr), _renamed(rule.note)
    if isinstance(rule, Record):
        return Record(name=name, expr=expr, note=note)
    summary, description = _renamed(rule.summary), _renamed(rule.description)
    return replace(rule, name=name, expr=expr, note=note, summary=summary, description=description)


def _renamed(text: str) -> str:
    for feature, output in _RENAMED:
        text = text.replace(feature, output)
    return text
