"""The agent's own counters, snapshots, the publisher and the shelf."""

from __future__ import annotations

import asyncio
import threading

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from tidegauge.app import faults
from tidegauge.batch import Logs
from tidegauge.config import PipelineSettings
from tidegauge.layout import layout_of
from tidegauge.metric import Kind, Metric, Number
from tidegauge.pipeline import Pipeline
from tidegauge.publisher import Publisher
from tidegauge.reference import ReferenceBuilder
from tidegauge.shelf import Shelf
from tidegauge.snapshot import Snapshots
from tidegauge.telemetry import Telemetry
from tidegauge.units import Duration, Size
from tidegauge.wire.logs import LOG


def test_counters_count_by_their_labels():
    telemetry = Telemetry()
    telemetry.add("received", 3, receiver="flight", signal="records")
    telemetry.add("received", 4, receiver="flight", signal="records")
    telemetry.add("received", 5, receiver="otlp_grpc", signal="traces")
    assert telemetry.total("received") == 12
    assert telemetry.total("received", receiver="flight") == 7
    with pytest.raises(KeyError):
        telemetry.add("recieved", 1)


def test_gauges_are_plain_numbers_that_encode():
    telemetry = Telemetry()
    telemetry.set_gauge("queue.limit", "By", "Bytes.", Size("1MiB"))
    telemetry.set_gauge("queue.limit", "By", "Bytes.", Size("2MiB"))
    (metric,) = [m for m in telemetry.collect() if m.name == "tidegauge.queue.limit"]
    assert [point.value for point in metric.points] == [2 * 2**20]
    assert msgspec.json.encode(metric)


def test_snapshots_are_swapped_whole_by_source():
    snapshots = Snapshots()
    first = Metric("a", Kind.GAUGE, "", "", (Number((), 1.0),))
    other = Metric("b", Kind.GAUGE, "", "", (Number((), 2.0),))
    snapshots.publish("one", (first,))
    seen = snapshots.latest()
    snapshots.publish("two", (other,))
    snapshots.publish("one", ())
    assert seen.metrics == (first,)
    assert snapshots.latest().metrics == (other,)
    assert snapshots.latest().generation == seen.generation + 2


class Stuck:
    def __init__(self):
        self.gate = threading.Event()

    def update(self, batch):
        self.gate.wait(20)
        return {}

    def collect(self, now_ns):
        return (Metric("stuck", Kind.GAUGE, "", "", (Number((), 1.0),)),)


def test_a_stuck_consumer_is_not_healthy_and_its_counters_still_move():
    async def main():
        stuck, telemetry, snapshots = Stuck(), Telemetry(), Snapshots()
        settings = PipelineSettings(stall_timeout=Duration("200ms"), publish_interval=Duration("20ms"))
        async with (
            Pipeline([stuck], telemetry, queue_bytes=1_000, drain_s=1) as pipeline,
            Publisher(pipeline, telemetry, snapshots, interval_s=0.02) as publisher,
        ):
            await asyncio.sleep(0.1)
            assert faults(settings, pipeline, publisher) == []
            pipeline.offer(Logs("otlp_grpc", b"", np.zeros(3, LOG)))
            await asyncio.sleep(0.5)
            reasons = faults(settings, pipeline, publisher)
            assert "on one step" in reasons[0]
            assert "no statistics were published" in reasons[1]
            own = {m.name: m.points[0].value for m in snapshots.latest().metrics if m.name != "stuck"}
            assert own["tidegauge.pending"] == 3
            assert 0.2 < own["tidegauge.publication.age"] <= publisher.age_s
            stuck.gate.set()
            await asyncio.sleep(0.2)
            assert faults(settings, pipeline, publisher) == []
        assert faults(settings, pipeline, None) == ["starting"]
        assert faults(settings, pipeline, publisher) == ["the consumer is not running"]

    asyncio.run(main())


def test_the_publisher_publishes_once_more_when_left():
    async def main():
        telemetry, snapshots = Telemetry(), Snapshots()
        observed = []
        async with (
            Pipeline([], telemetry, queue_bytes=1_000) as pipeline,
            Publisher(pipeline, telemetry, snapshots, interval_s=60, observe=[lambda: observed.append(1)]),
        ):
            await asyncio.sleep(0)
            pipeline.offer(Logs("otlp_grpc", b"", np.zeros(3, LOG)))
        names = {m.name: m for m in snapshots.latest().metrics}
        assert names["tidegauge.accepted"].points[0].value == 3
        assert len(observed) == 2

    asyncio.run(main())


def reference(model, version):
    rows = pa.RecordBatch.from_pydict({"x": np.arange(50.0)})
    builder = ReferenceBuilder(bins=5, max_categories=5)
    builder.update(rows, layout_of(rows.schema))
    return builder.build(model, version, "first_rows")


def test_the_shelf_keeps_references_of_any_name(tmp_path):
    shelf = Shelf(str(tmp_path / "deep" / "state"))
    assert shelf.load() == []
    for model, version in (("fraud", "2.1"), ("../up/and away", ""), ("fraud", "2.2"), ("fraud", "2.2")):
        shelf.keep(reference(model, version))
    kept = {(one.model, one.version, one.source) for one in shelf.load()}
    assert kept == {
        ("fraud", "2.1", "first_rows"),
        ("fraud", "2.2", "first_rows"),
        ("../up/and away", "", "first_rows"),
    }
    assert {path.parent for path in tmp_path.rglob("*.parquet")} == {
        tmp_path / "deep" / "state" / "references"
    }


def test_a_disk_that_refuses_and_a_file_that_is_broken_are_warnings(tmp_path, caplog):
    (tmp_path / "state").write_text("a file where a folder should be")
    Shelf(str(tmp_path / "state")).keep(reference("m", "1"))
    assert "will not survive a restart" in caplog.text
    shelf = Shelf(str(tmp_path / "other"))
    shelf.keep(reference("m", "1"))
    (tmp_path / "other" / "references" / "broken.parquet").write_text("hello")
    assert len(shelf.load()) == 1
    assert "is ignored" in caplog.text
