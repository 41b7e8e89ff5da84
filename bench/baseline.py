"""What it costs that the image's kernels are compiled for any CPU: beside the same for this machine's.

`python -m bench.baseline` measures one of the two, as NUMBA_CPU_NAME says, and prints it as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from bench.figure import Figure
from bench.payload import SPANS, span_request
from tidegauge.config import IdentityAttributes, Timings
from tidegauge.layout import layout_of
from tidegauge.processors.drift.counts import Counts, Plan, Tables
from tidegauge.reference import ReferenceBuilder
from tidegauge.wire.attributes import Keys
from tidegauge.wire.counts import count_records
from tidegauge.wire.traces import scan

ROWS, COLUMNS = 4096, 50
GENERIC = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
WHAT = {"spans": ("OTLP spans → columns", "M spans/core-s"), "values": ("rows → bins", "M values/core-s")}


def measure(rounds: int) -> Iterator[Figure]:
    """The two in turn, so that they meet the same machine; the first round finds the cache, or fills it."""
    found = [(_asked(GENERIC), _asked({})) for _ in range(rounds + 1)][1:]
    for key, (what, unit) in WHAT.items():
        generic, native = ([one[place][key] for one in found] for place in (0, 1))
        yield Figure(f"{what}, compiled for any CPU", unit, generic, "for this CPU", native)


def _asked(environ: dict[str, str]) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.baseline"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_CPU_")}
    done = subprocess.run(command, env=inherited | environ, check=True, stdout=subprocess.PIPE)
    return dict(json.loads(done.stdout))


def _rate(step: Callable[[], object], repeats: int, items: int) -> float:
    step()
    begin = time.thread_time()
    for _ in range(repeats):
        step()
    return repeats * items / (time.thread_time() - begin) / 1e6


def _folding() -> Callable[[], None]:
    """One batch into counts on 20 bins a column."""
    random = np.random.default_rng(7)
    rows = pa.RecordBatch.from_pydict({f"f{n}": random.normal(n, 1 + n, ROWS) for n in range(COLUMNS)})
    builder = ReferenceBuilder(bins=20, max_categories=100)
    builder.update(rows, layout_of(rows.schema))
    tables = Tables(builder.build("bench", "1", "file"))
    plan, counts = Plan(layout_of(rows.schema), rows.schema, tables), Counts(tables)
    return lambda: plan.fold([plan.prepare(rows, counts)], counts)


def main() -> None:
    raw, keys = span_request(), Keys.of(IdentityAttributes(), Timings())
    rates = {
        "spans": _rate(lambda: scan(raw, count_records(raw), keys), 1000, SPANS),
        "values": _rate(_folding(), 300, ROWS * COLUMNS),
    }
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
