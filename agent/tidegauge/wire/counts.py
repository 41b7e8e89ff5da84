"""Counts what an OTLP request holds, without decoding it.

What is walked is validated: the request, its resources and scopes, and each metric down to its list of
points. What lies inside a span, a data point or a log record is passed over by its length.
"""

from __future__ import annotations

import numpy as np
from numba import types

from tidegauge.stats.kernel import KERNEL, kernel
from tidegauge.wire.protobuf import BYTES, check, field, view

# Request.resource_*; then resource_*.scope_* and scope_*.{spans, metrics, log_records} share a number.
RESOURCES, SCOPES, LEAVES = 0x0A, 0x12, 0x12
GAUGE, SUM, HISTOGRAM, EXPONENTIAL_HISTOGRAM, SUMMARY = 0x2A, 0x3A, 0x4A, 0x52, 0x5A
POINTS = 0x0A


def count_records(raw: bytes) -> int:
    """Spans of a trace request, or log records of a logs request.

    Raises:
        ValueError: where the bytes are no such request, with the reason.
    """
    return check(_leaves(view(raw), False))


def count_points(raw: bytes) -> int:
    """Data points of a metrics request. Raises ValueError like `count_records`."""
    return check(_leaves(view(raw), True))


@kernel(types.int64(BYTES, types.int64, types.int64), **KERNEL)
def _metric(buf, pos, end):  # type: ignore[no-untyped-def]
    """Points of one Metric. Its data is a oneof: the last kind counts, and pieces of one kind add up."""
    kind, count = 0, 0
    while pos < end:
        tag, _, start, pos = field(buf, pos, end, 3)
        if pos < 0:
            return pos
        if tag in (GAUGE, SUM, HISTOGRAM, EXPONENTIAL_HISTOGRAM, SUMMARY):
            if tag != kind:
                kind, count = tag, 0
            inner = start
            while inner < pos:
                tag, _, _, inner = field(buf, inner, pos, 4)
                if inner < 0:
                    return inner
                if tag == POINTS:
                    count += 1
    return count


@kernel(types.int64(BYTES, types.int64, types.int64, types.boolean), **KERNEL)
def _scope(buf, pos, end, metrics):  # type: ignore[no-untyped-def]
    count = 0
    while pos < end:
        tag, _, start, pos = field(buf, pos, end, 2)
        if pos < 0:
            return pos
        if tag == LEAVES:
            found = _metric(buf, start, pos) if metrics else 1
            if found < 0:
                return found
            count += found
    return count


@kernel(types.int64(BYTES, types.boolean), **KERNEL)
def _leaves(buf, metrics):  # type: ignore[no-untyped-def]
    count, pos, end = 0, 0, np.int64(buf.size)
    while pos < end:
        tag, _, inner, pos = field(buf, pos, end, 0)
        if pos < 0:
            return pos
        while tag == RESOURCES and inner < pos:
            scope, _, start, inner = field(buf, inner, pos, 1)
            if inner < 0:
                return inner
            if scope == SCOPES:
                found = _scope(buf, start, inner, metrics)
                if found < 0:
                    return found
                count += found
    return count
