"""A reference built by a real Dask cluster of two workers."""

from __future__ import annotations

import builtins

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest


@pytest.fixture
def lake(tmp_path):
    """Files whose schemas differ, so that the order in which they are merged could show."""
    rng = np.random.default_rng(0)
    (tmp_path / "lake").mkdir()
    for number in range(7):
        columns = {"age": rng.normal(size=4_000), "country": rng.choice(list("abcdef"), 4_000)}
        if number % 2:
            columns = {"late": rng.integers(0, 9, 4_000)} | columns
        pq.write_table(pa.table(columns), tmp_path / "lake" / f"{number}.parquet")
    return tmp_path / "lake"


@pytest.fixture
def scheduler(monkeypatch):
    distributed = pytest.importorskip("distributed", reason="dask is not installed")
    # One process: a second interpreter with numba takes seconds, and the protocol is the same.
    settings = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(protocol="tcp", host="127.0.0.1", **settings) as cluster:
        yield cluster.scheduler_address


def test_a_cluster_gives_the_same_bytes(command, tmp_path, lake, scheduler):
    arguments = ("reference", "build", "lake", "--model", "m")
    assert command(*arguments, "-o", "here.parquet").exit_code == 0
    done = command(*arguments, "-o", "there.parquet", "--engine", "dask", "--scheduler", scheduler)
    assert done.exit_code == 0, done.stderr
    assert "on 2 threads" in done.stderr
    assert (tmp_path / "here.parquet").read_bytes() == (tmp_path / "there.parquet").read_bytes()


def test_a_workers_error_is_told_as_ours_is(command, tmp_path, lake, scheduler):
    (lake / "8.parquet").write_text("no rows")
    done = command(
        *("reference", "build", "lake", "--model", "m", "-o", "o.parquet"),
        *("--engine", "dask", "--scheduler", scheduler),
    )
    assert done.exit_code == 1
    assert "8.parquet: " in done.stderr
    assert "Parquet" in done.stderr


def test_a_scheduler_that_is_not_there_is_told(command, lake, monkeypatch):
    cluster = pytest.importorskip("tidegauge.cli.cluster")
    pytest.importorskip("distributed", reason="dask is not installed")
    monkeypatch.setattr(cluster, "ANSWER_S", 0.5)
    done = command(
        *("reference", "build", "lake", "--model", "m", "-o", "o.parquet"),
        *("--engine", "dask", "--scheduler", "tcp://127.0.0.1:1"),
    )
    assert done.exit_code == 1
    assert "no Dask scheduler answers at tcp://127.0.0.1:1" in done.stderr
    assert "leave --scheduler out" in done.stderr


def test_without_dask_the_extra_is_named(command, lake, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("dask"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    done = command("reference", "build", "lake", "--model", "m", "-o", "o.parquet", "--engine", "dask")
    assert done.exit_code == 1
    assert "pip install 'tidegauge[dask]'" in done.stderr
