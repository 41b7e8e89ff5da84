"""`tidegauge explain` against a running agent and a saved snapshot."""

from __future__ import annotations

import re
import time

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import flight

from tidegauge.batch import Records
from tidegauge.config import Drift as Settings
from tidegauge.config import Slices
from tidegauge.identity import Identity
from tidegauge.layout import layout_of
from tidegauge.processors.drift.drift import Drift
from tidegauge.reference import ReferenceBuilder
from tidegauge.snapshot import Snapshots
from tidegauge.units import Duration


def table(rows, factor=1.0):
    rng = np.random.default_rng(rows)
    return pa.record_batch(
        {
            "amount": rng.lognormal(3, 1, rows) * factor,
            "country": rng.choice(["de", "fr", "[b]us[/b]"], rows),
            "void": pa.array([None] * rows, pa.float64()),
            "score": rng.random(rows),
        }
    )


@pytest.fixture(scope="module")
def reference():
    builder = ReferenceBuilder(bins=10, max_categories=5)
    rows = table(9_000)
    builder.update(rows, layout_of(rows.schema))
    return builder.build("fraud", "2.1", "file")


@pytest.fixture
def snapshot(tmp_path, reference):
    """A saved one: `amount` has doubled, `note` is in no reference, and a canary has too few rows."""
    settings = Settings(other_windows=(Duration("24h"),))
    drift, now = Drift(settings, [reference]), time.time_ns()
    for stage, count in (("", 3_000), ("canary", 50)):
        rows = table(count, 2.0).append_column("note", pa.array(["x"] * count))
        identity = Identity("fraud", "2.1", stage)
        drift.update(Records("flight", identity, layout_of(rows.schema), rows, now, rows.nbytes))
    snapshots = Snapshots()
    snapshots.publish("drift", drift.collect(now))
    (tmp_path / "snapshot.json").write_bytes(msgspec.json.encode(snapshots.latest()))
    return tmp_path / "snapshot.json"


def test_the_overview_has_every_column_worst_first(command, snapshot):
    done = command("explain", "--model", "fraud", "--snapshot", snapshot)
    assert done.exit_code == 0, done.stderr
    main, canary = done.stdout.split("fraud 2.1 canary:")
    assert re.search(r"^fraud 2.1: .*reference of 9,000 rows, file", main)
    verdicts = re.findall(r"│ (\w+) +│ ([\w: ]+?) +│", main)
    assert verdicts[0] == ("amount", "drifted")
    assert dict(verdicts[1:]) == {
        "country": "steady",
        "score": "steady",
        "void": "not judged",
    }
    assert "void: not judged: the reference holds no value of this column" in main
    assert re.search(r"amount: moved most: \(\S+,\+inf\) 10% → \d\d%", main)
    assert "note: skipped: the reference has no such column" in main
    assert canary.count("not judged: the window has fewer values than drift.min_rows") == 3


def test_a_columns_histograms_stand_side_by_side_with_all_statistics(command, snapshot):
    done = command("explain", "--model", "fraud", "--feature", "amount", "--snapshot", snapshot)
    assert done.exit_code == 0, done.stderr
    main, canary = done.stdout.split("fraud 2.1 canary:")
    bins = re.findall(r"│ (\S+[\])]) +│ (█\S*) +([\d.]+)% │ (█\S*) +([\d.]+)% │ +([\d.]+)% │", main)
    assert len(bins) == 10
    shares = [(float(one[2]), float(one[4])) for one in bins]
    assert sum(p for p, _ in shares) == pytest.approx(100, abs=1)
    assert sum(q for _, q in shares) == pytest.approx(100, abs=3)
    assert sum(float(one[5]) for one in bins) == pytest.approx(100, abs=3)
    longest = max(bins, key=lambda one: float(one[4]))
    assert longest[0].endswith("+inf)")
    assert len(longest[3]) == 14
    for statistic in ("psi", "ks", "anderson_darling", "wasserstein", "mean_shift"):
        assert re.search(rf"│ {statistic} +│ +[\d.]+ │ +[\d.]+ │ +[\d.e-]+ │", main)
    assert re.search(r"│ 24h +│ .* drifted", main)
    assert "the window has fewer values than drift.min_rows (50 rows)" in canary
    assert "mean_shift" not in canary


def test_names_with_markup_are_shown_as_they_are(command, snapshot):
    done = command("explain", "--model", "fraud", "--feature", "country", "--snapshot", snapshot)
    assert "[b]us[/b]" in done.stdout
    assert "__unseen__" in done.stdout


def test_categories_that_the_reference_lacks_are_named(command, tmp_path, reference):
    drift, now = Drift(Settings(), [reference]), time.time_ns()
    countries = pa.array(["[i]at[/i]"] * 600 + ["ch"] * 300 + ["de"] * 2_100)
    rows = table(3_000).set_column(1, "country", countries)
    drift.update(Records("flight", Identity("fraud", "2.1"), layout_of(rows.schema), rows, now, rows.nbytes))
    snapshots = Snapshots()
    snapshots.publish("drift", drift.collect(now))
    (tmp_path / "snapshot.json").write_bytes(msgspec.json.encode(snapshots.latest()))
    done = command(
        "explain", "--model", "fraud", "--feature", "country", "--snapshot", tmp_path / "snapshot.json"
    )
    named = "[i]at[/i] (600 rows at least), ch (300 rows at least)"
    assert f"most frequent of those that the reference lacks: {named}" in done.stdout


def test_an_empty_column_says_why_it_is_not_judged(command, snapshot):
    done = command("explain", "--model", "fraud", "--feature", "void", "--snapshot", snapshot)
    assert done.exit_code == 0, done.stderr
    assert "the reference holds no value of this column" in done.stdout
    assert "100% of the rows have no value" in done.stdout


def test_a_running_agent_is_asked_at_its_url(command, start_agent, tmp_path, reference):
    reference.save(tmp_path / "fraud.parquet")
    named = {"model": "fraud", "version": "2.1", "path": str(tmp_path / "fraud.parquet")}
    agent = start_agent(references=[named])
    url = f"http://127.0.0.1:{agent.pages}"
    early = command("explain", "--model", "fraud", "--url", url)
    assert early.exit_code == 1
    assert "no row of fraud was received yet" in early.stderr
    rows = table(3_000, 2.0)
    with flight.connect(f"grpc://127.0.0.1:{agent.grpc}") as client:
        writer, _ = client.do_put(flight.FlightDescriptor.for_path("records", "fraud", "2.1"), rows.schema)
        with writer:
            writer.write_batch(rows)
            writer.done_writing()
    agent.await_total(3_000, "feature_window_rows", feature="amount")
    done = command("explain", "--model", "fraud", "--feature", "amount", "--url", url)
    assert done.exit_code == 0, done.stderr
    assert "amount: drifted" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--model", "frad"), "no model is called 'frad'; did you mean fraud?"),
        (("--model", "fraud", "--version", "3"), "fraud has no version '3'; there are 2.1"),
        (("--model", "fraud", "--feature", "amuont"), "no column is called 'amuont'; did you mean amount?"),
        (
            ("--model", "fraud", "--feature", "note"),
            "note is skipped (no_reference): the reference has no such",
        ),
    ],
)
def test_what_is_not_known_is_told_with_what_is_near(command, snapshot, arguments, told):
    done = command("explain", *arguments, "--snapshot", snapshot)
    assert (done.exit_code, done.stdout) == (1, "")
    assert told in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--url", "http://127.0.0.1:1"), "no agent answers at http://127.0.0.1:1"),
        (("--url", "127.0.0.1:9464"), "a URL starts with http://"),
        (("--snapshot", "none.json"), "none.json cannot be read"),
        (("--snapshot", "text.json"), "text.json is no snapshot"),
        (("--snapshot", "other.json"), "other.json is no snapshot"),
    ],
)
def test_an_agent_or_a_file_that_is_not_there_is_told(command, tmp_path, arguments, told):
    (tmp_path / "text.json").write_text("hello")
    (tmp_path / "other.json").write_text('{"metrics": 1}')
    done = command("explain", "--model", "fraud", *arguments)
    assert done.exit_code == 1
    assert told in done.stderr


def test_a_page_that_is_none_of_the_agents_is_told(command, start_agent):
    agent = start_agent()
    done = command("explain", "--model", "m", "--url", f"http://127.0.0.1:{agent.pages}/elsewhere")
    assert done.exit_code == 1
    assert "answers 404: no agent's pages are there" in done.stderr


@pytest.fixture
def sliced(tmp_path, reference):
    """A saved one whose `amount` has doubled in one country alone."""
    drift, now = Drift(Settings(slices=Slices(columns=("country",))), [reference]), time.time_ns()
    rows = table(6_000)
    amount = np.asarray(rows["amount"]) * np.where(np.asarray(rows["country"]) == "fr", 2.0, 1.0)
    rows = rows.set_column(0, "amount", pa.array(amount))
    batch = Records("flight", Identity("fraud", "2.1"), layout_of(rows.schema), rows, now, rows.nbytes)
    drift.update(batch)
    snapshots = Snapshots()
    snapshots.publish("drift", drift.collect(now))
    (tmp_path / "sliced.json").write_bytes(msgspec.json.encode(snapshots.latest()))
    return tmp_path / "sliced.json"


def test_the_overview_has_the_slices_worst_first(command, sliced):
    done = command("explain", "--model", "fraud", "--snapshot", sliced)
    assert done.exit_code == 0, done.stderr
    assert "verdicts: judged from 200 rows on; drifted from PSI 0.1 on" in done.stdout
    told = re.findall(r"│ (country=\S+) +│ +(\d) │ +(\d) │ (\S+)", done.stdout)
    assert {name for name, *_ in told} == {"country=de", "country=fr", "country=[b]us[/b]"}
    # Of one country's rows the column of countries has moved, too.
    assert all(int(drifted) >= 1 for _, drifted, *_ in told)


def test_a_slices_columns_stand_worst_first_with_the_bins_that_moved(command, sliced):
    done = command("explain", "--model", "fraud", "--slice", "country=fr", "--snapshot", sliced)
    assert done.exit_code == 0, done.stderr
    verdicts = dict(re.findall(r"│ (\w+) +│ (drifted|steady|not judged) +│", done.stdout))
    assert verdicts == {"amount": "drifted", "country": "drifted", "score": "steady", "void": "not judged"}
    assert "reference and country=fr" in done.stdout
    alone = command(
        "explain", "--model", "fraud", "--slice", "country=fr", "--feature", "amount", "--snapshot", sliced
    )
    assert "drifted" in alone.stdout
    assert "steady" not in alone.stdout


def test_a_slice_that_is_not_there_is_told_with_its_neighbours(command, sliced, snapshot):
    done = command("explain", "--model", "fraud", "--slice", "country=dee", "--snapshot", sliced)
    assert done.exit_code != 0
    assert "did you mean country=de" in done.stderr
    none = command("explain", "--model", "fraud", "--slice", "country=de", "--snapshot", snapshot)
    assert "no segment column was received" in none.stderr
