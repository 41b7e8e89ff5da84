"""XID errors, from the driver's event to the counter."""

from __future__ import annotations

import threading
import time
from typing import Any

import pynvml
import pytest

from tidegauge.config import IdentityAttributes
from tidegauge.metric import Metric, Number
from tidegauge.scrapers.gpu import Gpu, Terms
from tidegauge.scrapers.models import Models
from tidegauge.scrapers.watch import WAIT_MS, XidWatch
from tidegauge.scrapers.xid import NUMBERS, Xids

SAME = ("hw.name", "hw.type", "hw.vendor")
GPUS = ("GPU-00000000-feed", "GPU-00000001-feed")


def gpus() -> dict[str, Gpu]:
    terms = Terms(Models((), IdentityAttributes()), 0)
    return {
        uuid: Gpu(pynvml.nvmlDeviceGetHandleByIndex(index), index, terms) for index, uuid in enumerate(GPUS)
    }


@pytest.fixture
def opened(stub: Any) -> Any:
    pynvml.nvmlInit()
    yield stub
    pynvml.nvmlShutdown()


def points(metrics: tuple[Metric, ...], name: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(value for key, value in point.attributes if key not in SAME): point.value
        for metric in metrics
        if metric.name == name
        for point in metric.points
        if isinstance(point, Number)
    }


def test_an_error_is_counted_by_kind_and_dated_by_number(opened: Any) -> None:
    xids, told = Xids(), threading.Semaphore(0)
    watch = XidWatch.start(gpus(), xids, told.release)
    assert watch is not None
    assert told.acquire(timeout=0)
    zeros = points(xids.collect(), "hw.gpu.xid.events")
    assert set(zeros.values()) == {0}
    assert {uuid for uuid, _ in zeros} == set(GPUS)
    before_s = time.time()
    opened.script("xid 1 79")
    assert told.acquire(timeout=30)
    opened.script()
    assert watch.close()
    counts = points(xids.collect(), "hw.gpu.xid.events")
    assert counts[GPUS[1], "link"] >= 1
    assert sum(counts.values()) == counts[GPUS[1], "link"]
    [(key, when_s)] = points(xids.collect(), "hw.gpu.xid.time").items()
    assert key == (GPUS[1], "79")
    named = xids.collect()[0].points[0].attributes
    assert ("hw.name", "NVIDIA Stub") in named
    assert before_s <= when_s <= time.time()
    assert opened.calls()["nvmlEventSetFree 0"] == 1


def test_an_early_return_does_not_spin(opened: Any) -> None:
    """The stub returns after a fifth of the time; so would a lost GPU, at once."""
    for answer in ("", "nvmlEventSetWait_v2 0 15"):
        opened.script(answer)
        before = opened.calls()["nvmlEventSetWait_v2 0"]
        watch = XidWatch.start(gpus(), Xids(), lambda: None)
        assert watch is not None
        began = time.monotonic()
        time.sleep(4 * WAIT_MS / 1000)
        assert watch.close()
        most = (time.monotonic() - began) / (WAIT_MS / 1000) + 2
        assert opened.calls()["nvmlEventSetWait_v2 0"] - before <= most


def test_a_gpu_without_events_is_left_out(opened: Any) -> None:
    opened.script("nvmlDeviceGetSupportedEventTypes 0 3")
    xids = Xids()
    watch = XidWatch.start(gpus(), xids, lambda: None)
    assert watch is not None
    assert watch.close()
    assert {uuid for uuid, _ in points(xids.collect(), "hw.gpu.xid.events")} == {GPUS[1]}


def test_without_any_there_is_no_watch(opened: Any) -> None:
    opened.script("nvmlDeviceRegisterEvents * 3")
    assert XidWatch.start(gpus(), Xids(), lambda: None) is None
    assert opened.calls()["nvmlEventSetFree 0"] == opened.calls()["nvmlEventSetCreate 0"] == 1
    assert not opened.calls()["nvmlEventSetWait_v2 0"]


def test_an_error_of_a_gpu_that_tells_nothing_more_is_counted(opened: Any) -> None:
    told = threading.Semaphore(0)
    xids = Xids()
    watch = XidWatch.start(gpus(), xids, told.release)
    assert watch is not None
    told.acquire(timeout=0)
    opened.script("xid 1 79", "nvmlDeviceGetUUID 1 15")
    assert told.acquire(timeout=30)
    assert watch.close()
    assert points(xids.collect(), "hw.gpu.xid.events")["unknown", "link"] >= 1


def test_a_wait_that_never_returns_is_told(opened: Any) -> None:
    """What is left of it ends with the test's process: it is a daemon."""
    opened.script("nvmlEventSetWait_v2 0 hang")
    watch = XidWatch.start(gpus(), Xids(), lambda: None)
    assert watch is not None
    while not opened.calls()["hang 0"]:
        time.sleep(0.002)
    assert not watch.close()
    assert not opened.calls()["nvmlEventSetFree 0"]


def test_numbers_are_bounded() -> None:
    xids = Xids()
    for number in range(3 * NUMBERS):
        xids.add("GPU-1", number)
    assert len(points(xids.collect(), "hw.gpu.xid.time")) == NUMBERS
    assert sum(points(xids.collect(), "hw.gpu.xid.events").values()) == 3 * NUMBERS
