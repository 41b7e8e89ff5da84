"""Prometheus' protobuf exposition: length-delimited io.prometheus.client.MetricFamily messages.

It is the format that carries native histograms and start times. Written by hand: the messages are few
(proto/prometheus.proto), and a message object for each point and bucket would cost several times as
much. Every exponential histogram has its classic buckets beside the native ones, the same as in the text
formats, and Prometheus keeps which it is told to (`always_scrape_classic_histograms`).
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from tidegauge.exporters.buckets import by_bucket, classic_bounds, classic_counts, native, view_of
from tidegauge.exporters.families import Family, check_points, exemplar_pairs, label_pairs
from tidegauge.exporters.text_format import ascending
from tidegauge.metric import (
    Attributes,
    Exemplar,
    ExponentialHistogram,
    Histogram,
    Kind,
    Metric,
    Number,
    Summary,
)

Points = Sequence[tuple[bytes, Any]]
"""Points, of the metric's kind, with their keys: the LabelPair fields of a Metric."""

_TYPES = {"counter": 0, "gauge": 1, "summary": 2, "histogram": 4}
_ONE_BYTE = tuple(bytes((number,)) for number in range(128))
_DOUBLE = struct.Struct("<d").pack


class Protobuf:
    """The encoder. What a series is known by is its labels as encoded."""

    end = b""

    def key(self, attributes: Attributes, type_: str) -> bytes:
        """The labels of a series of a family of that type."""
        return _labels(label_pairs(attributes, type_))

    def head(self, family: Family, size: int) -> bytes:
        """The family's length, and its fields but for its metrics, which take `size` bytes."""
        name = f"{family.name}_total" if family.type == "counter" else family.name
        fields = _text(b"\x0a", name) + _text(b"\x12", family.help)
        fields += b"\x18" + _ONE_BYTE[_TYPES[family.type]]
        if family.unit:
            fields += _text(b"\x2a", family.unit)
        return varint(len(fields) + size) + fields

    def points(self, family: Family, metric: Metric, points: Points) -> bytes:
        """Some points of one of the family's metrics, each a field of the family.

        Raises:
            TypeError: where a point is none of the metric's kind.
            ValueError: where a histogram's bounds do not ascend, or are not one less than its counts,
                or a count does not fit.
        """
        check_points(metric.kind, [point for _, point in points])
        start_ns = metric.start_ns
        match metric.kind:
            case Kind.GAUGE:
                bodies = [key + b"\x12\x09\x09" + _DOUBLE(point.value) for key, point in points]
            case Kind.COUNTER:
                bodies = [key + _counter(point, start_ns) for key, point in points if point.value >= 0]
            case Kind.HISTOGRAM:
                bodies = [key + _histogram(point, start_ns) for key, point in points]
            case Kind.EXPONENTIAL_HISTOGRAM:
                bodies = [key + _exponential(point, metric.unit, start_ns) for key, point in points]
            case Kind.SUMMARY:
                bodies = [key + _summary(point, start_ns) for key, point in points]
        return b"".join([b"\x22" + varint(len(body)) + body for body in bodies])


def varint(number: int) -> bytes:
    """A number in [0, 2**64) as a base 128 varint.

    Raises:
        ValueError: where it is not in there, and would end the whole scrape.
    """
    if 0 <= number < 128:
        return _ONE_BYTE[number]
    if 0 <= number < 16384:  # most of what is longer
        return bytes((number & 127 | 128, number >> 7))
    if not 0 <= number < 1 << 64:
        raise ValueError(f"{number} does not fit into 64 bits")
    out = bytearray()
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def zigzag(number: int) -> bytes:
    """A signed number as sint32 and sint64 have it."""
    return varint(number << 1 if number >= 0 else (-number << 1) - 1)


def _sized(tag: bytes, body: bytes) -> bytes:
    return tag + varint(len(body)) + body


def _text(tag: bytes, text: str) -> bytes:
    return _sized(tag, text.encode("utf-8", "replace"))


def _labels(pairs: Sequence[tuple[str, str]]) -> bytes:
    return b"".join([_sized(b"\x0a", _text(b"\x0a", name) + _text(b"\x12", value)) for name, value in pairs])


@functools.lru_cache(maxsize=1024)
def _time(time_ns: int) -> bytes:
    """A google.protobuf.Timestamp's fields."""
    seconds, nanos = divmod(time_ns, 10**9)
    return b"\x08" + varint(seconds) + (b"\x10" + varint(nanos) if nanos else b"")


def _start(tag: bytes, start_ns: int) -> bytes:
    return _sized(tag, _time(start_ns)) if start_ns else b""


def _exemplar(exemplar: Exemplar) -> bytes:
    body = _labels(exemplar_pairs(exemplar)) + b"\x11" + _DOUBLE(exemplar.value)
    return body + _start(b"\x1a", exemplar.time_ns)


def _counter(point: Number, start_ns: int) -> bytes:
    body = b"\x09" + _DOUBLE(point.value)
    if point.exemplar is not None:
        body += _sized(b"\x12", _exemplar(point.exemplar))
    return _sized(b"\x1a", body + _start(b"\x1a", point.start_ns or start_ns))


def _summary(point: Summary, start_ns: int) -> bytes:
    parts = [b"\x08", varint(point.count), b"\x11", _DOUBLE(point.sum)]
    for quantile, value in point.quantiles:
        parts += b"\x1a\x12\x09", _DOUBLE(quantile), b"\x11", _DOUBLE(value)
    parts.append(_start(b"\x22", point.start_ns or start_ns))
    return _sized(b"\x22", b"".join(parts))


def _histogram(point: Histogram, start_ns: int) -> bytes:
    if len(point.counts) != len(ascending(point.bounds)):
        raise ValueError(f"{len(point.counts)} counts between {len(point.bounds)} bounds")
    below = list(accumulate(point.counts))
    exemplars = by_bucket(point.bounds, point.exemplars)
    parts = [
        _totals(below[-1], point.sum),
        _buckets(_bounds(point.bounds), below, exemplars),
        _start(b"\x7a", point.start_ns or start_ns),
    ]
    return _sized(b"\x3a", b"".join(parts))


def _exponential(point: ExponentialHistogram, unit: str, start_ns: int) -> bytes:
    view = view_of(unit)
    bounds = classic_bounds(view)
    parts = [
        _totals(point.count, point.sum),
        _buckets(_bounds(bounds), classic_counts(point, view), by_bucket(bounds, point.exemplars)),
        _native(point),
        _start(b"\x7a", point.start_ns or start_ns),
    ]
    return _sized(b"\x3a", b"".join(parts))


def _totals(count: int, total: float) -> bytes:
    return b"\x08" + varint(count) + b"\x11" + _DOUBLE(total)


def _buckets(bounds: Sequence[bytes], below: Sequence[int], exemplars: Mapping[int, Exemplar]) -> bytes:
    buckets = [b"\x08" + varint(count) + bound for count, bound in zip(below, bounds, strict=True)]
    for place, exemplar in exemplars.items():
        buckets[place] += _sized(b"\x1a", _exemplar(exemplar))
    return b"".join([b"\x1a" + varint(len(bucket)) + bucket for bucket in buckets])


@functools.lru_cache(maxsize=256)
def _bounds(bounds: tuple[float, ...]) -> tuple[bytes, ...]:
    return tuple(b"\x11" + _DOUBLE(bound) for bound in (*bounds, math.inf))


def _native(point: ExponentialHistogram) -> bytes:
    found = native(point)
    if found is None:
        return b""
    parts = [b"\x28", zigzag(found.schema), b"\x31", _DOUBLE(found.zero_threshold)]
    parts += b"\x38", varint(point.zero_count)
    for tag, spans in ((b"\x4a", found.negative_spans), (b"\x62", found.positive_spans)):
        parts += [
            _sized(tag, b"\x08" + zigzag(offset) + b"\x10" + varint(length)) for offset, length in spans
        ]
    for tag, deltas in ((b"\x52", found.negative_deltas), (b"\x6a", found.positive_deltas)):
        if deltas:
            parts.append(_sized(tag, b"".join(map(zigzag, deltas))))
    # Those of native buckets must have a time ("Native Histograms", "Exemplars").
    parts += [_sized(b"\x82\x01", _exemplar(one)) for one in point.exemplars if one.time_ns]
    return b"".join(parts)
