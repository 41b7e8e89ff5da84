"""Start-up time, and what an idle agent takes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator

from bench.figure import Figure
from bench.process import Agent

SETTLE_S = 3


def measure(rounds: int, seconds: int) -> Iterator[Figure]:
    """From the process's start to /readyz, and RssAnon and CPU of an agent that gets nothing."""
    with tempfile.TemporaryDirectory() as cold, Agent(environ={"NUMBA_CACHE_DIR": cold}) as agent:
        yield Figure("start to /readyz, kernels to compile", "s", [agent.ready_s])
    ready, memory, cpu = [], [], []
    for _ in range(rounds):
        with Agent() as agent:
            ready.append(agent.ready_s)
            time.sleep(SETTLE_S)
            memory.append(agent.anonymous_mb())
            begin = agent.cpu_s()
            time.sleep(seconds)
            cpu.append((agent.cpu_s() - begin) / seconds * 100)
    yield Figure("start to /readyz, kernels cached", "s", ready)
    yield Figure("anonymous memory, idle", "MB", memory)
    yield Figure("CPU, idle", "% of a core", cpu)
