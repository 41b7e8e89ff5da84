"""The audit of dependencies: what it makes of a report, of none, and of exceptions."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("audit", Path(__file__).with_name("audit.py"))
audit = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(audit)


@pytest.mark.parametrize(
    ("known", "reasons", "wrong"),
    [
        ({}, {}, 0),
        ({"CVE-1": "x 1.0"}, {}, 1),
        ({"CVE-1": "x 1.0"}, {"CVE-1": "not reached: ..."}, 0),
        ({"CVE-1": "x 1.0"}, {"CVE-1": " "}, 1),
        ({}, {"CVE-1": "gone"}, 1),
    ],
)
def test_nothing_stays_unexplained(known, reasons, wrong):
    assert len(audit.verdict(known, reasons)) == wrong


def test_the_exceptions_are_read():
    assert isinstance(audit.explained(audit.ROOT / "pyproject.toml"), dict)


def test_what_cannot_be_looked_up_is_said(tmp_path):
    (tmp_path / "lock").write_text("no lock at all ==\n")
    known, why = audit.audit(tmp_path / "lock")
    assert known == {}
    assert why
