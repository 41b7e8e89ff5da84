"""Rows of a model's dashboard for drift that no single column shows: all features together, and slices."""

from __future__ import annotations

from tidegauge.generate import marks
from tidegauge.generate.dashboard import Row, link
from tidegauge.generate.marks import of_model
from tidegauge.generate.panel import Panel, Query
from tidegauge.generate.plan import PROPER

_AUC = 'statistic="domain_auc"'
_MMD = f'statistic="mmd",{PROPER}'


def rows() -> tuple[Row, ...]:
    """Two rows."""
    return Row("All features together, and embeddings", _together()), Row("Slices and reference", _slices())


def _together() -> tuple[Panel, ...]:
    feature = link(marks.FEATURE, model="model", version="version", feature="feature")
    return (
        Panel(
            title="How well a classifier tells window from reference",
            queries=(
                Query(of_model("model_drift_statistic", _AUC), "AUC {{instance}}"),
                Query(of_model("model_drift_null_quantile", _AUC), "usual {{instance}}"),
            ),
            at_most=1,
            about="0.5 is chance. What is usual: 95 of 100 windows stay below it without drift.",
        ),
        Panel(
            title="Relations that break",
            queries=(
                Query(of_model("model_drift_statistic", 'statistic!="domain_auc"'), "{{statistic}}"),
                Query(of_model("model_drifted"), "verdict of the AUC"),
            ),
            about="pca_error is 1 and outlier_ratio 0.05 where nothing drifts.",
        ),
        Panel(
            title="Embeddings: MMD",
            queries=(
                Query(of_model("feature_drift_statistic", _MMD), "{{feature}}"),
                Query(of_model("feature_drift_null_quantile", _MMD), "{{feature}}, usual"),
            ),
            link=feature,
        ),
        Panel(
            title="Groups of features that drift together",
            queries=(Query(f"max by (group, feature) ({of_model('feature_drift_group')})"),),
            kind="table",
            width=24,
            columns=(("group", "Group"), ("feature", "Feature")),
        ),
    )


def _slices() -> tuple[Panel, ...]:
    def of(metric: str) -> str:
        return of_model(f"model_slice_{metric}")

    return (
        Panel(
            title="Drifted columns, by slice",
            queries=(Query(f"topk(10, max by (slice) ({of('drifted_columns')}))", "{{slice}}"),),
            limit=1,
        ),
        Panel(
            title="Worst columns of slices: PSI",
            queries=(
                Query(
                    f"max by (slice, feature, output) ({of('drift_score')})",
                    "{{slice}} {{feature}}{{output}}",
                ),
            ),
            about="Of the drift.slices.worst ones: which these are changes.",
        ),
        Panel(
            title="Rows, by slice",
            queries=(Query(f"topk(10, sum by (slice) ({of('rows')}))", "{{slice}}"),),
        ),
        Panel(
            title="References",
            queries=(
                Query(f"max by (model, version, reference, state) ({of_model('model_reference_info')})"),
            ),
            kind="table",
            width=24,
            columns=(
                ("model", "Model"),
                ("version", "Version"),
                ("reference", "Reference"),
                ("state", "State"),
            ),
        ),
    )
