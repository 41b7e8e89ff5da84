"""Signals of the GPUs that a model runs on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from tidegauge.health.model import Model, Values, model_of
from tidegauge.metric import Metric, Number

THROTTLING = frozenset({"hw_slowdown", "sw_thermal", "hw_thermal", "power_brake"})
"""Reasons for held clocks that are faults of cooling or supply. At its power cap a busy GPU may well be."""


def add_gpus(named: Mapping[str, Metric], found: Mapping[Model, Values]) -> None:
    """Add to each model's values those of its own GPUs, where any is known to be its own, else of those whose
    model is not known: of each signal the largest."""
    gpus = _gpus(named)
    for model, values in found.items():
        mine = [gpu for whose, gpu in gpus if whose == model] or [gpu for whose, gpu in gpus if whose is None]
        for name in {name for gpu in mine for name in gpu}:
            values[name] = max(gpu[name] for gpu in mine if name in gpu)


def _gpus(named: Mapping[str, Metric]) -> list[tuple[Model | None, Values]]:
    told: dict[str, Values] = defaultdict(dict)
    models: dict[str, Model | None] = {}
    limits: Values = {}
    for name, its, whose, value in _points(named):
        gpu, models[its["hw.id"]] = told[its["hw.id"]], whose
        reason = its.get("hw.gpu.clock.reason")
        if name == "hw.gpu.memory.limit":
            limits[its["hw.id"]] = value
        elif name == "hw.gpu.memory.usage":
            gpu["gpu_memory"] = value
        elif name == "hw.temperature":
            gpu["gpu_temperature"] = max(value, gpu.get("gpu_temperature", value))
        elif name == "hw.gpu.utilization" and its.get("hw.gpu.task") == "general":
            gpu["gpu_utilization"] = value
        elif reason in THROTTLING:
            gpu["gpu_throttling"] = max(value, gpu.get("gpu_throttling", 0.0))
        elif reason == "power_cap":
            gpu["gpu_power_cap"] = value
        elif its.get("hw.state") == "failed":
            gpu["gpu_failed"] = value
    for uuid, values in told.items():
        used = values.pop("gpu_memory", None)
        if used is not None and limits.get(uuid):
            values["gpu_memory"] = used / limits[uuid]
    return [(models[uuid], values) for uuid, values in told.items()]


_METRICS = (
    "hw.gpu.memory.usage",
    "hw.gpu.memory.limit",
    "hw.temperature",
    "hw.gpu.utilization",
    "hw.gpu.clock.held",
    "hw.status",
)


def _points(
    named: Mapping[str, Metric],
) -> Iterator[tuple[str, dict[str, str], Model | None, float]]:
    for name in _METRICS:
        for point in named[name].points if name in named else ():
            its = dict(point.attributes)
            if isinstance(point, Number) and its.get("hw.type") == "gpu" and "hw.id" in its:
                yield name, its, model_of(point.attributes), point.value
