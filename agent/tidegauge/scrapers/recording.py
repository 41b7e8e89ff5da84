"""A recording of NVML: each call that was made, and what was answered, in order.

docs/gpu.md describes the file. It is JSON that can be read and edited by hand; nothing of the
host but what NVML told is in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

Origin = Literal["machine", "stub"]

SPLIT = {
    "nvmlDeviceGetFieldValues": ("fieldId", "scopeId"),
    "nvmlGpmMetricsGet": ("metricId",),
}
"""Calls that ask for many things at once, each with an answer of its own, and what names a thing."""

MOMENTS = {"nvmlDeviceGetProcessUtilization": (3,)}
"""Arguments that are a point in time: the call is the same whatever they say."""


class Answer(NamedTuple):
    """What `times` calls in a row got: an nvmlReturn_t, and what was written, argument by argument."""

    times: int
    returned: int
    written: list[Any]


class Recording(msgspec.Struct, kw_only=True):
    """A recording, by call. `origin` tells a GPU from the C library of the tests, which is none."""

    format: Literal["tidegauge-nvml"] = "tidegauge-nvml"
    version: Literal[1] = 1
    origin: Origin
    about: str
    agent: str
    bindings: str
    polls: int
    interval_s: float
    calls: dict[str, list[Answer]] = {}
    nvidia_smi: list[dict[str, dict[str, str]]] = []


class RecordingError(Exception):
    """A file that is not a recording."""


def load(path: Path) -> Recording:
    """Read a recording.

    Raises:
        RecordingError: where it cannot be read, or is none.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Recording)
    except (OSError, msgspec.DecodeError) as error:
        raise RecordingError(f"{path} is no recording of NVML: {error}") from error


def save(recording: Recording, path: Path) -> None:
    """Write a recording, one line for each call."""
    head = {key: value for key, value in msgspec.to_builtins(recording).items() if key != "calls"}
    lines = [
        f"  {msgspec.json.encode(call).decode()}: {msgspec.json.encode(answers).decode()}"
        for call, answers in sorted(recording.calls.items())
    ]
    text = msgspec.json.format(msgspec.json.encode(head), indent=1).decode().rstrip("\n}").rstrip()
    path.write_text(text + ',\n "calls": {\n' + ",\n".join(lines) + "\n }\n}\n")
