"""The command line: references from every format, errors that teach, exit statuses."""

from __future__ import annotations

import logging
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from tidegauge.cli import root
from tidegauge.cli.run import OneLine
from tidegauge.profile import Reference


def tidegauge(*arguments, cwd=None):
    command = [sys.executable, "-m", "tidegauge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300, check=False)


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "age": rng.normal(size=5_000),
            "region": rng.integers(1, 4, 5_000),
            "country": rng.choice(["de", "fr"], 5_000),
            "score": rng.random(5_000),
        }
    )


def test_every_format_gives_the_same_reference(tmp_path, table):
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=700)
    pyarrow.csv.write_csv(table, tmp_path / "t.csv")
    pyarrow.feather.write_feather(table, tmp_path / "t.arrow", compression="uncompressed")
    with pa.ipc.new_stream(str(tmp_path / "t.arrows"), table.schema) as stream:
        stream.write_table(table, max_chunksize=999)
    parts = tmp_path / "parts"
    parts.mkdir()
    for number, piece in enumerate(table.to_batches(2_000)):
        pq.write_table(pa.table(piece), parts / f"{number}.parquet")
    made = []
    for data in ("t.parquet", "t.csv", "t.arrow", "t.arrows", "parts", "parts/*.parquet"):
        output = tmp_path / "out.parquet"
        arguments = ("--model", "fraud", "--version", "2.1", "--categorical", "region", "-o", output)
        done = tidegauge("reference", "build", data, *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "5000 rows, 4 columns of fraud 2.1" in done.stdout
        assert "100 %" in done.stderr
        made.append(output.read_bytes())
    assert len(set(made)) == 1
    shown = tidegauge("reference", "show", tmp_path / "out.parquet")
    assert shown.returncode == 0
    for text in ("fraud 2.1: 5000 rows", "age", "categorical", "de, fr", "median about"):
        assert text in shown.stdout


def test_columns_that_cannot_be_watched_can_be_left_out(tmp_path, table):
    odd = table.append_column("when", pa.array([0] * len(table), pa.date32()))
    pq.write_table(odd, tmp_path / "t.parquet")
    arguments = ("reference", "build", tmp_path / "t.parquet", "--model", "m", "-o", tmp_path / "o.parquet")
    refused = tidegauge(*arguments)
    assert refused.returncode == 1
    assert "'when'" in refused.stderr
    assert "--ignore" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert tidegauge(*arguments, "--ignore", "when").returncode == 0
    names = {profile.name for profile in Reference.load(tmp_path / "o.parquet").profiles}
    assert names == {"age", "region", "country", "score"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("none.parquet",), "none.parquet: no such file"),
        (("readme.txt",), "must end in one of .parquet"),
        (("broken.parquet",), "broken.parquet"),
        (("t.parquet", "--ignore", "nobody"), "no column is called 'nobody'"),
        (("t.parquet", "-o", "no/where.parquet"), "no/where.parquet cannot be written"),
    ],
)
def test_user_errors_are_one_line_without_a_stack_trace(tmp_path, table, arguments, told):
    pq.write_table(table, tmp_path / "t.parquet")
    (tmp_path / "readme.txt").write_text("hello")
    (tmp_path / "broken.parquet").write_text("hello")
    done = tidegauge("reference", "build", "-o", "o.parquet", "--model", "m", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "o.parquet").exists()


def test_check_tells_all_or_ok(tmp_path, table):
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("drift: {window: 10m}")
    bad.write_text("drift: {windw: 10m, panes: 0}\nreferences: [{model: m, path: none.parquet}]")
    assert tidegauge("check", good).stdout.splitlines()[0] == f"{good}: ok"
    done = tidegauge("check", bad)
    assert done.returncode == 2
    assert "error: drift.windw: is not a setting (did you mean window?)" in done.stderr
    assert "error: drift.panes: 0 will not do" in done.stderr
    missing = tmp_path / "missing.yaml"
    missing.write_text(f"references: [{{model: m, path: {tmp_path}/none.parquet}}]")
    done = tidegauge("check", missing)
    assert done.returncode == 2
    assert "references[0].path" in done.stderr
    assert "tidegauge reference build" in done.stderr


def test_a_broken_configuration_does_not_start(tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("nonsense: 1")
    done = tidegauge("run", "--config", bad)
    assert done.returncode == 2
    assert "error: nonsense: is not a setting" in done.stderr


def test_help_has_examples():
    commands = ((), ("run",), ("check",), ("reference", "build"), ("reference", "show"))
    for command in (*commands, ("backtest",), ("explain",)):
        done = tidegauge(*command, "--help")
        assert done.returncode == 0
        assert "tidegauge " in done.stdout.partition("Usage")[2]
    assert tidegauge("version").stdout.startswith("tidegauge 0.")
    assert tidegauge("nonsense").returncode == 2


def test_a_broken_configuration_is_told_before_kernels_are_compiled(tmp_path):
    (tmp_path / "agent.yaml").write_text("drfit: {}\n")
    program = (
        "import sys; from tidegauge.cli.root import commands\n"
        "try: commands(['run', '--config', 'agent.yaml'])\n"
        "finally: print('tidegauge.app' in sys.modules)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert "drfit" in done.stderr


def test_what_takes_long_says_so(monkeypatch, capsys):
    with root._telling():
        pass
    monkeypatch.setattr(root, "_QUICK_S", 0.0)
    with root._telling():
        deadline = time.monotonic() + 10
        while not (told := capsys.readouterr().err) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "kernels" in told


def test_a_sender_s_text_cannot_make_lines_of_the_log():
    hostile = "a\nERROR b\x1b[2J\u2028\ud800 \N{GRINNING FACE}\u00e9"
    try:
        int("x")
    except ValueError:
        record = logging.LogRecord("n", logging.WARNING, "", 0, "metric %s", (hostile,), sys.exc_info())
    first, *traceback = OneLine("%(levelname)s %(message)s").format(record).splitlines()
    assert first == r"WARNING metric a\nERROR b\x1b[2J\u2028\ud800 " + "\N{GRINNING FACE}\u00e9"
    assert traceback[-1].startswith("ValueError")


def test_a_running_agent_loads_nothing_that_only_a_command_needs():
    code = "import sys, tidegauge.cli.run, tidegauge.app; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(done.stdout.split())
    assert "tidegauge.processors.drift.drift" in loaded
    for heavy in ("dask", "distributed", "matplotlib", "rich", "pyarrow.dataset", "tidegauge.backtest"):
        assert heavy not in loaded, heavy
