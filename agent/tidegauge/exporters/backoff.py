"""How long to wait before a request is tried again."""

from __future__ import annotations

import random

MULTIPLIER = 1.5
JITTER = 0.5


class Backoff:
    """Waits that grow by half each time, each drawn from within ±50 %, as the Collector's do.

    The Collector's defaults (exporterhelper): initial 5 s, at most 30 s.
    """

    def __init__(self, initial_s: float = 5.0, max_s: float = 30.0) -> None:
        self._initial_s = initial_s
        self._max_s = max_s
        self._next_s = initial_s

    def reset(self) -> None:
        """Start over, after a success."""
        self._next_s = self._initial_s

    def next_s(self) -> float:
        """The next wait, in seconds."""
        wait_s = self._next_s * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - no secret
        self._next_s = min(self._next_s * MULTIPLIER, self._max_s)
        return wait_s
