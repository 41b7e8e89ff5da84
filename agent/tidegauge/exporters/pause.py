"""Long work in Python on a thread, without keeping the event loop waiting."""

from __future__ import annotations

import time

_EVERY_S = 0.5e-3
_FOR_S = 50e-6
"""As long as it takes a waiting thread to wake. `sleep(0)` gives the interpreter lock up, but has it back
before anybody else could take it, and the others then wait for the switch interval, 5 ms."""


class Pause:
    """Called often, sleeps for a moment twice a millisecond. One for each piece of work."""

    def __init__(self) -> None:
        self._last_s = time.perf_counter()

    def __call__(self) -> None:
        if time.perf_counter() - self._last_s > _EVERY_S:
            time.sleep(_FOR_S)
            self._last_s = time.perf_counter()
