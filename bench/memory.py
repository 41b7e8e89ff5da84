"""Anonymous memory of the agent with 20 models of 100 features, every pane of three windows in use."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl

from bench.figure import Figure
from bench.process import Agent

MODELS, FEATURES, ROWS = 20, 100, 500
REFERENCE_ROWS = 5_000

_WINDOWS_S = (86_400, 3_600, 300)
_PANES = 12


def measure(seconds: int) -> Iterator[Figure]:
    """Before any record, and the most in some seconds of publishing, scraping and more records after."""
    with Agent({"drift": {"other_windows": ["5m", "24h"]}}) as agent:
        time.sleep(2)
        idle = agent.anonymous_mb()
        for model in range(MODELS):
            send(agent.grpc, f"model-{model}", ages(), seed=model)
        most = 0.0
        begin = time.monotonic()
        while time.monotonic() < begin + seconds:
            send(agent.grpc, "model-0", [0.0], seed=0)
            agent.scrape()
            most = max(most, agent.anonymous_mb())
            time.sleep(1)
        settled = agent.anonymous_mb()
        series = sum(not line.startswith("#") for line in agent.text().splitlines())
    what = f"{MODELS} models x {FEATURES} features x {len(_WINDOWS_S)} windows of {_PANES} panes"
    yield Figure("anonymous memory without records", "MB", [idle])
    yield Figure(f"anonymous memory, {what}", "MB", [most])
    yield Figure(f"the same once it has settled, {what}", "MB", [settled])
    yield Figure(f"series of these on /metrics, {what}", "series", [float(series)])


def ages() -> list[float]:
    """How old rows are for each pane of each window to have some, the oldest first: seconds."""
    found = {window * pane / _PANES for window in _WINDOWS_S for pane in range(_PANES)}
    return sorted(found, reverse=True)


def send(port: int, model: str, ages_s: list[float], seed: int) -> None:
    """The rows of a reference first, a day old, then a batch for each age."""
    random = np.random.default_rng(seed)
    names = [f"f{feature:03}" for feature in range(FEATURES)]
    schema = pa.schema(dict.fromkeys(names, pa.float32()) | {"timestamp": pa.timestamp("ns")})
    now_ns = time.time_ns()
    with fl.FlightClient(f"grpc://127.0.0.1:{port}") as client:
        writer, reader = client.do_put(fl.FlightDescriptor.for_path("records", model, "1"), schema)
        for rows, age_s in [(REFERENCE_ROWS, 86_400.0)] * (len(ages_s) > 1) + [(ROWS, age) for age in ages_s]:
            times = np.full(rows, now_ns - int(age_s * 1e9))
            values = random.normal(size=(FEATURES, rows)).astype(np.float32)
            columns = [*map(pa.array, values), pa.array(times, pa.timestamp("ns"))]
            writer.write_batch(pa.record_batch(columns, schema=schema))
            reader.read()  # type: ignore[attr-defined]
        writer.close()
