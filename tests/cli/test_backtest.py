"""`tidegauge backtest` as users call it."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

START_S = 1_780_272_000


@pytest.fixture
def history(command, tmp_path):
    """A day: from the 12th hour on `amount` is half as large again. Returns the table."""
    rng = np.random.default_rng(0)
    train = pa.table({"amount": rng.lognormal(3, 1, 9_000), "country": rng.choice(["de", "fr"], 9_000)})
    pq.write_table(train, tmp_path / "train.parquet")
    built = command("reference", "build", "train.parquet", "--model", "fraud", "-o", "ref.parquet")
    assert built.exit_code == 0, built.stderr
    seconds = np.sort(rng.uniform(0, 86_400, 40_000))
    amount = rng.lognormal(3, 1, 40_000) * np.where(seconds > 43_200, 1.6, 1)
    table = pa.table(
        {
            "created": pa.array(((START_S + seconds) * 1e9).astype(np.int64), pa.timestamp("ns")),
            "amount": amount,
            "country": rng.choice(["de", "fr"], 40_000),
        }
    )
    pq.write_table(table, tmp_path / "day.parquet", row_group_size=3_000)
    return table


def test_the_table_tells_what_alarmed_when_and_why(command, history):
    done = command("backtest", "day.parquet", "--reference", "ref.parquet", "--timestamp", "created")
    assert done.exit_code == 0, done.stderr
    assert re.search(r"amount +│ 2026-06-01T12:\d\d:\d\dZ", done.stdout)
    assert re.search(r"country +│ +│ +0 │ +0%", done.stdout)
    assert re.search(
        r"amount from 2026-06-01T12.*: PSI 0\.\d+, without drift below .* moved most: ", done.stdout
    )
    assert "40,000 rows from 2026-06-01T00:00" in done.stdout
    assert "replaying" in done.stderr


def test_an_embedding_drifts_by_its_own_measure_and_threshold_among_segments_and_settings(command, tmp_path):
    rng = np.random.default_rng(3)

    def rows(shift):
        vectors = rng.normal(size=(4_000, 8)).astype(np.float32) + np.float32(shift)
        return {
            "amount": pa.array(rng.normal(size=4_000)),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 8),
            "segment": pa.array(rng.choice(["eu", "us"], 4_000)),
        }

    pq.write_table(pa.table(rows(0.0)), tmp_path / "train.parquet")
    built = command("reference", "build", "train.parquet", "--model", "fraud", "-o", "ref.parquet")
    assert built.exit_code == 0, built.stderr
    before, after = (
        pa.table(rows(shift) | {"timestamp": pa.array(START_S + begin + np.arange(4_000) * 3.0)})
        for shift, begin in ((0.0, 0), (0.7, 12_000))
    )
    pq.write_table(pa.concat_tables([before, after]), tmp_path / "day.parquet")
    (tmp_path / "agent.yaml").write_text(
        "drift: {other_windows: [5m], other_baselines: [rolling], adaptive: {use: verdict}}\n"
    )
    arguments = ("--reference", "ref.parquet", "--config", "agent.yaml", "--threshold", "0.1,0.2")
    done = command("backtest", "day.parquet", *arguments, "--format", "json", "--output", "report")
    assert done.exit_code == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    mine = [one for one in told if one["column"] == "vector"]
    assert [(one["threshold"], one["what"], one["statistic"]) for one in mine] == [
        (0.1, "drifted", "mmd"),
        (0.2, "drifted", "mmd"),
    ]
    assert mine[0]["begin"] > "2026-06-01T03:15"
    assert mine[0]["score"] >= 0.1 > mine[0]["null_quantile"]
    assert mine[0]["p_value"] < 0.01
    report = (tmp_path / "report" / "report.html").read_text()
    assert {"MMD</text>", "PSI</text>"} <= set(re.findall(r"\w+</text>", report))


def test_shuffled_rows_and_other_formats_tell_the_same(command, tmp_path, history):
    order = np.random.default_rng(1).permutation(len(history))
    pq.write_table(history.take(order), tmp_path / "shuffled.parquet", row_group_size=3_000)
    arguments = ("--reference", "ref.parquet", "--timestamp", "created")
    told = [
        command("backtest", name, *arguments, "--format", "json")
        for name in ("day.parquet", "shuffled.parquet")
    ]
    assert "sorting" in told[1].stderr
    assert told[0].stdout == told[1].stdout
    rows = [json.loads(line) for line in told[0].stdout.splitlines()]
    assert {(row["column"], row["what"]) for row in rows} == {("amount", "alarm"), ("amount", "drifted")}
    assert all(row["moved"][0]["share"] > 0.1 for row in rows)
    flat = command("backtest", "day.parquet", *arguments, "--format", "csv")
    table = list(csv.DictReader(io.StringIO(flat.stdout)))
    assert [row["begin"] for row in table] == [row["begin"] for row in rows]


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href")]


def test_a_report_is_one_page_that_needs_nothing_else(command, tmp_path, history):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    done = command(
        *("backtest", "day.parquet", "--reference", "ref.parquet", "--timestamp", "created"),
        *("--threshold", "0.1,0.05,5", "--output", "report"),
    )
    assert done.exit_code == 0, done.stderr
    assert re.search(r"│ +5 │ +0 │ +0 │ +0% │ none", done.stdout)  # the comparison
    page = (tmp_path / "report" / "report.html").read_text()
    parsed = _Tags()
    parsed.feed(page)
    assert parsed.tags.count("svg") == 2
    assert parsed.links == []
    assert "url(" not in page
    assert "//" not in page.replace("<!doctype html>", "")
    assert page.index("<h2>amount") < page.index("<h2>country")  # worst first
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        *("report.html", "evaluations.jsonl", "001-amount.png", "002-country.png"),
    }
    assert (tmp_path / "report" / "001-amount.png").read_bytes()[:4] == b"\x89PNG"
    lines = [
        json.loads(line) for line in (tmp_path / "report" / "evaluations.jsonl").read_text().splitlines()
    ]
    assert len(lines) == 3 * 2 * 288  # thresholds, columns, panes
    assert {line["threshold"] for line in lines} == {0.1, 0.05, 5.0}


def test_without_matplotlib_the_extra_is_named_and_the_page_is_made(command, tmp_path, history, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = command(
        *("backtest", "day.parquet", "--reference", "ref.parquet", "--timestamp", "created", "--output", "r"),
        *("--format", "csv"),
    )
    assert done.exit_code == 0
    assert "pip install 'tidegauge[plots]'" in done.stderr
    assert (tmp_path / "r" / "report.html").exists()
    with (tmp_path / "r" / "evaluations.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * 288


def test_settings_are_those_of_the_configuration(command, tmp_path, history):
    (tmp_path / "agent.yaml").write_text("drift: {window: 2h, panes: 4, min_rows: 100000}")
    done = command(
        *("backtest", "day.parquet", "--reference", "ref.parquet", "--timestamp", "created"),
        *("--config", "agent.yaml"),
    )
    assert done.exit_code == 0
    assert "window 2h, panes of 30m" in done.stdout
    assert "no column was ever judged" in done.stderr
    (tmp_path / "agent.yaml").write_text("drift: {windw: 2h}")
    done = command("backtest", "day.parquet", "--reference", "ref.parquet", "--config", "agent.yaml")
    assert done.exit_code == 2
    assert "did you mean window?" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("day.parquet", "--reference", "ref.parquet"), 1, "--timestamp COLUMN"),
        (("day.parquet", "--reference", "no.parquet"), 1, "tidegauge reference build"),
        (("none.parquet", "--reference", "ref.parquet"), 1, "none.parquet: no such file"),
        (("day.parquet", "--reference", "ref.parquet", "--threshold", "0.1,x"), 2, "such as 0.05,0.1,0.2"),
        (("day.parquet", "--reference", "ref.parquet", "--threshold", "0"), 2, "such as 0.05,0.1,0.2"),
        (("empty.parquet", "--reference", "ref.parquet"), 1, "there are no rows"),
        (
            (
                "day.parquet",
                "--reference",
                "ref.parquet",
                "--timestamp",
                "created",
                "--output",
                "day.parquet",
            ),
            1,
            "day.parquet: File exists",
        ),
    ],
)
def test_errors_teach(command, tmp_path, history, arguments, status, told):
    pq.write_table(history.slice(0, 0), tmp_path / "empty.parquet")
    done = command("backtest", *arguments)
    assert done.exit_code == status
    assert told in done.stderr
