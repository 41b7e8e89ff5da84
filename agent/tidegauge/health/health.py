"""Lays a model's signals beside each other: how they move together, how well it is served, and why not."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import defaultdict
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from tidegauge.config import Health as Settings
from tidegauge.health.cause import Cause, candidates
from tidegauge.health.history import History
from tidegauge.health.model import Model
from tidegauge.health.parts import Parts, index, parts
from tidegauge.health.relations import Relation, relate
from tidegauge.health.signals import Signals
from tidegauge.metric import Kind, Metric, Number
from tidegauge.snapshot import Snapshot, Snapshots

log = logging.getLogger(__name__)

SOURCE = "health"

_RELATED_EVERY = 4
"""Steps from one look at the correlations to the next: 20 models with all signals take 0.3 s of a thread."""

METRICS: Mapping[str, tuple[str, str]] = {
    "signal.correlation": ("{correlation}", "Rank correlation of a symptom with a signal, from -1 to 1."),
    "signal.lagged_correlation": ("{correlation}", "The strongest with the signal ahead of the symptom."),
    "signal.lag": ("s", "How far ahead of the symptom the signal is in its strongest correlation."),
    "signal.correlation.p_value": (
        "{probability}",
        "Probability of a lagged correlation as strong without a relation.",
    ),
    "model.serving_health": ("1", "Serving Health Index: the geometric mean of its parts, 1 is well."),
    "model.serving_health.part": ("1", "A part of the Serving Health Index, 1 is well."),
    "model.first_cause": (
        "1",
        "While there is a symptom: how strong the evidence for this cause is.",
    ),
}
"""Gauges: name, unit and description."""


class Health:
    """Reads each snapshot of statistics once in `health.step`, and publishes what it finds as "health".

    An async context manager. The work is done on a thread of asyncio's pool.
    """

    def __init__(self, settings: Settings, snapshots: Snapshots) -> None:
        self._settings = settings
        self._snapshots = snapshots
        self._steps = max(round(settings.window / settings.step), 1)
        self._most_lag = round(settings.max_lag / settings.step)
        self._signals = Signals()
        self._histories: dict[Model, History] = {}
        self._relations: dict[Model, tuple[Relation, ...]] = {}
        self._causes: dict[Model, str] = {}
        self._count = 0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._settings.step)
            try:
                found = await asyncio.to_thread(self.observe, self._snapshots.latest())
            except Exception:
                log.exception("the health of models could not be told")
            else:
                self._snapshots.publish(SOURCE, found)

    def observe(self, snapshot: Snapshot) -> tuple[Metric, ...]:
        """Take in a step; what is to be told after it."""
        read = self._signals.read(snapshot.metrics, snapshot.time_ns)
        for model in read:
            if model not in self._histories and len(self._histories) < self._settings.max_models:
                self._histories[model] = History(self._steps)
        # Also of those that told nothing: a step left out would be a lag too little across it.
        for model, history in self._histories.items():
            history.append(read.get(model, {}))
        self._count += 1
        if self._count % _RELATED_EVERY == 0:
            self._relations = {
                model: tuple(relate(history, self._most_lag)) for model, history in self._histories.items()
            }
        points: dict[str, list[Number]] = defaultdict(list)
        for model, history in self._histories.items():
            found, relations = parts(history), self._relations.get(model, ())
            causes = candidates(found, relations)
            self._tell(model, found, causes)
            for name, attributes, value in self._numbers(found, relations, causes):
                points[name].append(Number(model.attributes(**attributes), value))
        return tuple(
            Metric(name, Kind.GAUGE, unit, description, tuple(points[name]))
            for name, (unit, description) in METRICS.items()
            if points[name]
        )

    def _numbers(
        self, found: Parts, relations: tuple[Relation, ...], causes: list[Cause]
    ) -> list[tuple[str, dict[str, str], float]]:
        step_s = float(self._settings.step)
        numbers: list[tuple[str, dict[str, str], float]] = []
        for one in relations:
            pair = {"symptom": one.symptom, "signal": one.signal}
            numbers += [
                ("signal.correlation", pair, one.at_once.r),
                ("signal.lagged_correlation", pair, one.ahead.r),
                ("signal.lag", pair, one.ahead.lag * step_s),
                ("signal.correlation.p_value", pair, one.ahead.p_value),
            ]
        if not math.isnan(health := index(found)):
            numbers.append(("model.serving_health", {}, health))
        numbers += [("model.serving_health.part", {"part": name}, value) for name, value in found.items()]
        numbers += [
            ("model.first_cause", {"cause": one.family, "evidence": one.evidence}, one.strength)
            for one in causes
        ]
        return numbers

    def _tell(self, model: Model, found: Parts, causes: list[Cause]) -> None:
        """Write a change of the first cause to the log, once."""
        first = causes[0].family if causes else ""
        if first != self._causes.get(model, ""):
            self._causes[model] = first
            if causes:
                worst = min(found, key=lambda name: found[name])
                log.warning(
                    "%s %s: %s is at %.2f; the first cause to look at is the %s (%s, %.2f)",
                    *model,
                    worst,
                    found[worst],
                    first,
                    causes[0].evidence,
                    causes[0].strength,
                )
            else:
                log.info("%s %s: no symptom any more", *model)
