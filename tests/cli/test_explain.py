"""`tidegauge explain` against a running agent and a saved snapshot."""

from __future__ import annotations

import re
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import trustme
from pyarrow import flight

from tidegauge.batch import Records
from tidegauge.config import Baseline, Slices
from tidegauge.config import Drift as Settings
from tidegauge.identity import Identity
from tidegauge.layout import layout_of
from tidegauge.processors.drift.drift import Drift
from tidegauge.reference import ReferenceBuilder
from tidegauge.runs import plain
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
    (tmp_path / "snapshot.json").write_bytes(msgspec.json.encode(snapshots.latest(), enc_hook=plain))
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
    assert re.search(r"│ window 24h +│ .* drifted", main)
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
    (tmp_path / "snapshot.json").write_bytes(msgspec.json.encode(snapshots.latest(), enc_hook=plain))
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


def test_a_certificate_that_is_not_trusted_names_the_option_for_its_ca(command):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        done = command("explain", "--model", "m", "--url", f"https://127.0.0.1:{server.server_port}")
        thread.join()
    assert done.exit_code == 1
    assert "a certificate that is not trusted here" in done.stderr
    assert "--ca-file names the PEM of its CA" in done.stderr


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
    (tmp_path / "sliced.json").write_bytes(msgspec.json.encode(snapshots.latest(), enc_hook=plain))
    return tmp_path / "sliced.json"


def test_the_overview_has_the_slices_worst_first(command, sliced):
    done = command("explain", "--model", "fraud", "--snapshot", sliced)
    assert done.exit_code == 0, done.stderr
    assert "verdicts: judged from 200 rows on; drifted from PSI 0.1 on" in done.stdout
    told = re.findall(r"│ (country=\S+) +│ +(\d) │ +(\d) │ (\S+)", done.stdout)
    assert {name for name, *_ in told} == {"country=de", "country=fr", "country=[b]us[/b]"}
    assert ("country=fr", "1", "2", "amount") in told
    assert {name: drifted for name, drifted, *_ in told if drifted != "0"} == {"country=fr": "1"}


def test_a_slices_columns_stand_worst_first_with_the_bins_that_moved(command, sliced):
    done = command("explain", "--model", "fraud", "--slice", "country=fr", "--snapshot", sliced)
    assert done.exit_code == 0, done.stderr
    verdicts = dict(re.findall(r"│ (\w+) +│ (drifted|steady|not judged) +│", done.stdout))
    assert verdicts == {"amount": "drifted", "score": "steady", "void": "not judged"}
    assert "amount, reference and country=fr" in done.stdout
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


def test_a_slice_tells_why_a_column_has_nothing_in_it(command, sliced):
    done = command(
        "explain", "--model", "fraud", "--slice", "country=fr", "--feature", "country", "--snapshot", sliced
    )
    assert done.exit_code == 1
    assert "country has no statistics in country=fr" in done.stderr


def rows_of_vectors(count, seed, shift=0.0):
    random = np.random.default_rng(seed)
    age = random.normal(40, 10, count) + 10 * shift
    vectors = (random.normal(size=(count, 8)) + shift).astype(np.float32)
    return pa.record_batch(
        {
            "age": age,
            "years": age + random.normal(0, 1, count),
            "amount": random.normal(size=count),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 8),
        }
    )


@pytest.fixture
def beside(tmp_path):
    """A saved one with embeddings, judged together too, beside a window, a past and an old reference."""
    references = []
    for seed, shift in ((1, 0.0), (2, 0.3)):
        builder, rows = ReferenceBuilder(bins=10, max_categories=5), rows_of_vectors(9_000, seed, shift)
        builder.update(rows, layout_of(rows.schema))
        references.append(builder.build("fraud", "2.1", "file"))
    settings = Settings(other_windows=(Duration("24h"),), other_baselines=(Baseline.ROLLING,))
    drift, now = Drift(settings, references[:1]), time.time_ns()
    drift.collect(now - 120 * 10**9)
    rows = rows_of_vectors(3_000, 3, 1.0)
    for _ in range(2):
        batch = Records("flight", Identity("fraud", "2.1"), layout_of(rows.schema), rows, now, rows.nbytes)
        drift.update(batch)
        if (prepared := drift.prepare(references[1])) is not None:
            drift.switch(prepared, now)
    for later_s in (0, 120, 240, 241):
        metrics = drift.collect(now + later_s * 10**9)
        drift.turns.wait()
    snapshots = Snapshots()
    snapshots.publish("drift", metrics)
    (tmp_path / "beside.json").write_bytes(msgspec.json.encode(snapshots.latest(), enc_hook=plain))
    return tmp_path / "beside.json"


def test_all_features_together_and_those_that_drift_as_one_are_told(command, beside):
    done = command("explain", "--model", "fraud", "--snapshot", beside)
    assert done.exit_code == 0, done.stderr
    assert "drifted from PSI 0.1 on, embeddings from MMD 0.1 on" in done.stdout
    assert re.search(
        r"all features together: drifted; .* AUC of 0\.\d+, without drift below 0\.5", done.stdout
    )
    assert "drift as one: age, years" in done.stdout
    assert not re.search(r"moved most: *$", done.stdout, re.MULTILINE)


def test_an_embedding_has_its_own_measure_and_no_bins(command, beside):
    done = command("explain", "--model", "fraud", "--feature", "vector", "--snapshot", beside)
    assert done.exit_code == 0, done.stderr
    assert re.search(
        r"vector: drifted; MMD 0\.\d+; without drift it stays below 0\.0\d+ in 95 %", done.stdout
    )
    assert "of PSI" not in done.stdout


def test_windows_baselines_and_the_old_reference_stand_beside(command, beside):
    done = command("explain", "--model", "fraud", "--feature", "age", "--snapshot", beside)
    told = dict(re.findall(r"│ ((?:window|baseline|reference) [\w ,]*?) +│ *([\d.]*) ", done.stdout))
    assert {"window 24h", "baseline rolling"} < told.keys()
    assert re.search(r"│ reference +│ +0\.\d+ │", done.stdout)
    assert not told["baseline rolling"]
