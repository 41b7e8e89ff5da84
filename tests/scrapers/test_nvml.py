"""The GPU scraper against a scripted NVML library, through pynvml's real loading path.

pynvml keeps the library it has loaded for the life of a process, so each scenario below runs in a
process of its own, started by `test_scenario`, with LD_LIBRARY_PATH to the compiled stub.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import pytest

from tidegauge import config
from tidegauge.metric import Metric, Number
from tidegauge.scrapers.nvml import SOURCE, Nvml
from tidegauge.snapshot import Snapshots
from tidegauge.units import Duration

GPUS = ("GPU-00000000-feed", "GPU-00000001-feed")

IDENTITY = ("hw.id", "hw.name", "hw.type", "hw.vendor", "hw.driver_version")

XID = {"hw.gpu.xid.events"}
UNSUPPORTED = "tidegauge.gpu.unsupported"

Series = dict[tuple[str, str, str], float]
"""By metric name, GPU and whatever attribute tells the metric's points apart."""


def script(*lines: str) -> None:
    """Tell the stub what to do from now on."""
    path = Path(os.environ["NVML_STUB"])
    path.with_suffix(".new").write_text("\n".join(lines))
    path.with_suffix(".new").replace(path)


def calls() -> Counter[str]:
    return Counter(Path(os.environ["NVML_STUB_CALLS"]).read_text().splitlines())


def metrics(snapshots: Snapshots) -> dict[str, Metric]:
    return {metric.name: metric for metric in snapshots.latest().metrics}


def series(snapshots: Snapshots) -> Series:
    found: Series = {}
    for metric in snapshots.latest().metrics:
        for point in metric.points:
            assert isinstance(point, Number)
            labels = dict(point.attributes)
            own = [value for key, value in labels.items() if key not in IDENTITY]
            found[metric.name, labels["hw.id"], "/".join(own)] = point.value
    return found


def states(snapshots: Snapshots) -> dict[str, str]:
    return {
        uuid: own.split("/")[-1]
        for (name, uuid, own), value in series(snapshots).items()
        if name == "hw.status" and value
    }


async def until(condition: Callable[[], object]) -> None:
    """Wait for what must come; the process that runs the scenario is given up after a while."""
    while not condition():
        await asyncio.sleep(0.002)


class Polled(Snapshots):
    """Counts the polls: XID errors are published besides."""

    polls = 0

    def publish(self, source: str, metrics: tuple[Metric, ...]) -> None:
        super().publish(source, metrics)
        self.polls += source == SOURCE


async def polls(snapshots: Polled, count: int) -> None:
    target = snapshots.polls + count
    await until(lambda: snapshots.polls >= target)


def scraper() -> tuple[Polled, Nvml]:
    snapshots = Polled()
    return snapshots, Nvml(snapshots, config.Nvml(interval=Duration("50ms")), config.IdentityAttributes())


async def reads_every_gpu_and_shuts_nvml_down() -> None:
    snapshots, nvml = scraper()
    async with nvml:
        await polls(snapshots, 2)
    assert {uuid for _, uuid, _ in series(snapshots)} == set(GPUS)
    assert series(snapshots)["hw.energy", GPUS[1], ""] == 9007199254742.0
    identity = (("hw.id", GPUS[0]), ("hw.name", "NVIDIA Stub"), ("hw.type", "gpu"), ("hw.vendor", "NVIDIA"))
    assert metrics(snapshots)["hw.power"].points[0].attributes == identity
    driver = ("hw.driver_version", "570.86.10")
    assert metrics(snapshots)["hw.status"].points[0].attributes == (*identity, driver, ("hw.state", "ok"))
    assert calls()["nvmlShutdown 0"] == calls()["nvmlInitWithFlags 0"] == 1
    assert calls()["nvmlGpmSampleFree 0"] == calls()["nvmlGpmSampleAlloc 0"] == 4
    assert calls()["nvmlEventSetFree 0"] == calls()["nvmlEventSetCreate 0"] == 1


async def asks_once_for_what_is_not_supported() -> None:
    script("nvmlDeviceGetPowerUsage 0 3", "nvmlDeviceGetTotalEccErrors * 3", "nvmlDeviceGetClockInfo 1 4")
    snapshots, nvml = scraper()
    async with nvml:
        await polls(snapshots, 4)
    names = {(name, uuid) for name, uuid, _ in series(snapshots)}
    assert ("hw.power", GPUS[0]) not in names
    assert ("hw.power", GPUS[1]) in names
    assert "hw.errors" not in metrics(snapshots)
    assert ("hw.gpu.clock", GPUS[1]) not in names
    assert states(snapshots) == {GPUS[0]: "ok", GPUS[1]: "ok"}
    assert calls()["nvmlDeviceGetPowerUsage 0"] == 1
    assert calls()["nvmlDeviceGetPowerUsage 1"] >= 4
    assert calls()["nvmlDeviceGetTotalEccErrors 0"] == 4  # corrected and uncorrected, volatile and aggregate
    assert calls()["nvmlDeviceGetClockInfo 1"] == 4  # one for each domain
    unsupported = {uuid: value for (name, uuid, _), value in series(snapshots).items() if name == UNSUPPORTED}
    # NVLink and, in one call of two fields that the stub has, nothing else.
    assert unsupported == {GPUS[0]: 1 + 1 + 4, GPUS[1]: 1 + 4 + 4}


async def falls_back_to_older_calls() -> None:
    # 13 is what pynvml makes of a symbol that the library lacks, 25 an unknown struct version.
    script("nvmlDeviceGetMemoryInfo_v2 * 25", "nvmlDeviceGetTemperatureV * 13")
    snapshots, nvml = scraper()
    async with nvml:
        await polls(snapshots, 4)
    assert series(snapshots)["hw.gpu.memory.usage", GPUS[0], ""] == 20 * 2**30
    assert series(snapshots)["hw.temperature", GPUS[1], ""] == 52
    assert calls()["nvmlDeviceGetMemoryInfo_v2 0"] == calls()["nvmlDeviceGetTemperatureV 1"] == 1
    assert states(snapshots) == {GPUS[0]: "ok", GPUS[1]: "ok"}


async def leaves_out_a_reading_that_fails_this_time() -> None:
    script("nvmlDeviceGetTotalEnergyConsumption 0 999")
    snapshots, nvml = scraper()
    async with nvml:
        await polls(snapshots, 1)
        assert states(snapshots) == {GPUS[0]: "degraded", GPUS[1]: "ok"}
        assert ("hw.energy", GPUS[0], "") not in series(snapshots)
        assert ("hw.power", GPUS[0], "") in series(snapshots)
        script()
        await until(lambda: states(snapshots) == {GPUS[0]: "ok", GPUS[1]: "ok"})
        assert ("hw.energy", GPUS[0], "") in series(snapshots)


async def a_lost_gpu_says_so_and_comes_back() -> None:
    snapshots, nvml = scraper()
    async with nvml:
        await until(lambda: states(snapshots) == {GPUS[0]: "ok", GPUS[1]: "ok"})
        script("nvmlDeviceGetUtilizationRates 0 15", "nvmlDeviceGetHandleByIndex_v2 0 15")
        await until(lambda: states(snapshots) == {GPUS[0]: "failed", GPUS[1]: "ok"})
        # Through several openings of NVML, at which the GPU is not listed.
        opened = calls()["nvmlInitWithFlags 0"]
        await until(lambda: calls()["nvmlInitWithFlags 0"] >= opened + 2)
        await polls(snapshots, 1)
        assert states(snapshots) == {GPUS[0]: "failed", GPUS[1]: "ok"}
        lost = {name for name, uuid, _ in series(snapshots) if uuid == GPUS[0]}
        assert lost - XID == {"hw.status"}
        well = {key for key in series(snapshots) if key[1] == GPUS[1]}
        # The driver drops it from its list, and the other one takes its index.
        script("gpus 0 1")
        await polls(snapshots, 8)
        script()
        await until(lambda: states(snapshots) == {GPUS[0]: "ok", GPUS[1]: "ok"})
        # GPM compares two polls, so it is not all there at once.
        await until(lambda: well <= series(snapshots).keys())
    assert calls()["nvmlShutdown 0"] == calls()["nvmlInitWithFlags 0"]


async def every_gpu_lost_with_its_driver_comes_back() -> None:
    snapshots, nvml = scraper()
    async with nvml:
        await polls(snapshots, 1)
        script("nvmlDeviceGetUtilizationRates * 15", "nvmlInitWithFlags 0 9")
        await until(lambda: states(snapshots) == {GPUS[0]: "failed", GPUS[1]: "failed"})
        await until(lambda: calls()["nvmlInitWithFlags 0"] >= 3)
        script()
        await until(lambda: states(snapshots) == {GPUS[0]: "ok", GPUS[1]: "ok"})


async def a_gpu_silent_from_the_start_is_found_later() -> None:
    script("nvmlDeviceGetHandleByIndex_v2 1 15")
    snapshots, nvml = scraper()
    async with nvml:
        await polls(snapshots, 1)
        assert states(snapshots) == {GPUS[0]: "ok"}
        script()
        await until(lambda: states(snapshots) == {GPUS[0]: "ok", GPUS[1]: "ok"})


async def a_hanging_call_holds_up_nothing() -> None:
    snapshots, nvml = scraper()
    async with nvml:
        await until(lambda: series(snapshots))
        script("nvmlDeviceGetPowerUsage 1 hang")
        await until(lambda: calls()["hang 1"])
        await until(lambda: {name for name, _, _ in series(snapshots)} == XID)  # stale readings are withdrawn
        hung = calls()["nvmlDeviceGetUtilizationRates 0"]
        await asyncio.sleep(0.5)  # ten intervals, in which no other poll may start
        assert calls()["nvmlDeviceGetUtilizationRates 0"] == hung
        script("nvmlDeviceGetPowerUsage 1 hang", "xid 1 79")
        await until(
            lambda: series(snapshots)["hw.gpu.xid.events", GPUS[1], "link"]
        )  # and is told of meanwhile
    assert calls()["nvmlShutdown 0"] == 0


async def a_hanging_start_holds_up_nothing() -> None:
    script("nvmlInitWithFlags 0 hang")
    snapshots, nvml = scraper()
    async with nvml:
        await until(lambda: calls()["nvmlInitWithFlags 0"])
    assert series(snapshots) == {}


async def no_gpu_is_told_once() -> None:
    script("gpus 0 0")
    await _tells_once_and_ends()
    assert calls()["nvmlInitWithFlags 0"] == calls()["nvmlShutdown 0"] == 1


async def no_driver_is_told_once() -> None:
    script("nvmlInitWithFlags 0 9")
    await _tells_once_and_ends()
    assert calls()["nvmlInitWithFlags 0"] == 1


async def no_library_is_told_once() -> None:
    await _tells_once_and_ends()


async def _tells_once_and_ends() -> None:
    lines: list[str] = []
    sink = logging.Handler()
    sink.emit = lambda record: lines.append(f"{record.levelname} {record.getMessage()}")  # type: ignore[method-assign]
    logging.getLogger("tidegauge").addHandler(sink)
    snapshots, nvml = scraper()
    async with nvml:
        await until(lambda: lines)
        await asyncio.sleep(0.3)  # six intervals, in which nothing more may be said
    assert snapshots.latest().metrics == ()
    assert len(lines) == 1
    assert lines[0].startswith("INFO no GPU metrics: ")
    print(lines[0])


Scenario = Callable[[], Coroutine[Any, Any, None]]
WITH_STUB: list[Scenario] = [
    reads_every_gpu_and_shuts_nvml_down,
    asks_once_for_what_is_not_supported,
    falls_back_to_older_calls,
    leaves_out_a_reading_that_fails_this_time,
    a_lost_gpu_says_so_and_comes_back,
    every_gpu_lost_with_its_driver_comes_back,
    a_gpu_silent_from_the_start_is_found_later,
    a_hanging_call_holds_up_nothing,
    a_hanging_start_holds_up_nothing,
    no_gpu_is_told_once,
    no_driver_is_told_once,
]


def run(scenario: Scenario, tmp_path: Path, library: Path) -> str:
    (tmp_path / "script").touch()
    (tmp_path / "calls").touch()
    environ = os.environ | {
        "LD_LIBRARY_PATH": str(library),
        "NVML_STUB": str(tmp_path / "script"),
        "NVML_STUB_CALLS": str(tmp_path / "calls"),
    }
    process = subprocess.run(
        [sys.executable, "-W", "error", __file__, scenario.__name__],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize("scenario", WITH_STUB, ids=lambda scenario: scenario.__name__)
def test_scenario(scenario: Scenario, library: Path, tmp_path: Path) -> None:
    run(scenario, tmp_path, library)


@pytest.mark.parametrize("found", ["nothing", "junk"])
def test_without_a_library(found: str, tmp_path: Path) -> None:
    """No libnvidia-ml.so.1, or one that cannot be loaded: one line, no metrics, no further try."""
    if found == "nothing" and find_library("nvidia-ml"):
        pytest.skip("this machine has a real NVML library")
    if found == "junk":
        (tmp_path / "libnvidia-ml.so.1").write_text("not a library")
    printed = run(no_library_is_told_once, tmp_path, tmp_path)
    assert printed.startswith("INFO no GPU metrics: ")
    assert "libnvidia-ml.so.1" in printed
    assert printed.count("\n") == 1


if __name__ == "__main__":
    logging.getLogger("tidegauge").setLevel(logging.INFO)
    asyncio.run(globals()[sys.argv[1]]())
