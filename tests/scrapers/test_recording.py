"""Recordings: what they keep, that they play back as they were, and what the readings make of them."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tidegauge.cli.root import commands
from tidegauge.config import IdentityAttributes
from tidegauge.metric import Metric, Number
from tidegauge.scrapers import nvidia_smi, recording, table, values
from tidegauge.scrapers.gpu import Terms
from tidegauge.scrapers.models import Models
from tidegauge.scrapers.nvml import DEMO
from tidegauge.scrapers.recorder import Recorder
from tidegauge.scrapers.recording import Answer, Recording, RecordingError
from tidegauge.scrapers.replay import Replay
from tidegauge.scrapers.session import Session

FOLDER = Path(__file__).with_name("recordings")
RECORDINGS = [DEMO, *sorted(FOLDER.glob("*.json"))]
DEMO_SCRIPT = ("gpus 0 1", "links 0 3", "wave 0 1")
WAITS = "nvmlEventSetWait_v2"
POLLS = 3


@contextlib.contextmanager
def opened() -> Iterator[Session]:
    terms = Terms(Models((), IdentityAttributes(), Path("/nowhere")), 8)
    with contextlib.closing(Session(terms, lambda metrics: None)) as session:
        yield session


def lines(metrics: tuple[Metric, ...]) -> list[str]:
    """Metrics as text, one point a line, without what depends on the machine."""
    found = []
    for metric in metrics:
        if metric.name == "tidegauge.gpu.poll.duration":
            continue
        for point in metric.points:
            assert isinstance(point, Number)
            labels = ",".join(f"{key}={value}" for key, value in point.attributes)
            found.append(f"{metric.name}{{{labels}}} {point.value:.12g} {metric.unit}".rstrip())
    return found


def played(path: Path) -> str:
    table.install(Replay(recording.load(path)))
    with opened() as session:
        return "\n".join(
            f"# poll {number}\n" + "\n".join(lines(session.poll())) for number in range(1, POLLS + 1)
        )


@pytest.mark.usefixtures("bindings")
@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_a_recording_is_read_as_it_was_before(path: Path) -> None:
    """`python tests/scrapers/test_recording.py` writes what is read now; look at the difference."""
    golden = FOLDER / f"{path.stem}.txt"
    assert played(path) + "\n" == golden.read_text()


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_a_recording_tells_what_it_was_made_of(path: Path) -> None:
    made = recording.load(path)
    stubbed = any("NVIDIA Stub" in str(answers) for answers in made.calls.values())
    assert (made.origin == "stub") is stubbed
    assert ("No GPU" in made.about) is stubbed


def test_the_demo_is_what_the_stub_answers(stub: Any, tmp_path: Path) -> None:
    """In a process of its own, for the stub counts its polls."""
    stub.script(*DEMO_SCRIPT)
    made = tmp_path / "demo.json"
    environ = os.environ | {"LD_LIBRARY_PATH": str(stub.library), "PATH": str(tmp_path)}
    command = [sys.executable, "-m", "tidegauge", "gpu", "record", "-o", str(made), "--polls", "12"]
    printed = subprocess.run(
        [*command, "--interval", "0.1"], env=environ, capture_output=True, text=True, check=True
    )
    assert "origin stub" in printed.stdout
    assert "the recording is of no GPU" in printed.stderr
    again, demo = recording.load(made).calls, recording.load(DEMO).calls
    assert {key for key in demo if key.startswith(WAITS)} == {key for key in again if key.startswith(WAITS)}
    assert {key: answers for key, answers in again.items() if not key.startswith(WAITS)} == {
        key: answers for key, answers in demo.items() if not key.startswith(WAITS)
    }


def test_a_replay_is_read_as_the_library_was(stub: Any, tmp_path: Path) -> None:
    stub.script("mig 0 2", "links 0 3", "wave 0 1", "processes 0 3", "field 176 3", "gpm 9 3")
    recorder = Recorder(ctypes.CDLL(str(stub.library / "libnvidia-ml.so.1")))
    table.install(recorder)
    with opened() as session:
        seen = [lines(session.poll()) for _ in range(POLLS)]
    made = Recording(
        origin="stub",
        about="",
        agent="",
        bindings="",
        polls=POLLS,
        interval_s=0,
        calls=recorder.calls,
    )
    recording.save(made, tmp_path / "made.json")
    assert recording.load(tmp_path / "made.json") == made
    table.install(Replay(recording.load(tmp_path / "made.json")))
    stub.script("gpus 0 0")
    before = stub.calls()
    with opened() as session:
        assert [lines(session.poll()) for _ in range(POLLS)] == seen
        # The last answers stay, but what compares two polls has nothing new.
        session.poll()
    assert stub.calls() == before


def test_a_loop_begins_anew(bindings: None) -> None:
    table.install(Replay(recording.load(DEMO), loop=True))
    with opened() as session:
        polls = [lines(session.poll()) for _ in range(26)]
    utilization = [next(line for line in poll if "task=general" in line) for poll in polls]
    assert len(set(utilization)) > 5
    assert utilization[12:24] == utilization[:12]


def answered(name: str, *answers: Answer, **more: list[Answer]) -> None:
    made = Recording(
        origin="stub",
        about="",
        agent="",
        bindings="",
        polls=1,
        interval_s=0,
        calls={
            "nvmlInitWithFlags 0": [Answer(1, 0, [])],
            "nvmlShutdown": [Answer(1, 0, [])],
            name: [*answers],
        }
        | more,
    )
    table.install(Replay(made))


def test_what_was_not_recorded_is_not_there(bindings: None) -> None:
    answered("nvmlDeviceGetClockInfo Device1 0 _", Answer(1, 0, [1410]))
    device = pynvml.c_nvmlDevice_t()
    with pytest.raises(pynvml.NVMLError_FunctionNotFound):
        pynvml.nvmlDeviceGetPowerUsage(device)
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetClockInfo(device, 1)


def test_errors_are_played_in_their_order(bindings: None) -> None:
    answered("nvmlDeviceGetPowerUsage None _", Answer(1, 0, [5]), Answer(2, 999, []), Answer(1, 15, []))
    device = pynvml.c_nvmlDevice_t()
    assert pynvml.nvmlDeviceGetPowerUsage(device) == 5
    for _ in range(2):
        with pytest.raises(pynvml.NVMLError_Unknown):
            pynvml.nvmlDeviceGetPowerUsage(device)
    for _ in range(3):
        with pytest.raises(pynvml.NVMLError_GpuIsLost):
            pynvml.nvmlDeviceGetPowerUsage(device)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": "tidegauge-nvml", "version": 2}', '{"format": "other", "version": 1}'],
)
def test_a_file_that_is_no_recording_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(RecordingError, match=r"x\.json is no recording"):
        recording.load(tmp_path / "x.json")


def test_a_recording_is_json_with_a_line_for_each_call() -> None:
    text = DEMO.read_text()
    calls = json.loads(text)["calls"]
    assert sum(line.startswith('  "nvml') for line in text.splitlines()) == len(calls)


class Inner(ctypes.Structure):
    _fields_ = (("count", ctypes.c_uint), ("ratio", ctypes.c_double))


class Either(ctypes.Union):
    _fields_ = (("whole", ctypes.c_ulonglong), ("real", ctypes.c_double))


class Outer(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char * 8),
        ("device", pynvml.c_nvmlDevice_t),
        ("inner", Inner),
        ("value", Either),
        ("numbers", ctypes.c_ushort * 3),
        ("many", Inner * 2),
    )


@given(
    st.text("abc", max_size=7),
    st.integers(0, 2**32 - 1),
    st.floats(allow_nan=False),
    st.integers(0, 2**64 - 1),
    st.lists(st.integers(0, 2**16 - 1), max_size=3),
    st.integers(0, 2),
)
def test_values_come_back_from_json(
    name: str, count: int, ratio: float, whole: int, numbers: list[int], device: int
) -> None:
    inner = Inner(count, ratio)
    addresses = ctypes.cast(ctypes.c_void_p(device * 16), pynvml.c_nvmlDevice_t)
    one = Outer(name.encode(), addresses, inner, Either(whole), (ctypes.c_ushort * 3)(*numbers))
    one.many[1] = inner
    kept = json.loads(json.dumps(values.plain(one, values.Names())))
    assert kept["device"] == ("Device1" if device else None)
    again, names = Outer(), values.Names()
    values.fill(again, kept, names)
    assert values.plain(again, names) == kept
    assert again.name == name.encode()
    assert (again.inner.count, again.value.whole) == (count, whole)
    assert list(again.numbers) == numbers + [0] * (3 - len(numbers))
    assert again.many[1].ratio == ratio


SMI = """#!/bin/sh
case "$1" in --query-gpu=uuid,memory.total,*) ;; *) exit 1;; esac
echo "GPU-00000000-feed, 81920, 1024, 19456, 61440, 37, 12, 45, 123.46, 650.00, 1395, 1593, 2, 4, 8"
echo "GPU-00000001-feed, 81920, 1024, 19456, 61440, [N/A], 13, 46, 123.46, 650.00, 1395, 1593, 3, 4, 8"
"""


def test_nvidia_smi_is_asked_in_the_same_moment(
    stub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program is a script here that prints what the real one would for the stub, but one column."""
    program = tmp_path / "nvidia-smi"
    program.write_text(SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with opened() as session:
        found = list(nvidia_smi.compare(nvidia_smi.ask(), session.poll()))
    assert len(found) == 2 * len(nvidia_smi.QUERIES) - 1
    assert [(one.uuid, one.column, one.told, one.read) for one in found if not one.agrees] == [
        ("GPU-00000001-feed", "ecc.errors.uncorrected.volatile.total", 3, 2)
    ]


def test_without_nvidia_smi_nothing_is_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_smi.ask() == {}
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert nvidia_smi.ask() == {}


def test_a_machine_without_nvml_has_nothing_to_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidegauge.scrapers.recorded.LIBRARY", str(tmp_path / "none.so"))
    result = CliRunner().invoke(commands, ["gpu", "record", "-o", str(tmp_path / "x.json")])
    assert result.exit_code == 1
    assert "nothing to record" in result.output
    assert not (tmp_path / "x.json").exists()


def test_the_demo_is_named_demo(start_agent: Any) -> None:
    agent = start_agent(scrapers={"nvml": {"demo": True, "interval": "100ms"}})
    agent.await_total(80 * 2**30, "hw_gpu_memory_limit_bytes")
    [labels] = agent.samples("hw_status", hw_state="ok")
    assert dict(labels)["hw_name"] == "demo"
    assert "WARNING" in (text := agent.log.read_text())
    assert "the GPU metrics are a demo" in text


if __name__ == "__main__":
    for one in RECORDINGS:
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / f"{one.stem}.txt").write_text(played(one) + "\n")
