"""Whose statistic it is: the four attributes that every statistic carries."""

from __future__ import annotations

from typing import NamedTuple

from tidegauge.metric import Attributes, attributes

UNKNOWN_MODEL = "unknown"
"""The model's name where nothing in the telemetry tells it."""

OVERFLOW: Attributes = (("otel_metric_overflow", "true"),)
"""The series that takes what a cardinality limit turns away (OpenTelemetry metrics SDK)."""


class Identity(NamedTuple):
    """A model, one of its versions, where it stands and whose data it sees."""

    model: str
    version: str = ""
    stage: str = ""
    data_source: str = ""

    def attributes(self, **more: str) -> Attributes:
        """The identity as attributes, empty ones left out, then `more`.

        >>> Identity("fraud", "2.1").attributes(feature="age")
        (('model', 'fraud'), ('version', '2.1'), ('feature', 'age'))
        """
        return attributes(**self._asdict(), **more)
