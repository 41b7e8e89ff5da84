"""Correlations, the index and the first cause, from steps of a server whose trouble is known."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from tidegauge.config import Health as Settings
from tidegauge.health.health import Health
from tidegauge.health.history import History
from tidegauge.health.parts import index, parts
from tidegauge.metric import Kind, Metric, Number
from tidegauge.snapshot import Snapshot, Snapshots
from tidegauge.units import Duration


def told(metrics):
    """Values by metric and labels."""
    return {
        (
            metric.name,
            *(value for key, value in point.attributes if key not in ("model", "version")),
        ): point.value
        for metric in metrics
        for point in metric.points
    }


def causes(found):
    """Families by strength, with their evidence."""
    ranked = sorted(
        ((value, *key[1:]) for key, value in found.items() if key[0] == "model.first_cause"), reverse=True
    )
    return [(cause, evidence) for _, cause, evidence in ranked]


def observed(steps, **settings):
    health = Health(Settings(**settings), Snapshots())
    return [told(health.observe(step)) for step in steps][-1]


def drifted(model_server, features, outputs):
    return (
        model_server.gauge("feature.drifted", ({"feature": "a"}, features), ({"feature": "b"}, features)),
        model_server.gauge("prediction.drifted", ({"output": "score"}, outputs)),
    )


def test_a_server_that_is_well_has_an_index_of_one_and_no_cause(model_server):
    server, random = model_server.Server(), np.random.default_rng(1)
    found = observed(
        server.step(
            latency=random.uniform(0.09, 0.11), gauges=drifted(model_server, 0.0, 0.0), gpu={"used": 0.9}
        )
        for _ in range(60)
    )
    assert found["model.serving_health",] > 0.95
    assert found["model.serving_health.part", "data"] == 1.0
    shown = {key[1] for key in found if key[0] == "model.serving_health.part"}
    assert shown == {"latency", "errors", "data", "model", "machine"}
    assert causes(found) == []


def test_throttling_that_comes_before_latency_makes_the_machine_the_first_cause(model_server):
    server, random = model_server.Server(), np.random.default_rng(2)
    held = [float(60 <= step % 120 < 90 or step >= 230) for step in range(240)]
    found = observed(
        server.step(
            latency=(0.5 if held[max(step - 3, 0)] else 0.1) * random.uniform(0.9, 1.1),
            gpu={"throttled": held[step]},
            gauges=drifted(model_server, 0.0, 0.0),
        )
        for step in range(240)
    )
    assert found["signal.lag", "latency", "gpu_throttling"] == 45.0
    assert found["signal.lagged_correlation", "latency", "gpu_throttling"] > 0.7
    assert found["signal.correlation", "latency", "gpu_throttling"] < 0.9
    assert found["signal.correlation.p_value", "latency", "gpu_throttling"] < 0.01
    assert causes(found)[0][0] == "machine"
    assert found["model.serving_health",] == 0.0  # the machine's part is at 0
    assert not any(key[:2] == ("signal.correlation", "latency") and key[2] == "gpu_memory" for key in found)


def test_longer_inputs_that_take_longer_make_the_data_the_first_cause(model_server):
    server, random = model_server.Server(), np.random.default_rng(3)
    size = np.exp(np.cumsum(random.normal(0, 0.2, 240)))
    size[-10:] = size.max() * 2
    found = observed(
        server.step(
            latency=0.1 * factor,
            gauges=(model_server.gauge("feature.drift.score", ({"feature": "length"}, factor)),),
            gpu={"used": random.uniform(0.5, 0.9)},
        )
        for factor in size
    )
    assert causes(found)[0] == ("data", "feature_drift")


def test_outputs_that_drift_alone_point_to_the_model_and_with_features_to_the_data(model_server):
    server = model_server.Server()
    alone = observed(server.step(gauges=drifted(model_server, 0.0, 1.0)) for _ in range(30))
    assert causes(alone) == [("model", "model_part")]
    both = observed(server.step(gauges=drifted(model_server, 1.0, 1.0)) for _ in range(30))
    assert causes(both) == [("data", "data_part")]


def test_failures_lower_the_index(model_server):
    server = model_server.Server()
    found = observed(server.step(ok=95, failed=5) for _ in range(10))
    assert found["model.serving_health.part", "errors"] == pytest.approx(0.5)


def test_a_lost_gpu_leaves_nothing_of_the_machine(model_server):
    server = model_server.Server()
    found = observed(server.step(gpu={"failed": 1.0}) for _ in range(3))
    assert found["model.serving_health.part", "machine"] == 0.0


def test_unrelated_noise_is_evidence_of_nothing(model_server):
    """Of 40 servers with a latency that is a walk and passes the symptom's mark."""
    accused = 0
    for seed in range(40):
        server, random = model_server.Server(), np.random.default_rng(seed)
        latency = 0.1 * np.exp(np.cumsum(random.normal(0, 0.1, 120)))
        latency[-4:] = 10 * np.median(latency)
        memory = 0.5 + 0.4 * np.tanh(np.cumsum(random.normal(0, 0.2, 120)))
        found = observed(
            (server.step(latency=a, gpu={"used": b}) for a, b in zip(latency, memory, strict=True)),
            window=Duration("30m"),
        )
        accused += bool(causes(found))
    assert accused <= 4


def test_the_index_is_the_geometric_mean_and_of_nothing_there_is_none():
    assert index({"a": 0.25, "b": 1.0}) == 0.5
    assert index({"a": 0.0, "b": 1.0}) == 0.0
    assert np.isnan(index({}))
    assert parts(History(10)) == {}


def test_a_step_without_a_word_of_a_model_is_a_step(model_server):
    """Else what came before a silence and what came after it would be neighbours."""
    health, server = Health(Settings(window=Duration("5m")), Snapshots()), model_server.Server()
    for _ in range(20):
        health.observe(server.step(latency=0.1))
    for number in range(20):
        told_ = told(health.observe(Snapshot(100 + number, (100 + number) * model_server.step_ns, ())))
    assert not [key for key in told_ if key[0].startswith("model.serving_health")]


def test_models_beyond_the_limit_are_not_looked_at():
    health = Health(Settings(max_models=1), Snapshots())
    first, second = (
        Metric("prediction.drifted", Kind.GAUGE, "1", "", (Number((("model", name),), 1.0),)) for name in "ab"
    )
    found = []
    for number, metrics in enumerate([(first,), (first, second)]):
        found = health.observe(Snapshot(number, number + 1, metrics))
    assert {point.attributes[0] for metric in found for point in metric.points} == {("model", "a")}


def test_a_history_keeps_the_last_steps_in_order():
    history = History(3)
    for value in (1.0, 2.0, float("inf"), 4.0):
        history.append({"a": value})
    history.append({"b": 5.0})
    assert np.array_equal(history.series("a"), [np.nan, 4.0, np.nan], equal_nan=True)
    assert history.recent("a", 3) == 4.0
    assert history.usual("b", 1) == 5.0
    assert np.isnan(history.usual("b", 2))


def test_it_is_published_beside_the_statistics(model_server):
    async def main():
        snapshots, server = Snapshots(), model_server.Server()
        async with Health(Settings(step=Duration("50ms"), window=Duration("5s")), snapshots):
            for _ in range(100):
                snapshots.publish("statistics", server.step(ok=90, failed=10).metrics)
                await asyncio.sleep(0.02)
                if any(metric.name == "model.serving_health" for metric in snapshots.latest().metrics):
                    return True
        return False

    assert asyncio.run(main())
