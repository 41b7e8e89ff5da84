"""What rules and dashboards are made for: models, their columns, thresholds and objectives."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

from tidegauge.exporters.buckets import SECONDS, classic_bounds

BESIDE = ("window", "baseline", "reference")
"""Labels of what stands beside drift.window against the reference."""

PROPER = ",".join(f'{label}=""' for label in BESIDE)
"""Selects drift.window against the reference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """A model that is to be there, with its columns."""

    model: str
    version: str = ""
    features: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def labels(self) -> tuple[tuple[str, str], ...]:
        """What selects its series."""
        pairs = (("model", self.model), ("version", self.version))
        return tuple(pair for pair in pairs if pair[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All that differs from one place to another; the defaults are those of the shipped files.

    `psi` and `min_rows` are `drift.threshold` and `drift.min_rows`; `stale_s` is the age of statistics that
    is too old; objectives are shares of requests; `prediction_change` is a share of the day before's mean.
    """

    psi: float = 0.1
    min_rows: int = 200
    stale_s: float = 60.0
    score: float = 0.3
    prediction_change: float = 0.2
    mean_latency_s: float = 0.5
    latency_s: float = 0.5
    latency_objective: float = 0.99
    error_objective: float = 0.999
    gpu_celsius: float = 87.0
    gpu_memory: float = 0.97
    features: tuple[str, ...] = ()
    models: tuple[Watched, ...] = ()


def latency_bound(seconds: float) -> float:
    """The bound of a classic bucket of latency that is not below `seconds`: requests are counted at these.

    >>> latency_bound(0.5), latency_bound(0.3)
    (0.5, 0.35355339059327373)

    Raises:
        ValueError: above the last one, 32 s.
    """
    bounds = classic_bounds(SECONDS)
    place = bisect.bisect_left(bounds, seconds)
    if not 0 < seconds < math.inf or place == len(bounds):
        raise ValueError(f"{seconds:g} s is not above 0 and at most {bounds[-1]:g} s")
    return bounds[place]


def number(value: float) -> str:
    """A number as PromQL has it, without what floating point adds.

    >>> number(14.4 * (1 - 0.999)), number(200)
    ('0.0144', '200')
    """
    return f"{value:.10g}"
