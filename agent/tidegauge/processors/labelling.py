"""The labels of received series: attributes as text, the scope's, and `job` and `instance` of the resource.

Sources: OpenTelemetry's "Prometheus and OpenMetrics Compatibility" for which there are, and its common
specification's "AnyValue representation for non-OTLP protocols" for how values read.
"""

from __future__ import annotations

import base64
import functools
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    ExponentialHistogramDataPoint,
    HistogramDataPoint,
    NumberDataPoint,
    SummaryDataPoint,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from tidegauge.identity import OVERFLOW
from tidegauge.metric import Attributes
from tidegauge.wire.metrics import PointKind
from tidegauge.wire.points import gather

T = TypeVar("T")

MOST_LABELS = 64
MOST_TEXT = 4096
"""Characters of all keys and values of a series. A larger label set is one for the overflow series."""

_MOST_TARGET_TEXT = 256  # characters of a value on target_info, such as of a process's command line
_MOST_BYTES = 2**16  # of a resource, or of a scope
_MOST_TEXT_BYTES = 4 * MOST_TEXT
_MOST_ATTRIBUTE_BYTES = 2 * _MOST_TEXT_BYTES  # of a point: what has more is too large for a series
_SCHEMA_URL = 0x1A
_SUBMESSAGE = 0x0A
_POINTS: Mapping[
    PointKind,
    tuple[type[NumberDataPoint | HistogramDataPoint | ExponentialHistogramDataPoint | SummaryDataPoint], int],
] = {
    PointKind.GAUGE: (NumberDataPoint, 0x3A),
    PointKind.SUM: (NumberDataPoint, 0x3A),
    PointKind.HISTOGRAM: (HistogramDataPoint, 0x4A),
    PointKind.EXPONENTIAL_HISTOGRAM: (ExponentialHistogramDataPoint, 0x0A),
    PointKind.SUMMARY: (SummaryDataPoint, 0x3A),
}
"""The message of a point, and the tag of its attributes."""


class Target(NamedTuple):
    """What a resource is to Prometheus: `job` and `instance`, and what else is known of it."""

    labels: Attributes
    info: Attributes


class Places:
    """Finds the labels of data points of one request, and reads each resource and scope of it once.

    What cannot be read is remembered as well: to read it again for each point could take hours.
    """

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._targets: dict[int, Target | ValueError] = {}
        self._scopes: dict[int, Attributes | ValueError] = {}

    def target(self, point: np.void) -> Target:
        """The target that a POINT is of. Raises ValueError where its resource is too large."""
        offset = int(point["resource_offset"])
        if offset not in self._targets:
            try:
                raw = gather(self._raw, offset, int(point["resource_length"]), 1, _SUBMESSAGE, _MOST_BYTES)
                self._targets[offset] = _target(raw)
            except ValueError as error:
                self._targets[offset] = error
        return _or_raise(self._targets[offset])

    def labels(self, point: np.void) -> Attributes:
        """All labels of a POINT, its own first; the overflow's where they are too many to be read.

        Raises ValueError where its resource or scope is too large.
        """
        message, tag = _POINTS[PointKind(int(point["kind"]))]
        place = int(point["offset"]), int(point["length"])
        try:
            # Not all of the point: a million exemplars, as objects, would stop all threads for seconds.
            raw = gather(self._raw, *place, 5, tag, _MOST_ATTRIBUTE_BYTES, framed=True)
        except ValueError:
            return OVERFLOW
        decoded = message.FromString(raw)
        target = self.target(point).labels
        # As Prometheus renames a label of a target that clashes with its own.
        taken = {key for key, _ in target}
        own = ((f"exported_{key}" if key in taken else key, text) for key, text in _texts(decoded.attributes))
        return (*own, *self._scope(point), *target)

    def _scope(self, point: np.void) -> Attributes:
        offset, length = int(point["scope_offset"]), int(point["scope_length"])
        if offset not in self._scopes:
            try:
                scope = gather(self._raw, offset, length, 2, _SUBMESSAGE, _MOST_BYTES)
                url = gather(self._raw, offset, length, 2, _SCHEMA_URL, _MOST_TEXT_BYTES, only_last=True)
                self._scopes[offset] = _scope(scope, url)
            except ValueError as error:
                self._scopes[offset] = error
        return _or_raise(self._scopes[offset])


def _or_raise(found: T | ValueError) -> T:
    if isinstance(found, ValueError):
        raise found
    return found


def is_too_large(labels: Attributes) -> bool:
    """Whether the label set is beyond what one series may take."""
    return len(labels) > MOST_LABELS or sum(len(key) + len(text) for key, text in labels) > MOST_TEXT


@functools.lru_cache(maxsize=64)
def _target(raw: bytes) -> Target:
    attributes = dict(_texts(Resource.FromString(raw).attributes))
    namespace, name = attributes.pop("service.namespace", ""), attributes.pop("service.name", "")
    job = f"{namespace}/{name}" if namespace and name else name
    instance = attributes.pop("service.instance.id", "")
    labels = tuple((key, text) for key, text in (("job", job), ("instance", instance)) if text)
    taken = {key for key, _ in labels}
    info = tuple(
        (key[:_MOST_TARGET_TEXT], text[:_MOST_TARGET_TEXT])
        for key, text in list(attributes.items())[:MOST_LABELS]
        if key not in taken
    )
    return Target(labels, info)


@functools.lru_cache(maxsize=256)
def _scope(raw: bytes, url: bytes) -> Attributes:
    scope = InstrumentationScope.FromString(raw)
    named = (("name", scope.name), ("version", scope.version), ("schema_url", url.decode()))
    own = {
        key: text for key, text in _texts(scope.attributes) if key not in ("name", "version", "schema_url")
    }
    return tuple((f"otel_scope_{key}", text) for key, text in (*named, *own.items()) if text)


def _texts(attributes: Iterable[KeyValue]) -> Iterable[tuple[str, str]]:
    """Keys and texts, the empty ones left out; of two with the same key the first counts."""
    found: dict[str, str] = {}
    for attribute in attributes:
        found.setdefault(attribute.key, text(attribute.value))
    return ((key, value) for key, value in found.items() if value)


def text(value: AnyValue) -> str:
    """A value as text: strings as they are, bytes as Base64, all others as JSON; nothing is ""."""
    case = value.WhichOneof("value")
    if case == "string_value":
        return value.string_value
    if case is None or case == "string_value_strindex":
        return ""
    plain = _plain(value)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False, separators=(",", ":"))


def _plain(value: AnyValue) -> Any:
    match value.WhichOneof("value"):
        case "array_value":
            return [_plain(one) for one in value.array_value.values]
        case "kvlist_value":
            return {one.key: _plain(one.value) for one in value.kvlist_value.values}
        case "bytes_value":
            return base64.b64encode(value.bytes_value).decode()
        case "double_value" if not math.isfinite(value.double_value):
            number = value.double_value
            return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
        case "string_value" | "bool_value" | "int_value" | "double_value" as case:
            return getattr(value, case)
        case _:
            return None
