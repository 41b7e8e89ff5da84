"""One agent per state_dir."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tidegauge.config import ConfigError
from tidegauge.lock import StateLock


def test_a_second_one_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    state_dir = tmp_path / "deep" / "state"
    with StateLock(state_dir):
        mine = rf"state_dir: .* in use by another agent \(process {os.getpid()}\) \(give each agent its own\)"
        # A lock belongs to an open file: what holds for another process holds for another opening.
        with pytest.raises(ConfigError, match=mine), StateLock(state_dir):
            pass
    with StateLock(state_dir):
        pass


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with (
        pytest.raises(ConfigError, match=r"state_dir: .*state cannot be written"),
        StateLock(tmp_path / "state"),
    ):
        pass


def test_a_folder_that_is_not_needed_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("a file")
    with StateLock(tmp_path / "state", needed=False):
        pass
    assert "a restart will lose what it was to keep" in caplog.text
    with (
        StateLock(tmp_path / "other", needed=False),
        pytest.raises(ConfigError, match="in use"),
        StateLock(tmp_path / "other", needed=False),
    ):
        pass
