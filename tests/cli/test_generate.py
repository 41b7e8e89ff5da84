"""`tidegauge generate`: the shipped files by default, other references and thresholds, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner, Result

from tidegauge.cli.root import commands

DEPLOY = Path(__file__).parents[2] / "deploy"


def generate(*words: str | Path) -> Result:
    return CliRunner().invoke(commands, ["generate", *map(str, words)])


def made(*words: str | Path) -> None:
    done = generate(*words)
    assert done.exit_code == 0, done.output


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    random = np.random.default_rng(1)
    columns = {"transaction_amount": random.normal(size=500), "age": random.random(500)}
    columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(random.normal(size=2_000)), 4)
    pq.write_table(pa.table(columns | {"score": random.random(500)}), folder / "train.parquet")
    build = ["reference", "build", str(folder / "train.parquet"), "--model", "fraud", "--version", "2.1"]
    done = CliRunner().invoke(commands, [*build, "-o", str(folder / "fraud.parquet")])
    assert done.exit_code == 0, done.output
    return folder / "fraud.parquet"


@pytest.mark.parametrize(
    ("what", "folder", "ending"), [("rules", "rules", "yaml"), ("dashboards", "grafana", "json")]
)
def test_by_default_it_makes_the_files_that_are_shipped(
    tmp_path: Path, what: str, folder: str, ending: str
) -> None:
    made(what, "-o", tmp_path / "new" / "folder")
    found = {path.name: path.read_text() for path in (tmp_path / "new" / "folder").iterdir()}
    shipped = (DEPLOY / folder).glob(f"*.{ending}")
    assert found == {path.name: path.read_text() for path in shipped if "." not in path.stem}


def rules(folder: Path, file: str, alert: str) -> list[str]:
    groups = yaml.safe_load((folder / f"{file}.yaml").read_text())["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"] if rule.get("alert") == alert]


def test_a_reference_gives_the_model_its_rules_and_its_columns_to_choose_from(
    tmp_path: Path, reference: Path
) -> None:
    made("rules", "--reference", reference, "--feature", "transaction_amount", "-o", tmp_path)
    who = 'model="fraud",version="2.1"'
    assert rules(tmp_path, "models", "FeatureDriftHigh") == [
        f'abs(feature_drift_score{{{who},feature="transaction_amount"}}) > 0.3'
    ]
    assert rules(tmp_path, "models", "ModelSilent") == [f"absent(feature_window_rows{{{who}}})"]
    made("dashboards", "--reference", reference, "-o", tmp_path)
    variables = {
        one["name"]: one["query"]
        for board in ("feature", "output")
        for one in json.loads((tmp_path / f"{board}.json").read_text())["templating"]["list"]
    }
    assert variables == {
        "datasource": "prometheus",
        "model": "fraud",
        "version": "2.1",
        "feature": "transaction_amount,age,vector",
        "output": "score",
    }


def test_a_configuration_names_the_models_and_gives_thresholds(tmp_path: Path, reference: Path) -> None:
    config = tmp_path / "agent.yaml"
    settings = {
        "references": [{"model": "renamed", "version": "3", "path": str(reference)}],
        "drift": {"threshold": 0.25, "min_rows": 1000},
        "pipeline": {"publish_interval": "1m"},
    }
    config.write_text(yaml.safe_dump(settings))
    made("rules", "--config", config, "-o", tmp_path)
    [silent] = rules(tmp_path, "models", "ModelSilent")
    assert silent == 'absent(feature_window_rows{model="renamed",version="3"})'
    [drifted] = rules(tmp_path, "fleet-drift", "FleetFeatureDrifted")
    assert ":psi >= 0.25 " in drifted
    assert ":window_rows >= 1000" in drifted
    assert rules(tmp_path, "tidegauge", "TidegaugeStale") == ["tidegauge_publication_age_seconds > 180"]


def test_durations_and_shares_are_read(tmp_path: Path) -> None:
    made("rules", "--latency", "1s", "--mean-latency", "3s", "--error-objective", "0.99", "-o", tmp_path)
    assert rules(tmp_path, "slo", "InferenceSlow")[0].endswith("> 3")
    assert "ratio_rate1h > 0.144" in rules(tmp_path, "slo", "ErrorBudgetBurns")[0]
    assert 'le=~"1(\\\\.0)?"' in (tmp_path / "slo.yaml").read_text()


def test_manifests_are_of_the_operators_kind_and_have_names_of_their_own(tmp_path: Path) -> None:
    made("rules", "--operator", "--runbooks", "https://wiki.example.com/r", "-o", tmp_path)
    trees = [yaml.safe_load(path.read_text()) for path in sorted(tmp_path.iterdir())]
    assert {tree["kind"] for tree in trees} == {"PrometheusRule"}
    names = ["tidegauge-fleet-drift", "tidegauge-gpu", "tidegauge-models", "tidegauge-slo", "tidegauge"]
    assert [tree["metadata"]["name"] for tree in trees] == names
    assert "https://wiki.example.com/r/GpuLost.md" in (tmp_path / "gpu.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--latency", "fast"), "a duration is a number and a unit"),
        (("--latency", "1m"), "60 s is not above 0 and at most 32 s"),
        (("--error-objective", "99.9"), "is not in the range 0<x<1"),
        (("--reference", "nowhere.parquet"), "nowhere.parquet"),
        (("--config", "nowhere.yaml"), "nowhere.yaml"),
    ],
)
def test_what_cannot_be_is_told(tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    done = generate("rules", *words, "-o", tmp_path / "out")
    assert done.exit_code != 0
    assert told in done.output
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = generate("dashboards", "-o", tmp_path / "file")
    assert done.exit_code == 1
    assert "cannot be written" in done.output
