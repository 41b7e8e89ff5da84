"""A function table that passes every call on to NVML and keeps what it answered."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pynvml

from tidegauge.scrapers.recording import MOMENTS, SPLIT, Answer
from tidegauge.scrapers.table import outputs
from tidegauge.scrapers.values import Names, Plain, is_pointer, plain

WRITES = {pynvml.NVML_SUCCESS, pynvml.NVML_ERROR_INSUFFICIENT_SIZE}
"""Answers with which something was written."""


class Recorder:
    """Stands in NVML's place. Several threads may call."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._names = Names()
        self._lock = threading.Lock()
        self.calls: dict[str, list[Answer]] = {}

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._library, name)
        return function if name == "nvmlErrorString" else self._recorded(name, function)

    def _recorded(self, name: str, function: Callable[..., int]) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            returned = function(*arguments)
            with self._lock:
                self._keep(name, arguments, returned)
            return returned

        return call

    def _keep(self, name: str, arguments: tuple[Any, ...], returned: int) -> None:
        key = call_key(name, arguments, self._names)
        written = [plain(one, self._names) for one in outputs(arguments).values()]
        if returned not in WRITES:
            written = []
        elif name in SPLIT:
            for one in things(name, written):
                self._append(thing_key(key, name, one), returned, [_without_names(one)])
            written = []
        self._append(key, returned, written)

    def _append(self, key: str, returned: int, written: list[Plain]) -> None:
        answers = self.calls.setdefault(key, [])
        if answers and answers[-1][1:] == (returned, written):
            answers[-1] = answers[-1]._replace(times=answers[-1].times + 1)
        else:
            answers.append(Answer(1, returned, written))


def call_key(name: str, arguments: tuple[Any, ...], names: Names) -> str:
    """A call and what it was given: `nvmlDeviceGetClockInfo Device1 2 _`, with _ for what it writes to."""
    written = outputs(arguments)
    words = [name]
    samples = []
    for place, argument in enumerate(arguments):
        if place in written or place in MOMENTS.get(name, ()):
            words.append("_")
            if name == "nvmlGpmMetricsGet":
                # The two samples change places with each poll; together they name the device.
                samples = sorted(str(names.name(one)) for one in (written[0].sample1, written[0].sample2))
        elif is_pointer(argument):
            words.append(str(names.name(argument)))
        else:
            words.append(str(getattr(argument, "value", argument)))
    return " ".join([*words, *samples])


def things(name: str, written: list[Plain]) -> list[dict[str, Plain]]:
    """What a call of SPLIT asked for, one by one."""
    [asked] = written
    return list(asked if name == "nvmlDeviceGetFieldValues" else asked["metrics"][: asked["numMetrics"]])


def thing_key(key: str, name: str, thing: dict[str, Plain]) -> str:
    """The key of one thing that a call of SPLIT asked for."""
    return " ".join([key, *(f"{member}={thing[member]}" for member in SPLIT[name])])


def _without_names(thing: dict[str, Plain]) -> dict[str, Plain]:
    kept = ("valueType", "nvmlReturn", "value")
    return {member: thing[member] for member in kept if member in thing}
