"""Every reading of a GPU, over the C stub and the real bindings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest

from tidegauge.config import GpuModel, IdentityAttributes
from tidegauge.metric import Metric, Number
from tidegauge.scrapers.family import FAMILIES
from tidegauge.scrapers.gpu import Terms
from tidegauge.scrapers.links import LINKS
from tidegauge.scrapers.models import Models
from tidegauge.scrapers.session import REOPEN_POLLS, Session

GPU = "GPU-00000000-feed"
OTHER = "GPU-00000001-feed"
IDENTITY = {"hw.name", "hw.type", "hw.vendor", "hw.driver_version"}

Series = dict[tuple[str, ...], float]
"""By metric name, GPU and the other attributes' values, in their order."""


@contextlib.contextmanager
def opened(*models: GpuModel, processes: int = 8) -> Iterator[Session]:
    terms = Terms(Models(models, IdentityAttributes(), Path("/nowhere")), processes)
    with contextlib.closing(Session(terms, lambda metrics: None)) as session:
        yield session


def series(metrics: tuple[Metric, ...]) -> Series:
    found: Series = {}
    for metric in metrics:
        for point in metric.points:
            assert isinstance(point, Number)
            key = (metric.name, *(value for name, value in point.attributes if name not in IDENTITY))
            assert key not in found
            found[key] = point.value
    return found


def of(gpu: str, found: Series) -> Series:
    return {(key[0], *key[2:]): value for key, value in found.items() if key[1] == gpu}


READINGS: Series = {
    ("hw.gpu.utilization", "general"): 0.37,
    ("hw.gpu.utilization", "memory"): 0.12,
    ("hw.gpu.utilization", "encoder"): 0.03,
    ("hw.gpu.utilization", "decoder"): 0.04,
    ("hw.gpu.performance_state",): 0,
    ("hw.gpu.memory.usage",): 19 * 2**30,
    ("hw.gpu.memory.limit",): 80 * 2**30,
    ("hw.gpu.memory.utilization",): 19 / 80,
    ("hw.gpu.memory.free",): 60 * 2**30,
    ("hw.gpu.memory.reserved",): 2**30,
    ("hw.gpu.bar1.usage",): 2 * 2**30,
    ("hw.gpu.bar1.limit",): 128 * 2**30,
    ("hw.temperature",): 45,
    ("hw.temperature.limit", "throttled"): 87,
    ("hw.temperature.limit", "high.critical"): 92,
    ("hw.gpu.temperature.margin",): 42,
    ("hw.gpu.memory.temperature",): 52,
    ("hw.power",): 123.456,
    ("hw.power.limit", "enforced"): 650,
    ("hw.power.limit", "default"): 700,
    ("hw.energy",): 9007199254741.5,
    ("hw.gpu.clock", "graphics"): 1.410e9,
    ("hw.gpu.clock", "sm"): 1.395e9,
    ("hw.gpu.clock", "memory"): 1.593e9,
    ("hw.gpu.clock", "video"): 1.290e9,
    ("hw.gpu.clock.limit", "graphics"): 1.980e9,
    ("hw.gpu.clock.limit", "sm"): 1.980e9,
    ("hw.gpu.clock.limit", "memory"): 2.619e9,
    ("hw.gpu.clock.limit", "video"): 1.545e9,
    ("hw.gpu.clock.held", "idle"): 0,
    ("hw.gpu.clock.held", "application_setting"): 0,
    ("hw.gpu.clock.held", "power_cap"): 1,
    ("hw.gpu.clock.held", "hw_slowdown"): 0,
    ("hw.gpu.clock.held", "sw_thermal"): 1,
    ("hw.gpu.clock.held", "hw_thermal"): 0,
    ("hw.gpu.clock.held", "power_brake"): 0,
    ("hw.gpu.clock.held", "display_setting"): 0,
    ("hw.gpu.clock.held.time", "power_cap"): 1.5,
    ("hw.gpu.clock.held.time", "thermal"): 3,
    ("hw.gpu.clock.held.time", "sync_boost"): 4.5,
    ("hw.gpu.clock.held.time", "board_limit"): 6,
    ("hw.gpu.clock.held.time", "low_utilization"): 7.5,
    ("hw.gpu.clock.held.time", "reliability"): 9,
    ("hw.errors", "corrected"): 7,
    ("hw.errors", "uncorrected"): 2,
    ("hw.gpu.ecc.aggregate_errors", "corrected"): 107,
    ("hw.gpu.ecc.aggregate_errors", "uncorrected"): 102,
    ("hw.gpu.ecc.enabled",): 1,
    ("hw.gpu.memory.remapped_rows", "corrected"): 5,
    ("hw.gpu.memory.remapped_rows", "uncorrected"): 1,
    ("hw.gpu.memory.remap.pending",): 1,
    ("hw.gpu.memory.remap.failed",): 0,
    ("hw.gpu.memory.retired_pages", "corrected"): 3,
    ("hw.gpu.memory.retired_pages", "uncorrected"): 1,
    ("hw.gpu.memory.retirement.pending",): 0,
    ("hw.gpu.io", "pcie", "transmit"): 2**40 + 197,
    ("hw.gpu.io", "pcie", "receive"): 2**40 + 198,
    # Two of three links are up: (1000 + 1001) and (2000 + 2001) KiB.
    ("hw.gpu.io", "nvlink", "transmit"): 2001 * 1024,
    ("hw.gpu.io", "nvlink", "receive"): 4001 * 1024,
    ("hw.gpu.nvlink.active",): 2,
    ("hw.gpu.link.errors", "pcie", "replay"): 17,
    ("hw.gpu.link.errors", "pcie", "correctable"): 143,
    ("hw.gpu.link.errors", "pcie", "nak_received"): 144,
    ("hw.gpu.link.errors", "pcie", "receiver"): 145,
    ("hw.gpu.link.errors", "pcie", "bad_tlp"): 146,
    ("hw.gpu.link.errors", "pcie", "nak_sent"): 147,
    ("hw.gpu.link.errors", "pcie", "bad_dllp"): 148,
    ("hw.gpu.link.errors", "pcie", "non_fatal"): 149,
    ("hw.gpu.link.errors", "pcie", "fatal"): 150,
    ("hw.gpu.link.errors", "nvlink", "crc_flit"): 8,
    ("hw.gpu.link.errors", "nvlink", "crc_data"): 15,
    ("hw.gpu.link.errors", "nvlink", "replay"): 22,
    ("hw.gpu.link.errors", "nvlink", "recovery"): 29,
    ("hw.gpu.pcie.generation",): 4,
    ("hw.gpu.pcie.generation.limit",): 5,
    ("hw.gpu.pcie.lanes",): 8,
    ("hw.gpu.pcie.lanes.limit",): 16,
    ("hw.gpu.processes",): 2,
    ("hw.gpu.process.memory.usage", "4242"): 2**30,
    ("hw.gpu.mig.enabled",): 0,
    ("hw.status", "ok"): 1,
    ("hw.status", "degraded"): 0,
    ("hw.status", "failed"): 0,
    ("tidegauge.gpu.unsupported",): 0,
    # GPM's metric n is at 20.5 + n percent.
    ("hw.gpu.activity", "graphics"): 0.215,
    ("hw.gpu.activity", "sm"): 0.225,
    ("hw.gpu.sm.occupancy",): 0.235,
    ("hw.gpu.activity", "integer"): 0.245,
    ("hw.gpu.activity", "tensor"): 0.255,
    ("hw.gpu.activity", "tensor_half"): 0.275,
    ("hw.gpu.activity", "tensor_double"): 0.285,
    ("hw.gpu.activity", "tensor_integer"): 0.295,
    ("hw.gpu.activity", "memory_bandwidth"): 0.305,
    ("hw.gpu.activity", "fp64"): 0.315,
    ("hw.gpu.activity", "fp32"): 0.325,
    ("hw.gpu.activity", "fp16"): 0.335,
}


BY_GPM = {"hw.gpu.activity", "hw.gpu.sm.occupancy"}


def test_everything_is_read_in_base_units(stub: Any) -> None:
    stub.script("links 0 3")
    with opened() as session:
        first = of(GPU, series(session.poll()))
        second = of(GPU, series(session.poll()))
    assert first.pop(("hw.gpu.process.utilization", "4242", "general")) == 0.5
    assert first.pop(("hw.gpu.process.utilization", "4242", "memory")) == 0.2
    assert 0 < first.pop(("tidegauge.gpu.poll.duration",)) < 60
    assert second.pop(("tidegauge.gpu.poll.duration",))
    # The first poll has nothing that GPM could compare with.
    assert first == pytest.approx({key: READINGS[key] for key in READINGS if key[0] not in BY_GPM})
    # Of the two samples one is new.
    assert second.pop(("hw.gpu.process.utilization", "4242", "general")) == 0.6
    assert second.pop(("hw.gpu.process.utilization", "4242", "memory")) == 0.3
    assert second == pytest.approx(READINGS)
    # A family that the stub cannot show would be one that nobody has seen.
    shown = {key[0] for key in READINGS} | {"hw.gpu.process.utilization", "tidegauge.gpu.poll.duration"}
    elsewhere = {"hw.gpu.io.rate", "hw.gpu.model", "hw.gpu.xid.events", "hw.gpu.xid.time"}
    assert shown | elsewhere == set(FAMILIES)


def test_what_is_not_supported_is_asked_once_and_counted(stub: Any) -> None:
    stub.script(
        "nvmlDeviceGetViolationStatus 0 3",
        "nvmlDeviceGetBAR1MemoryInfo 0 13",
        "nvmlDeviceGetMarginTemperature 0 4",
        "nvmlGpmQueryDeviceSupport 0 3",
        "nvmlDeviceGetProcessUtilization 0 3",
        "field 59 3",
        "field 179 2",
    )
    with opened() as session:
        for _ in range(4):
            found = series(session.poll())
    # Six policies, one each, two fields, no NVLink: 13. The other one has no NVLink and not the fields.
    assert of(GPU, found)["tidegauge.gpu.unsupported",] == 6 + 1 + 1 + 1 + 1 + 2 + 1
    assert of(OTHER, found)["tidegauge.gpu.unsupported",] == 2 + 1
    calls = stub.calls()
    assert calls["nvmlDeviceGetViolationStatus 0"] == 6
    assert calls["nvmlDeviceGetBAR1MemoryInfo 0"] == calls["nvmlDeviceGetMarginTemperature 0"] == 1
    assert calls["nvmlGpmQueryDeviceSupport 0"] == calls["nvmlDeviceGetProcessUtilization 0"] == 1
    assert calls["nvmlDeviceGetNvLinkState 0"] == LINKS
    assert ("hw.gpu.link.errors", "nvlink", "recovery") not in of(GPU, found)
    assert ("hw.gpu.link.errors", "nvlink", "replay") in of(GPU, found)
    assert of(GPU, found)["hw.status", "ok"] == 1


def test_pcie_traffic_is_measured_where_it_is_not_counted(stub: Any) -> None:
    stub.script("field 197 3", "field 198 3")
    with opened() as session:
        session.poll()
        found = of(GPU, series(session.poll()))
    assert found["hw.gpu.io.rate", "pcie", "transmit"] == 1e6
    assert found["hw.gpu.io.rate", "pcie", "receive"] == 2e6
    assert not [key for key in found if key[:2] == ("hw.gpu.io", "pcie")]


def test_nvlink_goes_on_where_bytes_or_links_are_missing(stub: Any) -> None:
    stub.script("links 0 3", "field 138 3")
    with opened() as session:
        found = of(GPU, series(session.poll()))
        assert found["hw.gpu.nvlink.active",] == 2
        assert found["hw.gpu.io", "nvlink", "receive"] == 4001 * 1024
        assert ("hw.gpu.io", "nvlink", "transmit") not in found
        asked = stub.calls()["nvmlDeviceGetNvLinkState 0"]
        stub.script("links 0 3", "field 138 3", "field 139 3")
        for _ in range(3):
            found = of(GPU, series(session.poll()))
        assert not [key for key in found if key[:2] == ("hw.gpu.io", "nvlink")]
        assert found["hw.gpu.nvlink.active",] == 2
    # Of 18 that there may be, three are asked again.
    assert stub.calls()["nvmlDeviceGetNvLinkState 0"] == asked + 3 * 3


def test_older_names_of_the_clock_reasons_serve_too(stub: Any) -> None:
    stub.script("nvmlDeviceGetCurrentClocksEventReasons * 13")
    with opened() as session:
        found = of(GPU, series(session.poll()))
    held = {key[1]: value for key, value in found.items() if key[0] == "hw.gpu.clock.held"}
    assert held == {"idle": 0, "application_setting": 1, "power_cap": 0}


@pytest.mark.parametrize("answer", [999, 10, 27], ids=["unknown", "timeout", "not ready"])
def test_a_reading_that_fails_is_asked_again(stub: Any, answer: int) -> None:
    stub.script(f"nvmlGpmSampleGet 0 {answer}", f"nvmlDeviceGetRemappedRows 0 {answer}")
    with opened() as session:
        session.poll()
        found = of(GPU, series(session.poll()))
        assert found["hw.status", "degraded"] == 1
        assert found["tidegauge.gpu.unsupported",] == 1  # NVLink
        stub.script()
        session.poll()  # GPM's first sample
        found = of(GPU, series(session.poll()))
        assert found["hw.gpu.memory.remapped_rows", "corrected"] == 5
        assert found["hw.gpu.activity", "sm"] == pytest.approx(0.225)
        assert found["hw.status", "ok"] == 1


def test_processes_beyond_the_limit_are_one_series(stub: Any) -> None:
    stub.script("processes 0 6")
    with opened(processes=2) as session:
        found = of(GPU, series(session.poll()))
    memory = {key[1]: value for key, value in found.items() if key[0] == "hw.gpu.process.memory.usage"}
    # The second has no figure; the largest are named.
    assert memory == {"4247": 6 * 2**30, "4246": 5 * 2**30, "true": (4 + 3 + 1) * 2**30}
    assert found["hw.gpu.processes",] == 6


def test_processes_can_be_left_alone(stub: Any) -> None:
    with opened(processes=0) as session:
        found = session.poll()
    assert not [metric.name for metric in found if "process" in metric.name]
    assert not [call for call in stub.calls() if "Process" in call]


def test_an_older_list_of_processes_serves_too(stub: Any) -> None:
    stub.script("nvmlDeviceGetComputeRunningProcesses_v3 0 13")
    with opened() as session:
        session.poll()
        found = of(GPU, series(session.poll()))
    assert found["hw.gpu.process.memory.usage", "4242"] == 2**30
    assert stub.calls()["nvmlDeviceGetComputeRunningProcesses_v3 0"] == 1


def test_mig_instances_are_devices_of_their_own(stub: Any) -> None:
    stub.script("mig 0 2", "nvmlDeviceGetUtilizationRates 0 3")
    with opened(GpuModel(gpu="MIG-00000000-2", model="fraud")) as session:
        session.poll()
        metrics = session.poll()
        found = series(metrics)
        first = of("MIG-00000000-1", found)
        assert first["hw.gpu.memory.limit", GPU, "7"] == 10 * 2**30
        assert first["hw.gpu.memory.usage", GPU, "7"] == 3 * 2**30
        # GPM samples the GPU for the instance: 20 + n and half of ten times its id.
        assert first["hw.gpu.activity", GPU, "7", "sm"] == pytest.approx((22 + 35) / 100)
        assert first["hw.status", GPU, "7", "ok"] == 1
        assert first["hw.gpu.processes", GPU, "7"] == 2
        second = of("MIG-00000000-2", found)
        assert second["hw.gpu.memory.limit", GPU, "8", "fraud"] == 10 * 2**30
        assert of(GPU, found)["hw.gpu.mig.enabled",] == 1
        [limits] = [metric for metric in metrics if metric.name == "hw.gpu.memory.limit"]
        assert ("hw.parent", GPU) in limits.points[1].attributes
        assert ("hw.name", "NVIDIA Stub MIG 1g.10gb") in limits.points[1].attributes
        stub.script("mig 0 1")
        found = series(session.poll())
        assert of("MIG-00000000-1", found)
        assert not of("MIG-00000000-2", found)
        stub.script()
        found = series(session.poll())
        assert not [key for key in found if key[1].startswith("MIG")]
        assert of(GPU, found)["hw.gpu.mig.enabled",] == 0
    assert stub.calls()["nvmlGpmSampleFree 0"] == stub.calls()["nvmlGpmSampleAlloc 0"] == 2 * 4


def test_a_gpu_is_labelled_with_the_model_that_a_setting_names(stub: Any) -> None:
    settings = (GpuModel(gpu=0, model="fraud", version="2.1"), GpuModel(gpu=OTHER, model="chat"))
    with opened(*settings) as session:
        metrics = session.poll()
        stub.script("nvmlDeviceGetUtilizationRates 0 15")
        lost = session.poll()
    power = next(metric for metric in metrics if metric.name == "hw.power")
    assert [dict(point.attributes).get("model") for point in power.points] == ["fraud", "chat"]
    assert ("version", "2.1") in power.points[0].attributes
    assert "version" not in dict(power.points[1].attributes)
    model = next(metric for metric in metrics if metric.name == "hw.gpu.model")
    assert [dict(point.attributes)["source"] for point in model.points] == ["setting", "setting"]
    assert series(lost)["hw.status", GPU, "fraud", "2.1", "failed"] == 1


def test_a_lost_gpu_gets_new_readings_when_nvml_is_open_again(stub: Any) -> None:
    stub.script("nvmlDeviceGetPowerUsage 0 3")
    with opened() as session:
        session.poll()
        stub.script("nvmlDeviceGetUtilizationRates 0 15")
        for _ in range(REOPEN_POLLS):
            assert of(GPU, series(session.poll())) == {
                ("hw.status", "ok"): 0,
                ("hw.status", "degraded"): 0,
                ("hw.status", "failed"): 1,
            }
        stub.script()
        found = of(GPU, series(session.poll()))
        # A driver that was reloaded may be another one: it is asked all again.
        assert found["hw.power",] == 123.456
        assert found["hw.status", "ok"] == 1
    calls = stub.calls()
    assert calls["nvmlInitWithFlags 0"] == calls["nvmlShutdown 0"] == 2
    assert calls["nvmlEventSetCreate 0"] == calls["nvmlEventSetFree 0"] == 2
    assert calls["nvmlGpmSampleAlloc 0"] == calls["nvmlGpmSampleFree 0"]


def test_a_driver_that_was_replaced_is_told_once_with_what_helps(
    stub: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with opened() as session:
        stub.script("nvmlDeviceGetUtilizationRates * 18", "nvmlInitWithFlags 0 18")
        for _ in range(4 * REOPEN_POLLS):
            found = series(session.poll())
        assert of(GPU, found)["hw.status", "failed"] == 1
        told = [record.getMessage() for record in caplog.records if "open again" in record.getMessage()]
        assert len(told) == 1
        assert "restart the agent" in told[0]
        stub.script()
        for _ in range(REOPEN_POLLS + 1):
            found = series(session.poll())
        assert of(GPU, found)["hw.status", "ok"] == 1


def test_without_a_gpu_nothing_stays_open(stub: Any) -> None:
    stub.script("gpus 0 0")
    with pytest.raises(pynvml.NVMLError_GpuNotFound), opened():
        pass
    assert stub.calls()["nvmlShutdown 0"] == 1
