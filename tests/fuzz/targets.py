"""What the fuzzer holds: a reader agrees with the protobuf library, on what is no request too.

The oracles are those of tests/wire, read from there. Import behind `plain.replace_instructions`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import plain
from google.protobuf.message import DecodeError

WIRE = Path(__file__).parents[1] / "wire"


def oracle(name: str) -> ModuleType:
    """A module of tests/wire."""
    spec = importlib.util.spec_from_file_location(f"oracle_{name}", WIRE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Target:
    """Compares what is read of a request with what protobuf reads of it."""

    def __init__(self, read: Callable[[bytes], Any], walk: Callable[[bytes], Any]) -> None:
        self._read = read
        self._walk = walk
        self.agreed = self.refused = 0

    def __call__(self, raw: bytes) -> None:
        """Raises AssertionError for a disagreement, and whatever a reader raises but ValueError."""
        try:
            found = self._read(raw)
        except ValueError:
            found = None
        try:
            expected = self._walk(raw)
        except DecodeError:
            assert found is None, "the reader takes what protobuf refuses"
            self.refused += 1
            return
        assert found is not None, "the reader refuses what protobuf reads"
        assert found == expected
        self.agreed += 1


def targets() -> dict[str, Target]:
    """The targets by name, their readers prepared."""
    traces, metrics, logs = oracle("test_traces"), oracle("test_metrics"), oracle("test_logs")
    plain.watch_reads()
    traces.KEYS = plain.on_records(traces.KEYS)
    logs.KEYS = plain.on_records(logs.KEYS)
    return {
        "traces": Target(lambda raw: traces.columns(raw, traces.KEYS), traces.walk),
        "logs": Target(logs.columns, logs.walk),
        "metrics": Target(metrics.columns, metrics.points),
    }
