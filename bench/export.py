"""How long a sender waits for an Export call under half load, beside the OpenTelemetry Collector.

Half load is half of the calls per second that each takes when several are always in flight, measured
in the same round. The work is that of `relay`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack

from bench.collector import MissingError, binary
from bench.figure import Figure
from bench.pace import PERCENTILES, calls
from bench.payload import SPANS
from bench.relay import Record, start_agent, start_collector

SIZES = {SPANS: 400, 8: 3000}
"""Spans of a request, and how many requests find out what is half load."""

Found = defaultdict[tuple[int, str], list[float]]


def measure(rounds: int, seconds: float) -> Iterator[Figure | str]:
    """Percentiles of the Export call for large and small requests."""
    with ExitStack() as started:
        records = [Record(start_agent(started))]
        name = ""
        try:
            program, version = binary()
        except MissingError as missing:
            yield str(missing)
        else:
            # Without its batch processor: an answer then waits for the same work as the agent's.
            records.append(Record(start_collector(started, program, "lean")))
            name = f"Collector {version}, lean"
        found: list[Found] = [defaultdict(list) for _ in records]
        for _ in range(rounds):
            for size in SIZES:
                for record, into in zip(records, found, strict=True):
                    _round(record, size, seconds, into)
        own, *others = found
        for size in SIZES:
            for what in (*(f"p{which:g}" for which in PERCENTILES), "late_ms", "rate"):
                its = others[0][size, what] if others else []
                label, unit, less = _label(what)
                yield Figure(
                    f"Export call of {size} spans, half load, {label}", unit, own[size, what], name, its, less
                )


def _label(what: str) -> tuple[str, str, bool]:
    match what:
        case "late_ms":
            return "of which the sender itself, p99", "ms", True
        case "rate":
            return "which is", "calls/s", False
        case _:
            return what, "ms", True


def _round(record: Record, spans: int, seconds: float, found: Found) -> None:
    requests = SIZES[spans]
    rate = requests / record.send(requests, spans) / 2
    told = calls(record.subject.port, rate, seconds, spans)
    if failed := told.pop("failed"):
        raise RuntimeError(f"{failed:g} calls failed under half load")
    record.sent += (int(rate * seconds) + 20) * spans
    record.subject.sink.settle(record.sent)
    for what, value in told.items():
        found[spans, what].append(value)
    found[spans, "rate"].append(rate)
