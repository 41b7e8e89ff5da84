"""A function table that answers as a recording did."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import pynvml

from tidegauge.scrapers.recorder import WRITES, call_key
from tidegauge.scrapers.recording import SPLIT, Answer, Recording
from tidegauge.scrapers.table import outputs
from tidegauge.scrapers.values import Names, fill


class Replay:
    """Stands in NVML's place. Each call gets its answers in the order in which they were recorded.

    At their end the last one stays, or with `loop` it begins anew: counters then fall back. A call
    that was recorded with other arguments only is not supported, one that was not at all is not there.
    """

    def __init__(self, recording: Recording, *, loop: bool = False) -> None:
        self._answers = {key: _in_order(answers, loop=loop) for key, answers in recording.calls.items()}
        self._functions = {key.partition(" ")[0] for key in recording.calls}
        self._names = Names()
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        if name == "nvmlErrorString":
            return lambda code: f"NVML error {code.value}".encode()
        if name not in self._functions:
            raise AttributeError(name)
        return self._replayed(name)

    def _replayed(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            with self._lock:
                return self._answer(name, arguments)

        return call

    def _answer(self, name: str, arguments: tuple[Any, ...]) -> int:
        key = call_key(name, arguments, self._names)
        if key not in self._answers:
            return int(pynvml.NVML_ERROR_NOT_SUPPORTED)
        _, returned, written = next(self._answers[key])
        if returned in WRITES and name in SPLIT:
            for thing in _asked(name, arguments):
                self._answer_thing(key, name, thing)
        for value, recorded in zip(outputs(arguments).values(), written, strict=False):
            fill(value, recorded, self._names)
        return returned

    def _answer_thing(self, key: str, name: str, thing: Any) -> None:
        its = " ".join([key, *(f"{member}={getattr(thing, member)}" for member in SPLIT[name])])
        if its in self._answers:
            fill(thing, next(self._answers[its]).written[0], self._names)
        else:
            thing.nvmlReturn = pynvml.NVML_ERROR_NOT_SUPPORTED


def _asked(name: str, arguments: tuple[Any, ...]) -> Any:
    [values] = outputs(arguments).values()
    return values if name == "nvmlDeviceGetFieldValues" else values.metrics[: values.numMetrics]


def _in_order(answers: list[Answer], *, loop: bool) -> Iterator[Answer]:
    for one in cycle(answers) if loop else answers:
        for _ in range(one.times):
            yield one
    while answers:
        yield answers[-1]
