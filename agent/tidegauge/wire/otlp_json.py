"""OTLP/JSON requests, brought into protobuf (OTLP specification, "JSON Protobuf Encoding")."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tidegauge.batch import Signal

_REQUESTS: dict[Signal, type[Message]] = {
    Signal.TRACES: ExportTraceServiceRequest,
    Signal.METRICS: ExportMetricsServiceRequest,
    Signal.LOGS: ExportLogsServiceRequest,
}

_IDS = {"traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id"}


def to_protobuf(signal: Signal, body: bytes) -> bytes:
    """The serialized Export request of `signal` that the JSON `body` describes.

    Unknown fields are ignored.

    Raises:
        ValueError: where it is not JSON, or not such a request, with the reason.
    """
    try:
        # msgspec rather than json, for it refuses halves of surrogates, at which protobuf fails hard.
        tree = _with_base64_ids(msgspec.json.decode(body, type=dict[str, Any]))
        request = ParseDict(tree, _REQUESTS[signal](), ignore_unknown_fields=True)
        return request.SerializeToString()
    except RecursionError:
        raise ValueError("objects are nested too deep") from None
    except (ParseError, msgspec.DecodeError, OverflowError) as error:
        # OverflowError: protobuf lets float() meet whole numbers beyond the doubles.
        raise ValueError(str(error)) from error


def _with_base64_ids(tree: Any) -> Any:
    """Ids are hexadecimal in OTLP/JSON, but protobuf's JSON reader takes all bytes for base64.

    No user's text is ever a key of an object, so a key of that name is an id.
    """
    if isinstance(tree, list):
        return [_with_base64_ids(value) for value in tree]
    if isinstance(tree, dict):
        return {
            key: _base64_id(key, value) if key in _IDS else _with_base64_ids(value)
            for key, value in tree.items()
        }
    return tree


def _base64_id(key: str, value: Any) -> str:
    try:
        return base64.b64encode(bytes.fromhex(value)).decode()
    except (TypeError, ValueError):
        raise ValueError(f"{key} must be a hexadecimal string") from None
