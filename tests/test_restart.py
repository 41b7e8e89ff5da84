"""The whole agent, killed or stopped while rows flow: what the next one knows of the rows before."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pytest

from tidegauge.layout import layout_of
from tidegauge.reference import ReferenceBuilder

BATCH = 100
DRIFT = {
    "window": "2m",
    "other_windows": ["10m"],
    "panes": 120,  # of a second each, so that alarms learn while the test runs
    "allowed_lateness": "1s",
    "checkpoint_interval": "500ms",
}


def rows(seed, count=BATCH, shift=0.0):
    random = np.random.default_rng(seed)
    columns = {"x": random.normal(shift, 1, count), "c": random.choice(["a", "b"], count)}
    return pa.RecordBatch.from_pydict(columns | {"score": random.random(count)})


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """Two references of the same columns, of other rows."""
    found = []
    for seed in (1, 2):
        builder = ReferenceBuilder(bins=10, max_categories=10)
        batch = rows(seed, 5_000)
        builder.update(batch, layout_of(batch.schema))
        path = tmp_path_factory.mktemp("references") / "m.parquet"
        builder.build("m", "1", "file").save(path)
        found.append([{"model": "m", "version": "1", "path": str(path)}])
    return found


def send(agent, model, batches):
    with fl.connect(f"grpc://127.0.0.1:{agent.grpc}") as client:
        descriptor = fl.FlightDescriptor.for_path("records", model, "1")
        writer, reader = client.do_put(descriptor, rows(0).schema)
        for seed in range(batches):
            writer.write_batch(rows(seed))
            reader.read()
        writer.close()


class Sender:
    """Sends batches at a steady pace and keeps when each was answered, until it leaves or is cut off."""

    def __init__(self, port, shift=0.0):
        self.port, self.shift = port, shift
        self.answered_ns = []
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        try:
            with fl.connect(f"grpc://127.0.0.1:{self.port}") as client:
                descriptor = fl.FlightDescriptor.for_path("records", "m", "1")
                writer, reader = client.do_put(descriptor, rows(0).schema)
                while not self.stopping.wait(0.02):
                    writer.write_batch(rows(len(self.answered_ns), shift=self.shift))
                    reader.read()
                    self.answered_ns.append(time.time_ns())
                writer.close()
        except (fl.FlightError, pa.ArrowException):
            return  # it was killed

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.thread.join()


def wait(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def window(agent):
    """Rows in `drift.window`, which carries no label of it."""
    found = agent.samples("feature_window_rows", feature="x", model="m")
    return sum(rows for labels, rows in found.items() if "window" not in dict(labels))


def await_window(agent, wanted):
    wait(lambda: window(agent) == wanted)


def next_write(state):
    """Wait until the file is another one; when that was written, Unix nanoseconds."""
    before = state.stat().st_mtime_ns
    wait(lambda: state.stat().st_mtime_ns != before)
    return state.stat().st_mtime_ns


def test_a_kill_costs_at_most_what_came_since_the_last_checkpoint(start_agent, references, tmp_path):
    settings = {"state_dir": str(tmp_path / "state"), "drift": DRIFT, "references": references[0]}
    first = start_agent(**settings)
    state = tmp_path / "state" / "drift.state"
    with Sender(first.grpc, shift=3.0) as sender:
        wait(lambda: first.total("model_drift_alarm") == 1)
        with pytest.raises(AssertionError, match=r"state_dir: .* is in use by another agent"):
            start_agent(**settings)
        # What came before a checkpoint is in the one after it, whose interval it waited in between.
        written_ns = next_write(state)
        next_write(state)
        first.process.kill()
        first.process.wait()
    sent = len(sender.answered_ns) * BATCH
    kept_at_least = sum(answered_ns < written_ns for answered_ns in sender.answered_ns) * BATCH
    assert kept_at_least > 0

    second = start_agent(**settings)
    wait(lambda: second.samples("feature_window_rows"))
    kept = window(second)
    assert kept_at_least <= kept <= sent + BATCH  # one may have had no answer yet
    assert second.total("model_drift_alarm") == 1
    assert second.total("feature_drift_alarm", feature="x") == 1
    assert second.total("feature_drift_alarm", feature="c") == 0
    # The counter, of which scrapes may have seen more than is left, begins anew.
    assert second.total("prediction_histogram_bucket", output="score", le="+Inf") == 0
    with Sender(second.grpc) as sender:
        wait(lambda: len(sender.answered_ns) > 5)
    more = len(sender.answered_ns) * BATCH
    await_window(second, kept + more)
    second.await_total(more, "prediction_histogram_bucket", output="score", le="+Inf")


def by_region(seed, count=BATCH):
    """Rows of two regions, some with a category that the reference lacks."""
    random = np.random.default_rng(seed)
    table = rows(seed, count, shift=0.5)
    table = table.set_column(1, "c", pa.array(random.choice(["a", "b", "new", None], count)))
    field = pa.field("region", pa.string(), metadata={"role": "segment"})
    return table.append_column(field, pa.array(random.choice(["eu", "us"], count)))


def test_a_kill_leaves_slices_the_sample_of_rows_and_unseen_categories(start_agent, references, tmp_path):
    drift = DRIFT | {"multivariate": {"interval": "1s"}}
    settings = {"state_dir": str(tmp_path / "state"), "drift": drift, "references": references[0]}
    first = start_agent(**settings)
    state = tmp_path / "state" / "drift.state"
    with fl.connect(f"grpc://127.0.0.1:{first.grpc}") as client:
        descriptor = fl.FlightDescriptor.for_path("records", "m", "1")
        writer, reader = client.do_put(descriptor, by_region(0).schema)
        for seed in range(6):
            writer.write_batch(by_region(seed))
            reader.read()
        # The first ones may be judged before the last ones have come.
        first.await_total(6 * BATCH, "model_drift_sample_rows")
        first.await_total(6 * BATCH, "model_slice_rows")
        wait(state.exists)
        written_ns = state.stat().st_mtime_ns
        writer.write_batch(by_region(6))  # a checkpoint is taken only where rows have come
        reader.read()
        wait(lambda: state.stat().st_mtime_ns != written_ns)
        first.await_total(7 * BATCH, "model_drift_sample_rows")
        first.await_total(7 * BATCH, "model_slice_rows")
        names = ("model_slice_rows", "model_slice_drift_score", "feature_unseen_category_rows")
        names = (*names, "model_drift_statistic", "model_drifted", "feature_drift_score")
        before = {name: first.samples(name) for name in names}
        first.process.kill()
        first.process.wait()
    assert all(before.values())
    assert {dict(labels)["slice"] for labels in before["model_slice_rows"]} == {"region=eu", "region=us"}
    assert {dict(labels)["category"] for labels in before["feature_unseen_category_rows"]} == {"new"}

    second = start_agent(**settings)
    second.await_total(7 * BATCH, "model_drift_sample_rows")
    assert {name: second.samples(name) for name in names} == before
    assert "WARNING" not in second.log.read_text()
    with fl.connect(f"grpc://127.0.0.1:{second.grpc}") as client:
        writer, reader = client.do_put(descriptor, by_region(0).schema)
        writer.write_batch(by_region(7))
        reader.read()
        writer.close()
    for name in ("model_drift_sample_rows", "model_slice_rows"):
        second.await_total(8 * BATCH, name)


def test_a_stop_costs_nothing_and_the_counter_goes_on(start_agent, references, tmp_path):
    settings = {"state_dir": str(tmp_path / "state"), "references": references[0]}
    agent = start_agent(**settings)
    for sent in (3, 6):
        send(agent, "m", 3)
        send(agent, "first_rows", 3)
        await_window(agent, sent * BATCH)
        agent.await_total(sent * BATCH, "prediction_histogram_bucket", output="score", le="+Inf")
        before = agent.samples("prediction_histogram_sum", output="score")
        assert agent.stop() == 0
        agent = start_agent(**settings)
        await_window(agent, sent * BATCH)
        assert agent.samples("prediction_histogram_sum", output="score") == before
        assert agent.total("reference_rows", source="first_rows") == sent * BATCH
    # And a kill after a stop, before the first checkpoint: what was complete is not so any more.
    agent.process.kill()
    agent.process.wait()
    agent = start_agent(**settings)
    await_window(agent, 6 * BATCH)
    assert agent.total("prediction_histogram_bucket", output="score", le="+Inf") == 0
    assert "WARNING" not in agent.log.read_text()


def test_a_damaged_state_and_one_of_another_reference_are_set_aside(start_agent, references, tmp_path):
    settings = {"state_dir": str(tmp_path / "state"), "references": references[0]}
    agent = start_agent(**settings)
    send(agent, "m", 3)
    assert agent.stop() == 0

    settings["references"] = references[1]
    agent = start_agent(**settings)
    assert agent.samples("feature_window_rows") == {}
    assert "m 1 has another reference now; it is kept as" in agent.log.read_text()
    assert (tmp_path / "state" / "drift.unused").exists()
    send(agent, "m", 3)
    assert agent.stop() == 0

    path = tmp_path / "state" / "drift.stopped"
    sound = path.read_bytes()
    for place, left in ((200, 0), (len(sound) - 30, 3 * BATCH)):  # in the windows, and in the sample of rows
        damaged = bytearray(sound)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        agent = start_agent(**settings)
        await_window(agent, left)
        assert agent.log.read_text().count("it is damaged; it is kept as") == 1
        send(agent, "m", 3)
        await_window(agent, left + 3 * BATCH)
        assert agent.stop() == 0


def test_a_state_dir_that_cannot_be_written_costs_warnings_only(start_agent, references, tmp_path):
    (tmp_path / "state").write_text("a file")
    agent = start_agent(state_dir=str(tmp_path / "state"), references=references[0], drift=DRIFT)
    send(agent, "m", 3)
    agent.await_total(1, "tidegauge_checkpoint_failing")
    await_window(agent, 3 * BATCH)
    assert agent.page("/healthz") == (200, "ok\n")
    assert agent.stop() == 0
    told = agent.log.read_text()
    assert "state_dir" in told
    assert told.count("the drift state cannot be written") == 1


def test_a_reference_that_changes_on_disk_takes_effect_without_a_restart(start_agent, references, tmp_path):
    path = tmp_path / "now.parquet"
    first, second = (Path(one["path"]).read_bytes() for [one] in references)
    path.write_bytes(first)
    named = [{"model": "m", "version": "1", "path": str(path)}]
    agent = start_agent(references=named, drift=DRIFT | {"reference_poll": "100ms"})
    send(agent, "m", 10)
    agent.await_total(10 * BATCH, "feature_window_rows", feature="x")
    [before] = agent.samples("model_reference_info", model="m")
    assert ("state", "current") in before
    part = tmp_path / "part"
    part.write_bytes(second)
    part.replace(path)
    agent.await_total(2, "model_reference_info", model="m")
    after = {
        dict(labels)["state"]: dict(labels)["reference"] for labels in agent.samples("model_reference_info")
    }
    assert after["outgoing"] == dict(before)["reference"] != after["current"]
    send(agent, "m", 10)
    agent.await_total(10 * BATCH, "feature_window_rows", feature="x")
    old = agent.samples("feature_drifted", feature="x", reference=after["outgoing"])
    assert {dict(labels).get("window", "") for labels in old} == {"", "10m"}
    assert set(old.values()) == {0}
