"""Whose signals they are."""

from __future__ import annotations

from typing import NamedTuple

from tidegauge.metric import Attributes, attributes

OTHERS = frozenset({"window", "baseline", "reference", "otel_metric_overflow"})
"""Labels of series beside the one of `drift.window`, which is the one that is a signal."""

Values = dict[str, float]
"""Signals of one step, by name."""


class Model(NamedTuple):
    """A version of a model, all stages and data sources together: spans and records of one server need not
    tell the same of these."""

    name: str
    version: str

    def attributes(self, **more: str) -> Attributes:
        """It as attributes, an empty version left out, then `more`."""
        return attributes(model=self.name, version=self.version, **more)


def model_of(attributes: Attributes) -> Model | None:
    """The model of a series; None where it has none, or is no signal."""
    told = dict(attributes)
    if "model" not in told or told.keys() & OTHERS:
        return None
    return Model(told["model"], told.get("version", ""))
