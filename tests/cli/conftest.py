"""The commands in this process, which spares each call a start of the interpreter."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from tidegauge.cli.root import commands


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs a command in `tmp_path`: `.exit_code`, `.stdout`, `.stderr`."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        result = CliRunner().invoke(commands, [str(one) for one in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run
