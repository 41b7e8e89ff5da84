"""The drift state of models with full windows: what a checkpoint costs the fold thread and its own.

Beside Python's pickle of the same arrays, written and synced alike.
"""

from __future__ import annotations

import os
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from bench.figure import Figure
from tidegauge.batch import Records
from tidegauge.config import Drift as Settings
from tidegauge.identity import Identity
from tidegauge.layout import layout_of
from tidegauge.processors.drift.checkpoint import DriftState
from tidegauge.processors.drift.drift import Drift
from tidegauge.profile import Reference
from tidegauge.reference import ReferenceBuilder
from tidegauge.statefile import StateFile
from tidegauge.units import Duration

FEATURES, ROWS, SLICES = 100, 200, 20
SETTINGS = Settings(other_windows=(Duration("5m"), Duration("24h")))
BEGIN_NS, MINUTE_NS = 1_800_000_000 * 10**9, 60 * 10**9


def measure(rounds: int, models: int) -> Iterator[Figure]:
    """Milliseconds and megabytes of all models together, three windows each, without slices and with them."""
    for slices in (0, SLICES):
        yield from _measure(rounds, models, slices)


def _measure(rounds: int, models: int, slices: int) -> Iterator[Figure]:
    random = np.random.default_rng(0)
    references = [_reference(random, f"model{number}") for number in range(models)]
    drift = Drift(SETTINGS, references)
    _fill(drift, models, slices, random)
    what = f"drift state of {models} models x {FEATURES} features x 3 windows"
    if slices:
        what += f", {slices} slices each"
    yield Figure(f"{what}: capture, fold thread", "ms", [_ms(drift.capture) for _ in range(rounds)])
    state = drift.capture()
    with tempfile.TemporaryDirectory() as folder:
        file, other = StateFile(folder, "drift"), Path(folder, "pickled")
        writes = [_ms(lambda: file.write(state.frames())) for _ in range(rounds)]
        pickles = [_ms(lambda: _pickle(state, other)) for _ in range(rounds)]
        yield Figure(f"{what}: encode, write and sync", "ms", writes, "pickle", pickles, less=True)
        sizes = [[Path(folder, name).stat().st_size / 1e6] for name in ("drift.state", "pickled")]
        yield Figure(f"{what}: size", "MB", sizes[0], "pickle", sizes[1], less=True)
        fresh = [Drift(SETTINGS, references) for _ in range(rounds)]
        restores = [_ms(lambda one=one: one.restore(file.read(), complete=True)) for one in fresh]  # type: ignore[misc]
        yield Figure(f"{what}: restore", "ms", restores)


def _reference(random: np.random.Generator, model: str) -> Reference:
    builder = ReferenceBuilder(bins=20, max_categories=100)
    rows = _rows(random, 2_000)
    builder.update(rows, layout_of(rows.schema))
    return builder.build(model, "1", "file")


def _rows(random: np.random.Generator, count: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({f"f{number}": random.normal(size=count) for number in range(FEATURES)})


def _sliced(rows: pa.RecordBatch, slices: int, random: np.random.Generator) -> pa.RecordBatch:
    """The rows with two segment columns of half as many values each."""
    for name in ("region", "tier") if slices else ():
        field = pa.field(name, pa.string(), metadata={"role": "segment"})
        rows = rows.append_column(field, pa.array(random.integers(0, slices // 2, len(rows)).astype(str)))
    return rows


def _fill(drift: Drift, models: int, slices: int, random: np.random.Generator) -> None:
    """A day and a bit every five minutes, then a window of five every 25 seconds: each pane has rows."""
    times = [BEGIN_NS + 5 * minute * MINUTE_NS for minute in range(26 * 12)]
    times += [times[-1] + 25 * step * 10**9 for step in range(1, 13)]
    for now_ns in times:
        rows = _sliced(_rows(random, ROWS), slices, random)
        layout = layout_of(rows.schema)
        for number in range(models):
            identity = Identity(f"model{number}", "1")
            drift.update(Records("bench", identity, layout, rows, now_ns, rows.nbytes))


def _pickle(state: DriftState, path: Path) -> None:
    content = [
        [
            *(pane.arrays() for pane in one.window.panes.held.values()),
            *(recent._asdict() for recent in one.alarms.recent),
            *(() if one.rows is None else one.rows.panes.items()),
            *(
                pane.arrays()
                for its in one.segments
                for part in its.slices
                for pane in part.panes.held.values()
            ),
        ]
        for one in state.identities
    ]
    with path.open("wb") as file:
        pickle.dump(content, file, protocol=5)
        file.flush()
        os.fsync(file.fileno())


def _ms(step: Callable[[], object]) -> float:
    begin = time.perf_counter()
    step()
    return (time.perf_counter() - begin) * 1e3
