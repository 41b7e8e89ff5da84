"""Record batches through Flight into drift statistics, beside six peers and gRPC alone."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from bench import peers
from bench.bare import BareServer
from bench.figure import Figure
from bench.payload import COLUMNS, ROWS, write_batches
from bench.process import Agent
from bench.sender import run
from tidegauge.batch import Records
from tidegauge.config import Drift as Settings
from tidegauge.identity import Identity
from tidegauge.layout import layout_of
from tidegauge.processors.drift.drift import Drift

SMALL_ROWS, MORE = 100, 5
"""Rows of small batches, and how many times as many of them are sent."""

_WARM_UP_ROWS = 65_536


def measure(rounds: int, batches: int) -> Iterator[Figure | str]:
    """Figures of large and of small batches, and a sentence where a peer is missing."""
    for rows, count in ((ROWS, batches), (SMALL_ROWS, MORE * batches)):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "batches.arrows")
            write_batches(file, rows)
            yield from _measure(file, rows, rounds, count)


def _measure(file: Path, rows: int, rounds: int, batches: int) -> Iterator[Figure | str]:
    rates, walls = _agent(file, rows, rounds, batches)
    what, unit = f"Flight → drift, {rows} x {COLUMNS} float64", "M values/core-s"
    yield Figure(f"{what}, wall clock", "M values/s", walls)
    yield Figure(what, unit, rates, "gRPC alone: reads and answers", _bare(file, rows, rounds, batches))
    own = _in_process(file, rows, rounds)
    try:
        found = peers.measure("peer_drift.py", file, rounds)
    except peers.MissingError as missing:
        yield str(missing)
        return
    for peer, peer_rates in found.items():
        if isinstance(peer_rates, str):
            yield f"{peer} does not run: {peer_rates}"
            continue
        theirs = [rate / 1e6 for rate in peer_rates]
        yield Figure(what, unit, rates, peer, theirs)
        yield Figure(f"the same, handed over as they are, {rows} x {COLUMNS}", unit, own, peer, theirs)


def _agent(file: Path, rows: int, rounds: int, batches: int) -> tuple[list[float], list[float]]:
    """Millions of values per CPU second of the agent, and per second of the sender, of each round."""
    rates, walls, values = [], [], batches * rows * COLUMNS / 1e6
    with Agent() as agent:
        # The first rows become the reference; they and the first windows are not measured.
        sent = _WARM_UP_ROWS // rows
        run("records", agent.grpc, sent, file)
        agent.wait_for(sent * rows, "tidegauge_folded_total", signal="records")
        for _ in range(rounds):
            begin = agent.cpu_s()
            wall_s = run("records", agent.grpc, batches, file)
            sent += batches
            agent.wait_for(sent * rows, "tidegauge_folded_total", signal="records")
            rates.append(values / (agent.cpu_s() - begin))
            walls.append(values / wall_s)
    return rates, walls


def _in_process(file: Path, rows: int, rounds: int) -> list[float]:
    """As the peers get them: the batches are there, and only the CPU time of folding them counts."""
    with pa.OSFile(str(file), "rb") as source, pa.ipc.open_stream(source) as stream:
        layout, batches = layout_of(stream.schema), list(stream)
    times = max(1, 16_384 // (rows * len(batches)))
    drift, rates = Drift(Settings()), []
    for number in range(rounds + 1):
        now = time.time_ns()
        content = [Records("bench", Identity("m", "1"), layout, one, now, one.nbytes) for one in batches]
        begin = time.thread_time()
        for _ in range(times if number else _WARM_UP_ROWS // (rows * len(batches)) + 1):
            drift.update(*content)
        spent = time.thread_time() - begin
        if number:
            rates.append(times * len(batches) * rows * COLUMNS / 1e6 / spent)
    return rates


def _bare(file: Path, rows: int, rounds: int, batches: int) -> list[float]:
    rates = []
    with BareServer() as server:
        run("records", server.grpc, 16, file)
        for _ in range(rounds):
            begin = server.cpu_s()
            run("records", server.grpc, batches, file)
            rates.append(batches * rows * COLUMNS / 1e6 / (server.cpu_s() - begin))
    return rates
