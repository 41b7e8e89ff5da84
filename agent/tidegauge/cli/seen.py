"""What a snapshot says of one identity."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tidegauge.identity import Identity
from tidegauge.metric import Metric, Number
from tidegauge.processors.drift.report import BESIDE


class Seen(NamedTuple):
    """The metrics and the tables of an identity."""

    identity: Identity
    metrics: tuple[Metric, ...]
    tables: tuple[Metric, ...]

    def numbers(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        """Those of the reference proper."""
        for at, value in self.all_numbers(name):
            if at.keys().isdisjoint(BESIDE):
                yield at, value

    def all_numbers(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        """Those of baselines and of a reference that goes, too."""
        for metric in self.metrics:
            if metric.name == name:
                for point in metric.points:
                    if isinstance(point, Number):
                        yield dict(point.attributes), point.value
