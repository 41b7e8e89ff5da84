"""The wire scanner alone, on one core, beside protobuf: the parse, and the parse with a walk in Python."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from bench.figure import Figure
from bench.payload import SPANS, span_request
from tidegauge.config import IdentityAttributes, Timings
from tidegauge.wire.attributes import Keys
from tidegauge.wire.counts import count_records
from tidegauge.wire.traces import scan


def measure(rounds: int) -> Iterator[Figure]:
    """Spans per CPU second of this thread, the three in turn so that they meet the same machine."""
    raw = span_request()
    keys = Keys.of(IdentityAttributes(), Timings())
    steps: tuple[tuple[Callable[[], object], int], ...] = (
        (lambda: scan(raw, count_records(raw), keys), 200),
        (lambda: _walk(raw), 5),
        (lambda: ExportTraceServiceRequest.FromString(raw), 40),
    )
    for step, _ in steps:
        step()
    scans, walks, parses = zip(
        *([_rate(step, repeats) for step, repeats in steps] for _ in range(rounds)), strict=True
    )
    what = f"OTLP spans → columns, {SPANS} x {len(raw) // SPANS} B"
    yield Figure(what, "M spans/core-s", scans, "protobuf and Python", walks)
    yield Figure(what, "M spans/core-s", scans, "protobuf's parse alone", parses)


def _rate(step: Callable[[], object], repeats: int) -> float:
    begin = time.thread_time()
    for _ in range(repeats):
        step()
    return repeats * SPANS / (time.thread_time() - begin) / 1e6


def _walk(raw: bytes) -> list[tuple[int, str, dict[str, object]]]:
    """Duration, name and attributes of every span."""
    return [
        (
            span.end_time_unix_nano - span.start_time_unix_nano,
            span.name,
            {
                pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value")
                for pair in span.attributes
            },
        )
        for resource in ExportTraceServiceRequest.FromString(raw).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
