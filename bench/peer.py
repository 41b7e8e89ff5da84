"""What the scripts in the peers' environment share; it knows nothing of the agent."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable

Found = dict[str, list[float] | str]
"""Of each peer its figures, one per round, or why there are none."""

logging.disable(logging.CRITICAL)


def rates(values: int, rounds: int, work: Callable[[], object]) -> list[float]:
    """Values per CPU second, of the process with all its threads, once per round."""
    work()  # imports and caches
    found = []
    for _ in range(rounds):
        begin = time.process_time()
        work()
        found.append(values / (time.process_time() - begin))
    return found


def report(found: Found) -> None:
    """Tell it on the last line of the standard output."""
    print("\n" + json.dumps(found))
