"""The file that a state survives in: whole or not at all, and damage is seen."""

from __future__ import annotations

import logging
import subprocess
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegauge.statefile import MAGIC, StateError, StateFile

FRAMES = [b"first", b"second" * 1000, b"third"]


def read(file: StateFile) -> tuple[list[bytes], str]:
    """The frames that are sound, and what the damage is."""
    found: list[bytes] = []
    try:
        for frame in file.read():
            found += [frame]
    except StateError as error:
        return found, str(error)
    return found, ""


def test_what_was_written_last_is_read(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "deep" / "state", "drift")
    assert read(file) == ([], "")
    size = file.write([b"old"])
    assert size == (tmp_path / "deep" / "state" / "drift.state").stat().st_size
    file.write(FRAMES)
    assert read(file) == (FRAMES, "")
    assert [path.name for path in (tmp_path / "deep" / "state").iterdir()] == ["drift.state"]


def test_a_complete_state_is_complete_once(tmp_path: Path) -> None:
    file = StateFile(tmp_path, "drift")
    file.write([b"lagging"])
    assert not file.take()
    file.write([b"complete"], complete=True)
    assert file.take()
    assert read(file) == ([b"complete"], "")
    assert not file.take()
    assert read(file) == ([b"complete"], "")


def test_a_write_that_fails_leaves_the_state_before(tmp_path: Path) -> None:
    file = StateFile(tmp_path, "drift")
    file.write(FRAMES)
    (tmp_path / "drift.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        file.write([bytes(100_000)])
    assert read(file) == (FRAMES, "")


def test_a_process_that_dies_in_the_midst_leaves_the_state_before(tmp_path: Path) -> None:
    file = StateFile(tmp_path, "drift")
    file.write(FRAMES)
    dies = (
        "import os, sys; from tidegauge.statefile import StateFile\n"
        "def frames():\n    yield bytes(100_000)\n    os._exit(9)\n"
        "StateFile(sys.argv[1], 'drift').write(frames())"
    )
    assert subprocess.run([sys.executable, "-c", dies, str(tmp_path)], check=False).returncode == 9
    assert read(file) == (FRAMES, "")
    file.write([b"next"])
    assert read(file) == ([b"next"], "")


@given(data=st.data())
@settings(max_examples=200)
def test_damage_anywhere_is_seen_and_costs_no_frame_but_its_own(
    tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    folder = tmp_path_factory.mktemp("state")
    file = StateFile(folder, "drift")
    frames = data.draw(st.lists(st.binary(min_size=1, max_size=50), max_size=5))
    file.write(frames)
    path = folder / "drift.state"
    whole = path.read_bytes()
    ends = [*accumulate((12 + len(frame) for frame in frames), initial=len(MAGIC))]
    if data.draw(st.booleans(), "cut"):
        place = data.draw(st.integers(0, len(whole) - 1))
        path.write_bytes(whole[:place])
        wanted = frames[: max(sum(end <= place for end in ends) - 1, 0)]
    else:
        place = data.draw(st.integers(0, len(whole) - 1))
        changed = bytearray(whole)
        changed[place] ^= data.draw(st.integers(1, 255))
        path.write_bytes(changed)
        hit = sum(end <= place for end in ends) - 1
        is_length = hit >= 0 and place < ends[hit] + 8
        # Without its length nobody knows where the next frame begins.
        wanted = frames[:hit] + ([] if is_length else frames[hit + 1 :]) if hit >= 0 else []
    found, why = read(file)
    assert found == wanted
    assert why


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is no state"),
        (b"PAR1" + bytes(100), "it is no state"),
        (MAGIC[:-1] + b"9" + bytes(12), "it is of another version of the agent"),
        (MAGIC, "its end is missing"),
        (MAGIC + b"\xff" * 12, "its end is missing"),
    ],
)
def test_another_file_is_told_apart(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "drift.state").write_bytes(content)
    assert read(StateFile(tmp_path, "drift")) == ([], why)


def test_what_is_set_aside_is_kept_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = StateFile(tmp_path, "drift")
    file.write(FRAMES)
    with caplog.at_level(logging.WARNING):
        file.set_aside(["m 1 has another reference now", "m 1 has another reference now", "it is damaged"])
    [record] = caplog.records
    assert record.getMessage() == (
        f"the state of {tmp_path}/drift.state was not used: m 1 has another reference now; it is damaged; "
        f"it is kept as {tmp_path}/drift.unused"
    )
    assert (tmp_path / "drift.unused").read_bytes() == (tmp_path / "drift.state").read_bytes()
    file.write([b"next"])
    assert (tmp_path / "drift.unused").read_bytes() != (tmp_path / "drift.state").read_bytes()


def test_a_folder_that_is_none_is_told_and_harms_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("a file")
    file = StateFile(tmp_path / "state", "drift")
    assert not file.take()
    assert read(file)[1] == "it cannot be read: Not a directory"
    with pytest.raises(OSError, match="File exists"):
        file.write(FRAMES)
    file.set_aside(["why"])
    assert len(caplog.records) == 2
