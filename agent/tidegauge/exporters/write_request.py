"""Prometheus' remote write requests: prometheus.WriteRequest (1.0) and io.prometheus.write.v2.Request (2.0).

Written by hand like the other protobuf here (proto/remote_write.proto), in snappy's block format, which
pyarrow has. In 2.0 strings are named by their place in a table of symbols, and each series carries its
family's metadata.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Literal

import pyarrow as pa

from tidegauge.exporters.families import Family, exemplar_pairs
from tidegauge.exporters.protobuf_format import varint, zigzag
from tidegauge.exporters.samples import Labels, NativeHistogram, Sample
from tidegauge.metric import Exemplar

Version = Literal["1.0", "2.0"]

STALE = struct.pack("<Q", 0x7FF0000000000002)
"""The NaN that says that a series has ended, as the bytes of a double."""

_DOUBLE = struct.Struct("<d").pack
_TYPES = {"counter": 1, "gauge": 2, "histogram": 3, "summary": 5}
_SNAPPY = pa.Codec("snappy")


class Strings:
    """The table of symbols; the empty one is first."""

    def __init__(self) -> None:
        self._places = {"": 0}

    def __getitem__(self, text: str) -> int:
        return self._places.setdefault(text, len(self._places))

    def encoded(self) -> bytes:
        """Field 4 of a Request, once for each."""
        return b"".join(_text(b"\x22", text) for text in self._places)


def write_request(
    samples: Sequence[Sample], time_ms: int, version: Version, ended: Iterable[tuple[Labels, bool]] = ()
) -> bytes:
    """The samples at that time (Unix, in milliseconds) as a request, compressed.

    `ended` are series of which this is the end, and whether they are native histograms.
    """
    body = _first(samples, time_ms, ended) if version == "1.0" else _second(samples, time_ms, ended)
    return bytes(_SNAPPY.compress(body, asbytes=True))


def _first(samples: Sequence[Sample], time_ms: int, ended: Iterable[tuple[Labels, bool]]) -> bytes:
    time = b"\x10" + varint(time_ms)
    parts = []
    for sample in samples:
        labels = b"".join(_sized(b"\x0a", _text(b"\x0a", k) + _text(b"\x12", v)) for k, v in sample.labels)
        if isinstance(sample.value, NativeHistogram):
            value = _sized(b"\x22", _histogram(sample.value, time_ms))
        else:
            value = _sized(b"\x12", b"\x09" + _DOUBLE(sample.value) + time)
        exemplars = b"".join(_sized(b"\x1a", _exemplar(one)) for one in sample.exemplars if one.time_ns)
        parts.append(_sized(b"\x0a", labels + value + exemplars))
    for pairs, native in ended:
        labels = b"".join(_sized(b"\x0a", _text(b"\x0a", k) + _text(b"\x12", v)) for k, v in pairs)
        value = _sized(b"\x22", _ended(time_ms)) if native else _sized(b"\x12", b"\x09" + STALE + time)
        parts.append(_sized(b"\x0a", labels + value))
    known = {sample.family.name: sample.family for sample in samples}
    return b"".join([*parts, *(_sized(b"\x1a", _metadata(family)) for family in known.values())])


def _metadata(family: Family) -> bytes:
    name = f"{family.name}_total" if family.type == "counter" else family.name
    kind = b"\x08" + varint(_TYPES[family.type])
    return kind + _text(b"\x12", name) + _text(b"\x22", family.help) + _text(b"\x2a", family.unit)


def _exemplar(exemplar: Exemplar) -> bytes:
    pairs = sorted(exemplar_pairs(exemplar))
    labels = b"".join(_sized(b"\x0a", _text(b"\x0a", name) + _text(b"\x12", value)) for name, value in pairs)
    return labels + b"\x11" + _DOUBLE(exemplar.value) + b"\x18" + varint(exemplar.time_ns // 10**6)


def _second(samples: Sequence[Sample], time_ms: int, ended: Iterable[tuple[Labels, bool]]) -> bytes:
    strings = Strings()
    time = b"\x10" + varint(time_ms)
    parts = []
    for sample in samples:
        start = b"\x18" + varint(sample.start_ms) if sample.start_ms else b""
        if isinstance(sample.value, NativeHistogram):
            began = b"\x88\x01" + varint(sample.start_ms) if sample.start_ms else b""
            value = _sized(b"\x1a", _histogram(sample.value, time_ms) + began)
        else:
            value = _sized(b"\x12", b"\x09" + _DOUBLE(sample.value) + time + start)
        exemplars = b"".join(
            _sized(b"\x22", _exemplar_by_reference(one, strings)) for one in sample.exemplars if one.time_ns
        )
        family = sample.family
        about = b"\x08" + varint(_TYPES[family.type])
        about += b"\x18" + varint(strings[family.help]) + b"\x20" + varint(strings[family.unit])
        body = _references(sample.labels, strings) + value + exemplars + _sized(b"\x2a", about)
        parts.append(_sized(b"\x2a", body))
    for pairs, native in ended:
        value = _sized(b"\x1a", _ended(time_ms)) if native else _sized(b"\x12", b"\x09" + STALE + time)
        parts.append(_sized(b"\x2a", _references(pairs, strings) + value))
    return strings.encoded() + b"".join(parts)


def _references(pairs: Iterable[tuple[str, str]], strings: Strings) -> bytes:
    """Field 1 of a TimeSeries and of an Exemplar: names and values by their places."""
    return _sized(b"\x0a", b"".join(varint(strings[text]) for pair in pairs for text in pair))


def _exemplar_by_reference(exemplar: Exemplar, strings: Strings) -> bytes:
    labels = _references(sorted(exemplar_pairs(exemplar)), strings)
    return labels + b"\x11" + _DOUBLE(exemplar.value) + b"\x18" + varint(exemplar.time_ns // 10**6)


def _histogram(value: NativeHistogram, time_ms: int) -> bytes:
    """A Histogram, which has the same fields in both."""
    found = value.buckets
    parts = [b"\x08", varint(value.observations), b"\x19", _DOUBLE(value.sum), b"\x20", zigzag(found.schema)]
    parts += [b"\x29", _DOUBLE(found.zero_threshold), b"\x30", varint(value.zero_count)]
    sides = (
        (b"\x42", b"\x4a", found.negative_spans, found.negative_deltas),
        (b"\x5a", b"\x62", found.positive_spans, found.positive_deltas),
    )
    for span, delta, spans, deltas in sides:
        parts += [_sized(span, b"\x08" + zigzag(offset) + b"\x10" + varint(size)) for offset, size in spans]
        if deltas:
            parts.append(_sized(delta, b"".join(map(zigzag, deltas))))
    return b"".join([*parts, b"\x78", varint(time_ms)])


def _ended(time_ms: int) -> bytes:
    """A Histogram that says that its series has ended: by its sum."""
    return b"\x08\x00\x19" + STALE + b"\x78" + varint(time_ms)


def _sized(tag: bytes, body: bytes) -> bytes:
    return tag + varint(len(body)) + body


def _text(tag: bytes, text: str) -> bytes:
    return _sized(tag, text.encode("utf-8", "replace"))
