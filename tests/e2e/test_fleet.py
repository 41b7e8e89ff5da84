"""Drift of a fleet in a real Prometheus: the rules on three replicas say what one agent of all rows says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tidegauge.stats import distances

pytestmark = pytest.mark.e2e

RULES = Path(__file__).parents[2] / "deploy" / "rules" / "fleet-drift.yaml"
BATCH, BATCHES = 700, 12
STATISTICS = ("psi", "js", "chi2")


def rows(seed: int, count: int, shift: float) -> pa.Table:
    random = np.random.default_rng(seed)
    return pa.table(
        {
            "moved": random.normal(size=count) + shift,
            "still": random.exponential(size=count),
            "gaps": pa.array(random.normal(size=count), mask=random.random(count) < 0.1),
            "colour": random.choice(
                ["red", "green", "blue"], size=count, p=[0.5, 0.3 + shift / 10, 0.2 - shift / 10]
            ),
            "score": random.random(count) ** (1 + shift),
        }
    )


def send(port: int, batches: list[pa.RecordBatch]) -> None:
    with fl.FlightClient(f"grpc://127.0.0.1:{port}") as client:
        path = fl.FlightDescriptor.for_path("records", "fraud", "2.1")
        writer, _ = client.do_put(path, batches[0].schema)
        for batch in batches:
            writer.write_batch(batch)
        writer.close()


class Fleet(NamedTuple):
    """What an agent of all rows says, by statistic and column; and a Prometheus of three replicas."""

    alone: dict[tuple[str, str], float]
    prometheus: Any


@pytest.fixture(scope="module")
def fleet(
    start_agent: Callable[..., Any],
    start_prometheus: Callable[..., Any],
    folder: Callable[[], Path],
    until: Callable[..., Any],
) -> Fleet:
    train, reference = folder() / "train.parquet", folder() / "fraud.parquet"
    pq.write_table(rows(1, 20_000, shift=0.0), train)
    build = ["reference", "build", str(train), "--model", "fraud", "--version", "2.1", "-o", str(reference)]
    subprocess.run([sys.executable, "-m", "tidegauge", *build], check=True, capture_output=True)
    settings = {"references": [{"model": "fraud", "version": "2.1", "path": str(reference)}]}
    everything, *replicas = (start_agent(**settings) for _ in range(4))
    batches = rows(2, BATCHES * BATCH, shift=0.7).to_batches(max_chunksize=BATCH)
    send(everything.grpc, batches)
    # A load balancer that is not even: half of them, a third and a sixth.
    for agent, share in zip(replicas, (batches[:6], batches[6:10], batches[10:]), strict=True):
        send(agent.grpc, share)
    ports = [agent.pages for agent in replicas]
    prometheus = start_prometheus(ports[0], replicas=ports[1:], rules=[RULES])
    sent = BATCHES * BATCH
    until(lambda: prometheus.value('model_feature:window_rows{feature="moved"}') == sent)
    until(lambda: prometheus.value('model_output:window_rows{output="score"}') == sent)
    until(lambda: prometheus.value("count(model_feature:psi)") == 4)
    everything.reaches(sent, "feature_window_count", feature="moved")
    return Fleet(statistics(everything.text()), prometheus)


def statistics(page: str) -> dict[tuple[str, str], float]:
    return {
        (sample.labels["statistic"], sample.labels.get("feature") or sample.labels["output"]): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name in ("feature_drift_statistic", "prediction_drift_statistic")
        and "window" not in sample.labels
    }


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("kind", ["feature", "output"])
def test_the_rules_say_what_one_agent_of_all_rows_says(
    fleet: Fleet, until: Callable[..., Any], kind: str, statistic: str
) -> None:
    columns = {"feature": ["moved", "still", "gaps", "colour"], "output": ["score"]}[kind]
    # Rules are evaluated every second, so the last one may still be of half the counts.
    wanted = {column: fleet.alone[statistic, column] for column in columns}

    def found() -> dict[str, float]:
        return fleet.prometheus.query(f"model_{kind}:{statistic}", by=kind)

    until(lambda: found() == pytest.approx(wanted, rel=1e-9, abs=1e-9))
    assert min(wanted.values()) > 0


def test_a_mean_of_the_replicas_scores_would_be_something_else(fleet: Fleet) -> None:
    mean = fleet.prometheus.query('avg by (feature) (feature_drift_score{window=""})', by="feature")
    assert abs(mean["still"] - fleet.alone["psi", "still"]) > 1e-4


def test_what_has_moved_is_alerted_and_the_references_do_not_differ(
    fleet: Fleet, until: Callable[..., Any]
) -> None:
    wanted = {"FleetFeatureDrifted": 1, "FleetOutputDrifted": 1}
    until(lambda: fleet.prometheus.query("ALERTS", by="alertname") == wanted)


def test_what_those_tests_expect_is_what_the_agent_computes() -> None:
    text = RULES.with_suffix(".test.yaml").read_text()
    reference, window = np.array([400, 600, 0, 0, 25]), np.array([120, 130, 8, 0, 0])
    chi2, _ = distances.chi_square(reference, window)
    for value in (distances.psi(reference, window), distances.js(reference, window), chi2):
        assert str(value) in text
