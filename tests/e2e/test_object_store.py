"""References and backtests from an object store: S3's protocol, as moto's server speaks it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.e2e

KEYS = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.fixture
def query(
    tool: Callable[[str, str], Path],
    start_process: Callable[..., Any],
    until: Callable[..., Any],
    get: Callable[..., str],
    free_port: int,
) -> str:
    """A store that listens, as the end of a URI."""
    python = tool("moto", "bin/python")
    start_process("moto", [str(python), "-m", "moto.server", "-H", "127.0.0.1", "-p", str(free_port)], {})

    def listens() -> bool:
        try:
            return bool(get(f"http://127.0.0.1:{free_port}/"))
        except URLError:
            return False

    until(listens)
    return f"?endpoint_override=127.0.0.1:{free_port}&scheme=http&region=us-east-1"


@pytest.fixture
def lake(query: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows in the bucket `lake` and under `tmp_path/lake`, in folders by region."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    store, _ = pafs.FileSystem.from_uri(f"s3://lake{query}&allow_bucket_creation=true")
    store.create_dir("lake")
    rng = np.random.default_rng(0)
    for region in ("eu", "us"):
        seconds = 1_780_272_000 + np.sort(rng.uniform(0, 7_200, 4_000))
        rows = pa.table({"timestamp": seconds, "age": rng.normal(size=4_000)})
        local = tmp_path / "lake" / "train" / f"region={region}"
        local.mkdir(parents=True)
        pq.write_table(rows, local / "0.parquet", row_group_size=1_500)
        with store.open_output_stream(f"lake/train/region={region}/0.parquet") as file:
            file.write((local / "0.parquet").read_bytes())


def tidegauge(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tidegauge", *arguments]
    return subprocess.run(
        command, cwd=folder, env=os.environ, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.usefixtures("lake")
def test_a_bucket_gives_the_reference_that_its_files_give(query: str, tmp_path: Path) -> None:
    made = []
    ways = ("lake/train", f"s3://lake/train{query}", f"s3://lake/train/region=*/*.parquet{query}")
    for data in ways:
        done = tidegauge(
            tmp_path, "reference", "build", data, "--model", "m", "-o", "r.parquet", "--partitions"
        )
        assert done.returncode == 0, done.stderr
        assert "8000 rows, 2 columns" in done.stdout
        made.append((tmp_path / "r.parquet").read_bytes())
    assert len(set(made)) == 1
    done = tidegauge(
        tmp_path, "backtest", f"s3://lake/train{query}", "--reference", "r.parquet", "--partitions"
    )
    assert done.returncode == 0, done.stderr
    assert "8,000 rows from 2026-06-01T00:00" in done.stdout
    assert "sorting" in done.stderr  # the regions' files overlap in time


@pytest.mark.usefixtures("lake")
def test_what_is_not_in_the_store_is_told(query: str, tmp_path: Path) -> None:
    for data, told in (
        (f"s3://lake/nothing{query}", "no such file"),
        (f"s3://nolake/x{query}", "no such file"),
    ):
        done = tidegauge(tmp_path, "reference", "build", data, "--model", "m", "-o", "r.parquet")
        assert done.returncode == 1
        assert told in done.stderr
