"""Files of references that change while the agent runs."""

from __future__ import annotations

import asyncio
import os
import time

import numpy as np
import pyarrow as pa
import pytest

from tidegauge.batch import Records
from tidegauge.config import Drift as Settings
from tidegauge.config import Reference as Named
from tidegauge.identity import Identity
from tidegauge.layout import layout_of
from tidegauge.pipeline import Pipeline
from tidegauge.processors.drift.drift import Drift, Prepared
from tidegauge.profile import Reference
from tidegauge.reference import ReferenceBuilder
from tidegauge.reference_files import ReferenceFiles
from tidegauge.telemetry import Telemetry


def reference(mean: float) -> Reference:
    builder = ReferenceBuilder(bins=5, max_categories=10)
    rows = pa.RecordBatch.from_pydict({"x": np.random.default_rng(0).normal(mean, 1, 500)})
    builder.update(rows, layout_of(rows.schema))
    return builder.build("as built", "0", "file")


async def until(condition, message="it never came"):
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(message)


def watched(paths, act):
    """What was handed over, as (model, centre), while `act` ran, a coroutine function of that list."""
    found: list[tuple[str, float]] = []

    async def switch(one: Reference) -> None:
        found.append((f"{one.model} {one.version}", round(one.profiles[0].center)))

    async def run() -> None:
        named = [Named(model=f"m{number}", version="1", path=str(path)) for number, path in enumerate(paths)]
        async with ReferenceFiles(named, lambda one: one, switch, interval_s=0.01):
            await act(found)

    asyncio.run(run())
    return found


def test_each_file_is_handed_over_once_and_again_when_it_has_changed(tmp_path):
    one, other = tmp_path / "one.parquet", tmp_path / "other.parquet"
    reference(0.0).save(one)
    reference(5.0).save(other)

    async def act(found):
        await until(lambda: len(found) == 2)
        await asyncio.sleep(0.1)
        assert found == [("m0 1", 0), ("m1 1", 5)]
        reference(9.0).save(other)
        await until(lambda: len(found) == 3)

    assert watched([one, other], act)[2:] == [("m1 1", 9)]


def test_a_config_map_that_points_to_another_file_is_a_change(tmp_path):
    link = tmp_path / "now.parquet"
    for name, mean in (("a", 0.0), ("b", 7.0)):
        reference(mean).save(tmp_path / name)
        os.utime(tmp_path / name, (1, 1))  # reproducible builds have one time
    link.symlink_to(tmp_path / "a")

    async def act(found):
        await until(lambda: len(found) == 1)
        (tmp_path / "next").symlink_to(tmp_path / "b")
        (tmp_path / "next").replace(link)
        await until(lambda: len(found) == 2)

    assert watched([link], act) == [("m0 1", 0), ("m0 1", 7)]


def test_a_file_that_is_broken_or_gone_is_told_once_and_the_others_go_on(tmp_path, caplog):
    bad, good = tmp_path / "bad.parquet", tmp_path / "good.parquet"
    bad.write_bytes(b"half a file")
    reference(1.0).save(good)

    async def act(found):
        await until(lambda: len(found) == 1)
        bad.unlink()
        await until(lambda: len(caplog.records) == 2)
        await asyncio.sleep(0.1)
        reference(3.0).save(bad)
        await until(lambda: len(found) == 2)

    assert watched([bad, good], act) == [("m1 1", 1), ("m0 1", 3)]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


def test_a_switch_that_fails_stops_no_later_one(tmp_path):
    path = tmp_path / "one.parquet"
    reference(0.0).save(path)
    seen = []

    async def switch(one: Reference) -> None:
        seen.append(round(one.profiles[0].center))
        if len(seen) == 1:
            raise RuntimeError("not now")

    async def run() -> None:
        async with ReferenceFiles(
            [Named(model="m", path=str(path))], lambda one: one, switch, interval_s=0.01
        ):
            await until(lambda: seen == [0])
            reference(4.0).save(path)
            await until(lambda: seen == [0, 4])

    asyncio.run(run())


@pytest.mark.parametrize("mean", [0.0, 6.0])
def test_a_running_pipeline_compares_with_the_new_file(tmp_path, mean):
    """As the agent does it: read and laid out on other threads, switched between two batches."""
    path = tmp_path / "one.parquet"
    reference(0.0).save(path)
    named = Named(model="m", version="1", path=str(path))
    drift = Drift(Settings(min_rows=20), [Reference.load(path)])
    rows = pa.RecordBatch.from_pydict({"x": np.random.default_rng(1).normal(mean, 1, 200)})
    looked, switched = [], []

    def prepare(one: Reference) -> Prepared | None:
        prepared = drift.prepare(one)
        looked.append(prepared is not None)
        return prepared

    async def switch(prepared: Prepared) -> None:
        await pipeline.ask(lambda: drift.switch(prepared, time.time_ns()))
        switched.append(prepared.reference.model)

    def offer() -> bool:
        now = time.time_ns()
        return pipeline.offer(
            Records("test", Identity("m", "1"), layout_of(rows.schema), rows, now, rows.nbytes)
        )

    async def drifted() -> list[float]:
        found = {metric.name: metric.points for metric in await pipeline.collect(time.time_ns())}
        points = found.get("feature.drifted", ())
        return [point.value for point in points if "reference" not in dict(point.attributes)]

    async def run() -> None:
        nonlocal pipeline
        pipeline = Pipeline((drift,), Telemetry(), queue_bytes=1 << 20)
        async with pipeline, ReferenceFiles([named], prepare, switch, interval_s=0.02):
            await until(lambda: switched == ["m"])  # another model's name: it is a reference of its own
            assert offer()
            await until(lambda: pipeline.queue_bytes == 0)
            assert await drifted() == [float(mean > 0)]
            reference(mean).save(path)
            await until(lambda: len(looked) == 2 and len(switched) == 1 + (mean > 0))
            assert offer()
            await until(lambda: pipeline.queue_bytes == 0)
            assert looked == [True, mean > 0]  # the same content is no other reference
            assert await drifted() == [0.0]

    pipeline: Pipeline
    asyncio.run(run())
