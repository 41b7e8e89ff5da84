"""The checkpointer writes what changed, goes on where a disk refuses, and tells the last one apart."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from tidegauge.checkpointer import Checkpointer
from tidegauge.metric import Number
from tidegauge.statefile import StateFile
from tidegauge.telemetry import Telemetry


class Counter:
    """A state that is one number."""

    def __init__(self) -> None:
        self.stamp = 0
        self.captures = 0
        self.encoded: list[int] = []

    def frames(self) -> Iterable[bytes]:
        assert threading.current_thread().name == "checkpoint"
        self.encoded.append(self.stamp)
        yield str(self.stamp).encode()

    async def capture(self) -> Counter | None:
        self.captures += 1
        return self


async def until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def checkpointer(folder: Path, state: Counter, **more) -> Checkpointer:
    its = {"interval_s": 0.005, "last_s": 5.0} | more
    return Checkpointer(StateFile(folder, "drift"), state.capture, its.pop("telemetry", Telemetry()), **its)


def test_what_changed_is_written_and_what_did_not_is_not(tmp_path: Path) -> None:
    async def scene() -> None:
        state = Counter()
        async with checkpointer(tmp_path, state):
            await until(lambda: state.captures > 5)
            assert state.encoded == [0]
            state.stamp = 1
            await until(lambda: 1 in state.encoded)
            await until(lambda: list(StateFile(tmp_path, "drift").read()) == [b"1"])
            assert not (tmp_path / "drift.stopped").exists()
        assert state.encoded == [0, 1, 1]  # the last one is another file

    asyncio.run(scene())
    file = StateFile(tmp_path, "drift")
    assert file.take()
    assert list(file.read()) == [b"1"]


def test_the_last_one_holds_what_changed_since(tmp_path: Path) -> None:
    async def scene() -> None:
        state = Counter()
        async with checkpointer(tmp_path, state, interval_s=3600):
            state.stamp = 7

    asyncio.run(scene())
    assert StateFile(tmp_path, "drift").take()
    assert list(StateFile(tmp_path, "drift").read()) == [b"7"]


def gauges(telemetry: Telemetry) -> dict[str, float]:
    return {
        metric.name: point.value
        for metric in telemetry.collect()
        for point in metric.points
        if isinstance(point, Number)
    }


def test_a_full_disk_costs_one_warning_and_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full = tmp_path / "drift.partial"
    full.symlink_to("/dev/full")
    telemetry = Telemetry()

    async def scene() -> None:
        state = Counter()
        async with checkpointer(tmp_path, state, telemetry=telemetry) as one:
            await until(lambda: len(state.encoded) > 3)
            one.observe()
            assert gauges(telemetry)["tidegauge.checkpoint.failing"] == 1
            assert gauges(telemetry)["tidegauge.checkpoint.time"] == 0
            full.unlink()
            await until(lambda: list(StateFile(tmp_path, "drift").read()) == [b"0"])
            written = len(state.encoded)
            await until(lambda: "again" in caplog.text)
            one.observe()
            assert gauges(telemetry)["tidegauge.checkpoint.failing"] == 0
            assert gauges(telemetry)["tidegauge.checkpoint.time"] > 1.7e9
            assert gauges(telemetry)["tidegauge.checkpoint.size"] == (tmp_path / "drift.state").stat().st_size
            assert len(state.encoded) == written

    with caplog.at_level(logging.INFO):
        asyncio.run(scene())
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    [warning] = warnings
    assert "No space left on device" in warning


def test_a_disk_that_hangs_does_not_hold_up_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    released = threading.Event()

    class Hanging(Counter):
        def frames(self) -> Iterable[bytes]:
            released.wait()
            return super().frames()

    async def scene() -> None:
        async with checkpointer(tmp_path, Hanging(), last_s=0.05):
            pass
        released.set()

    asyncio.run(scene())
    assert "stopped with the drift state not written" in caplog.text


def test_nothing_is_written_where_nothing_can_be_captured(tmp_path: Path) -> None:
    async def nothing() -> None:
        return None

    async def scene() -> None:
        file = StateFile(tmp_path / "state", "drift")
        async with Checkpointer(file, nothing, Telemetry(), interval_s=3600, last_s=5.0):
            pass

    asyncio.run(scene())
    assert not (tmp_path / "state").exists()
