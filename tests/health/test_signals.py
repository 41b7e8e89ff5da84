"""What is read out of snapshots."""

from __future__ import annotations

import pytest

from tidegauge.health.model import Model
from tidegauge.health.signals import Signals

FRAUD = Model("fraud", "2")


def read(signals, snapshot):
    return signals.read(snapshot.metrics, snapshot.time_ns)


def test_what_is_cumulative_is_told_as_its_rise(model_server):
    server, signals = model_server.Server(), Signals()
    first = read(signals, server.step(latency=9.0, ok=1000, failed=500, tokens=7.0))
    assert first.get(FRAUD, {}) == {}
    second = read(signals, server.step(latency=0.2, ok=30, queue=0.05, tokens=40.0))[FRAUD]
    assert second == pytest.approx(
        {"latency": 0.2, "request_rate": 2.0, "error_ratio": 0.0, "queue_time": 0.05, "output_tokens": 40.0}
    )
    third = read(signals, server.step(latency=0.4, ok=30, failed=10))[FRAUD]
    assert third["error_ratio"] == 0.25
    assert third["latency"] == pytest.approx(0.4)


def test_the_first_failures_are_failures_of_their_step(model_server):
    server, signals = model_server.Server(), Signals()
    read(signals, server.step())
    assert read(signals, server.step(ok=99, failed=1))[FRAUD]["error_ratio"] == 0.01


def test_a_counter_that_begins_anew_tells_nothing_of_its_step(model_server):
    signals = Signals()
    server = model_server.Server()
    for _ in range(3):
        read(signals, server.step())
    assert "latency" not in read(signals, model_server.Server().step()).get(FRAUD, {})


def test_without_requests_there_is_a_rate_of_none_and_no_latency(model_server):
    server, signals = model_server.Server(), Signals()
    read(signals, server.step())
    assert read(signals, server.step(ok=0))[FRAUD] == {"request_rate": 0.0}


def test_drift_is_of_the_one_window_that_has_no_label(model_server):
    gauge = model_server.gauge
    metrics = (
        gauge("feature.drift.score", ({"feature": "a"}, 0.1), ({"feature": "b"}, 0.3)),
        gauge("feature.drifted", ({"feature": "a"}, 0.0), ({"feature": "a", "window": "24h"}, 1.0)),
        gauge("prediction.drift.score", ({"output": "s"}, 0.1), ({"output": "t"}, 0.4)),
        gauge("prediction.drifted", ({"output": "s"}, 0.0), ({"output": "t"}, 1.0)),
        gauge("feature.missing", ({"feature": "a"}, 0.5)),
        gauge("feature.drift.score.received", ({"feature": "a"}, 9.0)),
    )
    found = Signals().read(metrics, 1)[FRAUD]
    assert found == pytest.approx(
        {
            "feature_drift": 0.2,
            "drifted_features": 0.0,
            "prediction_drift": 0.4,
            "drifted_outputs": 0.5,
            "missing_ratio": 0.5,
        }
    )


def test_a_model_is_told_of_its_own_gpus_or_of_those_of_nobody(model_server):
    server = model_server.Server()
    drift = model_server.gauge("feature.drifted", ({"feature": "a"}, 0.0))
    shared = server.step(gauges=(drift,), gpu={"used": 0.5, "throttled": 1.0})
    assert Signals().read(shared.metrics, 1)[FRAUD] == pytest.approx(
        {
            "drifted_features": 0.0,
            "gpu_memory": 0.5,
            "gpu_temperature": 60.0,
            "gpu_utilization": 0.7,
            "gpu_throttling": 1.0,
            "gpu_failed": 0.0,
        }
    )
    other = server.step(gauges=(drift,), gpu={"model": "ranker"})
    assert "gpu_memory" not in Signals().read(other.metrics, 1)[FRAUD]
    own = (drift, *model_server.gpus(used=0.9, model="fraud"))
    assert Signals().read(own, 1)[FRAUD]["gpu_memory"] == pytest.approx(0.9)
