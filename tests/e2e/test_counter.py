"""A counter over a stop and a kill of the agent, as a real Prometheus reads it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.e2e

SERIES = 'prediction_histogram_bucket{output="score",le="+Inf"}'


def send(port: int, count: int) -> None:
    table = pa.table({"score": np.random.default_rng(count).random(count)})
    with fl.FlightClient(f"grpc://127.0.0.1:{port}") as client:
        writer, _ = client.do_put(fl.FlightDescriptor.for_path("records", "m", "1"), table.schema)
        writer.write_batch(table.to_batches()[0])
        writer.close()


def increase(samples: list[float]) -> float:
    """What Prometheus takes a counter to have grown by: a value that falls began again at 0."""
    return sum(now - before if now >= before else now for before, now in pairwise(samples))


def test_a_stop_is_no_reset_and_a_kill_is_one_that_counts_no_row_twice(
    start_agent: Callable[..., Any],
    start_prometheus: Callable[..., Any],
    folder: Callable[[], Path],
    until: Callable[..., Any],
) -> None:
    train, reference = folder() / "train.parquet", folder() / "m.parquet"
    pq.write_table(pa.table({"score": np.random.default_rng(0).random(5_000)}), train)
    build = ["reference", "build", str(train), "--model", "m", "--version", "1", "-o", str(reference)]
    subprocess.run([sys.executable, "-m", "tidegauge", *build], check=True, capture_output=True)
    agent = start_agent(
        references=[{"model": "m", "version": "1", "path": str(reference)}],
        state_dir=str(folder() / "state"),
        drift={"checkpoint_interval": "1s"},
    )
    prometheus = start_prometheus(agent.pages)
    sent = 0

    def scraped(value: float) -> None:
        until(lambda: prometheus.value(SERIES) == value)

    for count in (1_000, 300):
        send(agent.grpc, count)
        sent += count
        scraped(sent)
        assert agent.end() == 0
        agent.start()
        scraped(sent)
    assert prometheus.value(f"resets({SERIES}[5m])") == 0
    agent.kill()
    agent.start()
    scraped(0)
    send(agent.grpc, 200)
    scraped(200)
    assert prometheus.value(f"resets({SERIES}[5m])") == 1
    [series] = prometheus.api("query", query=f"{SERIES}[5m]")["result"]
    values = [float(value) for _, value in series["values"]]
    assert values[0] + increase(values) == sent + 200
    # The window has them all: it is a gauge.
    until(lambda: prometheus.value('sum(prediction_window_count{output="score"})') == sent + 200)
