"""Steps of a model's metrics, as processors publish them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tidegauge.metric import ExponentialHistogram, Kind, Metric, Number
from tidegauge.snapshot import Snapshot

STEP_NS = 15 * 10**9
WHO = (("model", "fraud"), ("version", "2"))


def gauge(name, *points):
    """A metric of numbers: pairs of labels and a value."""
    return Metric(
        name, Kind.GAUGE, "1", "", tuple(Number((*WHO, *labels.items()), value) for labels, value in points)
    )


class Server:
    """Counts as the latency and timing processors do, and tells all as one snapshot after another."""

    def __init__(self):
        self._sums = {}
        self._generation = 0

    def _histogram(self, name, labels, count, mean):
        key = (name, tuple(labels.items()))
        before = self._sums.get(key, (0, 0.0))
        self._sums[key] = (before[0] + count, before[1] + count * mean)

    def step(self, latency=0.1, ok=100, failed=0, queue=0.01, gauges=(), gpu=None, tokens=None):
        self._histogram("model.inference.latency", {"operation": "predict", "status": "ok"}, ok, latency)
        if failed:
            self._histogram(
                "model.inference.latency", {"operation": "predict", "status": "error"}, failed, latency
            )
        self._histogram("model.inference.phase.duration", {"phase": "queue"}, ok, queue)
        if tokens:
            self._histogram("model.inference.tokens", {"type": "output"}, ok, tokens)
        metrics = {}
        for (name, labels), (count, total) in self._sums.items():
            point = ExponentialHistogram((*WHO, *labels), 0, 0, (count,), 0, total, 0.0, 1.0)
            metrics.setdefault(name, []).append(point)
        self._generation += 1
        return Snapshot(
            self._generation,
            self._generation * STEP_NS,
            (
                *(Metric(n, Kind.EXPONENTIAL_HISTOGRAM, "s", "", tuple(p)) for n, p in metrics.items()),
                *gauges,
                *(gpus(**gpu) if gpu else ()),
            ),
        )


def gpus(used=0.5, throttled=0.0, model=None, uuid="GPU-1", failed=0.0):
    """One GPU's metrics, named as the scraper names them."""
    its = (("hw.id", uuid), ("hw.name", "H100"), ("hw.type", "gpu"))
    its += (("model", model), ("version", "2")) if model else ()

    def one(name, value, *more):
        return Metric(name, Kind.GAUGE, "1", "", (Number((*its, *more), value),))

    return (
        one("hw.gpu.memory.usage", used * 80e9),
        one("hw.gpu.memory.limit", 80e9),
        one("hw.temperature", 60.0),
        one("hw.gpu.utilization", 0.7, ("hw.gpu.task", "general")),
        one("hw.gpu.clock.held", throttled, ("hw.gpu.clock.reason", "hw_thermal")),
        one("hw.status", failed, ("hw.state", "failed")),
    )


@pytest.fixture(scope="session")
def model_server():
    return SimpleNamespace(Server=Server, gauge=gauge, gpus=gpus, step_ns=STEP_NS)
