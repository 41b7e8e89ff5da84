"""Rule files: the shipped ones are what is generated, options count, and YAML reads what is meant."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tidegauge.generate.plan import Plan, Watched, latency_bound, number
from tidegauge.generate.rule import Alert, Group, Record, RuleFile, matchers
from tidegauge.generate.rules import rule_files

SHIPPED = Path(__file__).parents[2] / "deploy" / "rules"
FRAUD = Watched(model="fraud", version="2.1", features=("amount", "age"), outputs=("score",))


def alerts(plan: Plan, file: str, name: str) -> list[Alert]:
    return [alert for alert in rule_files(plan)[file].alerts() if alert.name == name]


def test_the_shipped_files_are_those_of_the_defaults() -> None:
    made = {name: file.text() for name, file in rule_files(Plan()).items()}
    shipped = {path.stem: path.read_text() for path in SHIPPED.glob("*.yaml") if "." not in path.stem}
    assert made == shipped


@pytest.mark.parametrize("name", rule_files(Plan()))
def test_a_manifest_has_the_same_groups(name: str) -> None:
    file = rule_files(Plan())[name]
    manifest = yaml.safe_load(file.manifest("mine", "https://wiki/"))
    assert (manifest["kind"], manifest["metadata"]["name"]) == ("PrometheusRule", "mine")
    assert manifest["spec"] == yaml.safe_load(file.text("https://wiki"))


def test_runbooks_are_below_the_base() -> None:
    assert "runbook_url: https://wiki/x/ModelDrifted.md\n" in rule_files(Plan())["models"].text(
        "https://wiki/x/"
    )


def test_a_feature_that_is_named_gets_the_rule_that_a_team_would_write() -> None:
    [rule] = alerts(Plan(features=("transaction_amount",)), "models", "FeatureDriftHigh")
    assert (rule.expr, rule.wait) == ('abs(feature_drift_score{feature="transaction_amount"}) > 0.3', "30m")
    [rule] = alerts(Plan(), "slo", "InferenceSlow")
    mean = "rate(model_inference_latency_seconds_sum[5m]) / rate(model_inference_latency_seconds_count[5m])"
    assert (rule.expr, rule.wait) == (f"{mean} > 0.5", "10m")


def test_what_stands_beside_the_reference_is_in_no_rule_that_names_no_feature() -> None:
    proper = '{window="",baseline="",reference=""}'
    for name in ("FeatureDrifted", "PredictionDrifted", "EmbeddingDrifted", "FeatureDriftHigh"):
        [rule] = alerts(Plan(), "models", name)
        assert rule.expr.count(proper) == 1
    [rule] = alerts(Plan(models=(FRAUD,)), "models", "FeatureDriftHigh")
    assert 'version="2.1",window="",baseline="",reference=""}' in rule.expr


def test_models_that_are_named_get_rules_of_their_own() -> None:
    plan = Plan(models=(FRAUD, Watched(model="other", outputs=("y",))), features=("amount",), score=0.5)
    assert [one.expr for one in alerts(plan, "models", "FeatureDriftHigh")] == [
        'abs(feature_drift_score{model="fraud",version="2.1",feature="amount"}) > 0.5',
        'abs(feature_drift_score{model="other",feature="amount"}) > 0.5',
    ]
    assert [one.expr for one in alerts(plan, "models", "ModelSilent")] == [
        'absent(feature_window_rows{model="fraud",version="2.1"})',
        'absent(prediction_window_rows{model="other"})',
    ]


def test_thresholds_are_in_the_expressions() -> None:
    plan = Plan(psi=0.25, min_rows=5000, stale_s=90, gpu_celsius=80, error_objective=0.99, latency_s=2)
    text = "".join(file.text() for file in rule_files(plan).values())
    assert text.count(":psi >= 0.25 ") == text.count(":window_rows >= 5000") == 2
    assert "tidegauge_publication_age_seconds > 90" in text
    assert "hw_temperature_celsius > 80" in text
    assert "model:inference_errors:ratio_rate1h > 0.144\n" in text
    assert r'le=~"2(\\.0)?"' in text


def test_an_objective_of_latency_is_counted_at_a_bucket_and_not_beyond_the_last() -> None:
    assert [latency_bound(seconds) for seconds in (0.25, 0.26, 32)] == [0.25, 0.35355339059327373, 32]
    for wrong in (0.0, 33.0, float("nan")):
        with pytest.raises(ValueError, match="at most 32 s"):
            latency_bound(wrong)


def test_rules_on_outputs_are_those_on_features() -> None:
    features, outputs, _ = rule_files(Plan())["fleet-drift"].groups
    renamed = [
        one.expr.replace("feature_window", "prediction_window")
        .replace("feature_reference", "prediction_reference")
        .replace("model_prediction", "model_feature")
        .replace("feature", "output")
        for one in features.rules
    ]
    assert renamed == [one.expr for one in outputs.rules]
    assert "prediction_window_count" in renamed[0]


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1).filter(
    # What YAML itself takes for a line's end.
    lambda text: not set(text) & {"\x85", "\u2028", "\u2029", "\ufeff"} and max(text) < "\ufffe"
)


@given(TEXT, TEXT, TEXT)
def test_yaml_reads_what_was_meant(expr: str, summary: str, note: str) -> None:
    rules: Any = (
        Record(name="a:b:c", expr=expr, note=note),
        Alert(name="A", expr=f"{expr}\n  and 1", severity="info", summary=summary, labels=(("over", "1h"),)),
    )
    [group] = yaml.safe_load(RuleFile("Head.", (Group("g", rules),)).text())["groups"]
    record, alert = group["rules"]
    assert record == {"record": "a:b:c", "expr": inspect.cleandoc(expr)}
    assert alert["expr"].rstrip("\n") == inspect.cleandoc(f"{expr}\n  and 1")
    assert alert["annotations"] == {"summary": summary, "runbook_url": "docs/runbooks/A.md"}
    assert alert["labels"] == {"severity": "info", "over": "1h"}


def test_numbers_are_written_without_what_floating_point_adds() -> None:
    assert [number(value) for value in (0.1 + 0.2, 6 * (1 - 0.999), 87, 1e-7)] == [
        "0.3",
        "0.006",
        "87",
        "1e-07",
    ]


def test_label_values_are_quoted() -> None:
    assert matchers([("feature", 'a "b" \\ ü')]) == r'{feature="a \"b\" \\ ü"}'
