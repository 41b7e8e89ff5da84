"""The Serving Health Index: how well a model is served, and its parts."""

from __future__ import annotations

import math

from tidegauge.health.history import History
from tidegauge.stats.correlation import LEAST

RECENT = 4
"""Steps that make up the present."""

WORST_ERRORS = 0.1
"""Share of failed requests at which nothing is left of that part."""

Parts = dict[str, float]


def parts(history: History) -> Parts:
    """From 1, well, to 0, of what is known:

    - latency: the median of the window's steps over that of the present ones, 1 at most,
    - errors: 1 less the share of failed requests, as a share of WORST_ERRORS,
    - data: the share of judged features that have not drifted,
    - model: the share of outputs that have not drifted,
    - machine: 1 less the share of time with clocks held down by heat or supply; 0 where a GPU is lost.
    """
    usual, now = history.usual("latency", LEAST), history.recent("latency", RECENT)
    failed = history.recent("error_ratio", RECENT)
    throttled, lost = history.recent("gpu_throttling", RECENT), history.recent("gpu_failed", RECENT)
    found = {
        "latency": usual / now if now else math.nan,
        "errors": 1.0 - failed / WORST_ERRORS,
        "data": 1.0 - history.recent("drifted_features", RECENT),
        "model": 1.0 - history.recent("drifted_outputs", RECENT),
        "machine": 1.0 - (max(throttled, lost) if throttled == throttled else lost),
    }
    return {name: min(max(value, 0.0), 1.0) for name, value in found.items() if not math.isnan(value)}


def index(found: Parts) -> float:
    """Their geometric mean: one part at 0 makes it 0, whatever the others. Of no parts: NaN."""
    return math.prod(found.values()) ** (1 / len(found)) if found else math.nan
