"""Work that pauses lets others in."""

from __future__ import annotations

import threading
import time

from tidegauge.exporters.pause import Pause


def test_long_work_gives_the_processor_up_each_time_it_is_asked() -> None:
    pause = Pause()
    switches = _voluntary_switches()
    for _ in range(20):
        until = time.perf_counter() + 1e-3
        while time.perf_counter() < until:
            pass
        pause()
    assert _voluntary_switches() - switches >= 20


def _voluntary_switches() -> int:
    """How often this thread has given up the processor by itself."""
    with open(f"/proc/self/task/{threading.get_native_id()}/status") as status:
        [line] = [line for line in status if line.startswith("voluntary_ctxt_switches")]
    return int(line.split()[1])
