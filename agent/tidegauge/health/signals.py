"""The signals that are laid beside each other: one number each for a model and a step of time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple

from tidegauge.health.gpus import add_gpus
from tidegauge.health.model import Model, Values, model_of
from tidegauge.metric import ExponentialHistogram, Metric, Number


class Family(StrEnum):
    """Where a signal points to: what users feel, or what may be the cause."""

    SERVICE = "service"
    DATA = "data"
    MODEL = "model"
    MACHINE = "machine"


SIGNALS: Mapping[str, Family] = {
    "latency": Family.SERVICE,
    "error_ratio": Family.SERVICE,
    "queue_time": Family.SERVICE,
    "request_rate": Family.MACHINE,
    "input_tokens": Family.DATA,
    "feature_drift": Family.DATA,
    "missing_ratio": Family.DATA,
    "output_tokens": Family.MODEL,
    "prediction_drift": Family.MODEL,
    "gpu_memory": Family.MACHINE,
    "gpu_utilization": Family.MACHINE,
    "gpu_temperature": Family.MACHINE,
    "gpu_throttling": Family.MACHINE,
    "gpu_power_cap": Family.MACHINE,
}
"""All that are correlated. More load than the machine can bear is a matter of the machine."""

SYMPTOMS = ("latency", "error_ratio", "queue_time")
"""What the others are correlated with."""

LATENCY, PHASE, TOKENS = "model.inference.latency", "model.inference.phase.duration", "model.inference.tokens"

_SHARES = {
    "feature.drifted": "drifted_features",
    "prediction.drifted": "drifted_outputs",
    "feature.missing": "missing_ratio",
    "feature.drift.score": "feature_drift",
}
"""Means over the points of a model."""


class _Sum(NamedTuple):
    number: int
    total: float


class Signals:
    """Reads the signals out of snapshots, at steps of time. What is cumulative is told as its rise."""

    def __init__(self) -> None:
        self._before: dict[Model, dict[str, _Sum]] = {}
        self._before_ns = 0

    def read(self, metrics: Iterable[Metric], now_ns: int) -> dict[Model, Values]:
        """By model, the signals that there are, and `drifted_features`, `drifted_outputs`, `gpu_failed`.

        `now_ns`, Unix nanoseconds, is when the metrics were published.
        """
        named = {metric.name: metric for metric in metrics if not metric.received}
        found: dict[Model, Values] = defaultdict(dict)
        for name, key in _SHARES.items():
            for model, values in _by_model(named.get(name)).items():
                found[model][key] = math.fsum(values) / len(values)
        for model, values in _by_model(named.get("prediction.drift.score")).items():
            found[model]["prediction_drift"] = max(values)
        passed_s, self._before_ns = (now_ns - self._before_ns) / 1e9, now_ns
        for model, rises in self._rises(_sums(named)).items():
            found[model].update(_of_requests(rises, passed_s))
        add_gpus(named, found)
        return dict(found)

    def _rises(self, sums: dict[Model, dict[str, _Sum]]) -> dict[Model, dict[str, _Sum]]:
        before, self._before = self._before, sums
        found: dict[Model, dict[str, _Sum]] = {}
        for model in sums.keys() & before.keys():
            found[model] = {}
            for name, (count, total) in sums[model].items():
                earlier = before[model].get(name, _Sum(0, 0.0))
                if count >= earlier.number:  # else it began anew, and tells nothing of this step
                    found[model][name] = _Sum(count - earlier.number, total - earlier.total)
        return found


def _of_requests(rises: Mapping[str, _Sum], passed_s: float) -> Values:
    """Means over the requests of a step, their rate, and the share of failed ones."""
    found = {name: its.total / its.number for name, its in rises.items() if its.number and name != "errors"}
    requests = rises.get("latency", _Sum(0, 0.0)).number
    if "latency" in rises and passed_s > 0.0:
        found["request_rate"] = requests / passed_s
    if requests:
        found["error_ratio"] = rises.get("errors", _Sum(0, 0.0)).number / requests
    return found


def _by_model(metric: Metric | None) -> dict[Model, list[float]]:
    found = defaultdict(list)
    for point in metric.points if metric is not None else ():
        model = model_of(point.attributes)
        if model is not None and isinstance(point, Number):
            found[model].append(point.value)
    return found


def _sums(named: Mapping[str, Metric]) -> dict[Model, dict[str, _Sum]]:
    found: dict[Model, dict[str, _Sum]] = defaultdict(lambda: defaultdict(lambda: _Sum(0, 0.0)))
    for name in (LATENCY, PHASE, TOKENS):
        for point in named[name].points if name in named else ():
            model = model_of(point.attributes)
            if model is None or not isinstance(point, ExponentialHistogram):
                continue
            for key in _keys(name, dict(point.attributes)):
                count, total = found[model][key]
                found[model][key] = _Sum(count + point.count, total + point.sum)
    return found


def _keys(name: str, told: Mapping[str, str]) -> tuple[str, ...]:
    if name == LATENCY:
        return ("latency", "errors") if told.get("status") == "error" else ("latency",)
    if name == PHASE:
        return ("queue_time",) if told.get("phase") == "queue" else ()
    return (f"{told.get('type')}_tokens",) if told.get("type") in ("input", "output") else ()
