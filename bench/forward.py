"""Appends to the disk queue, beside SQLite doing the same, and how long they keep the event loop."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop

from bench.figure import Figure
from bench.payload import span_request
from tidegauge.batch import Signal
from tidegauge.config import Destination, DiskQueue
from tidegauge.exporters.channel import Collector
from tidegauge.exporters.forward import Forwarder
from tidegauge.telemetry import Telemetry
from tidegauge.units import Allowance

SENDERS = 8
"""Requests that wait for their answer at the same time, and rows of one transaction in SQLite."""

REQUESTS = 6000

_TICK_S = 0.002  # how often the loop is looked at, which must not itself keep it busy


def measure(rounds: int) -> Iterator[Figure]:
    """MB/s that senders are answered for, default durability, and the loop's longest pause meanwhile.

    SQLite gets its rows in transactions of SENDERS, as groups come to the queue under load.
    """
    request = span_request()
    nbytes = REQUESTS * len(request)
    own, pauses = [], []
    normal, off = [], []
    sys.setswitchinterval(0.0005)  # as the agent does
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            took_s, pause_s = uvloop.run(_append(Path(folder), request))
            own.append(nbytes / took_s / 1e6)
            pauses.append(pause_s * 1e3)
        normal.append(nbytes / _sqlite(request, "NORMAL") / 1e6)
        off.append(nbytes / _sqlite(request, "OFF") / 1e6)
    what = f"disk queue, {REQUESTS} appends of {len(request) // 1000} kB"
    yield Figure(what, "MB/s", own, "SQLite, WAL, synchronous NORMAL", normal)
    yield Figure(what, "MB/s", own, "SQLite, WAL, synchronous OFF", off)
    yield Figure("event loop's longest pause meanwhile", "ms", pauses, less=True)


async def _append(folder: Path, request: bytes) -> tuple[float, float]:
    """Seconds until all are answered for, and the longest time between two turns of the loop."""
    settings = Destination(
        endpoint="http://127.0.0.1:9",  # nothing listens there
        disk_queue=DiskQueue(size=Allowance("8GiB")),
    )
    async with Collector(settings) as collector:
        forwarder = Forwarder(collector, Telemetry(), settings, folder=folder / "queue", drain_s=0.1)
        async with forwarder:
            pause = asyncio.create_task(_longest_pause())
            begin = time.perf_counter()
            await asyncio.gather(*(_send(forwarder, request) for _ in range(SENDERS)))
            took_s = time.perf_counter() - begin
            pause.cancel()
            await asyncio.wait({pause})
            return took_s, _longest_s.pop()


async def _send(forwarder: Forwarder, request: bytes) -> None:
    for _ in range(REQUESTS // SENDERS):
        answer = forwarder.offer(Signal.TRACES, request, 512)
        assert answer is not None
        await answer


_longest_s: list[float] = []


async def _longest_pause() -> None:
    longest_s = 0.0
    last_s = time.perf_counter()
    try:
        while True:
            await asyncio.sleep(_TICK_S)
            now_s = time.perf_counter()
            longest_s, last_s = max(longest_s, now_s - last_s - _TICK_S), now_s
    finally:
        _longest_s.append(longest_s)


def _sqlite(request: bytes, synchronous: str) -> float:
    """Seconds for the same rows in SQLite."""
    with tempfile.TemporaryDirectory() as folder:
        base = sqlite3.connect(Path(folder, "queue.db"), isolation_level=None)
        base.execute("PRAGMA journal_mode=WAL")
        base.execute(f"PRAGMA synchronous={synchronous}")
        base.execute("CREATE TABLE queue (id INTEGER PRIMARY KEY, items INTEGER, request BLOB)")
        begin = time.perf_counter()
        for _ in range(REQUESTS // SENDERS):
            base.execute("BEGIN")
            base.executemany("INSERT INTO queue (items, request) VALUES (?, ?)", [(512, request)] * SENDERS)
            base.execute("COMMIT")
        took_s = time.perf_counter() - begin
        base.close()
    return took_s
