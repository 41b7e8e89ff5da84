"""Record batches through Flight into drift statistics, beside NannyML and whylogs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench import peers
from bench.figure import Figure
from bench.payload import COLUMNS, ROWS, write_batches
from bench.process import Agent
from bench.sender import run

VALUES = ROWS * COLUMNS


def measure(rounds: int, batches: int) -> Iterator[Figure | str]:
    """Figures, and a sentence where a peer is missing."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "batches.arrows")
        write_batches(file)
        rates, walls = _agent(file, rounds, batches)
        what = f"Flight → drift, {ROWS} x {COLUMNS} float64"
        yield Figure(f"{what}, wall clock", "M values/s", [wall / 1e6 for wall in walls])
        try:
            found = peers.measure(file, rounds)
        except peers.MissingError as missing:
            yield Figure(what, "M values/core-s", [rate / 1e6 for rate in rates])
            yield str(missing)
            return
        for peer, peer_rates in found.items():
            own, other = ([rate / 1e6 for rate in these] for these in (rates, peer_rates))
            yield Figure(what, "M values/core-s", own, peer, other)


def _agent(file: Path, rounds: int, batches: int) -> tuple[list[float], list[float]]:
    """Values per CPU second of the agent, and per second of the sender, of each round."""
    rates, walls = [], []
    with Agent() as agent:
        # The first rows become the reference; they and the first windows are not measured.
        sent = 16
        run("records", agent.grpc, sent, file)
        agent.wait_for(sent * ROWS, "tidegauge_folded_total", signal="records")
        for _ in range(rounds):
            begin = agent.cpu_s()
            wall_s = run("records", agent.grpc, batches, file)
            sent += batches
            agent.wait_for(sent * ROWS, "tidegauge_folded_total", signal="records")
            rates.append(batches * VALUES / (agent.cpu_s() - begin))
            walls.append(batches * VALUES / wall_s)
    return rates, walls
