"""What a collector's answer means for the request that it answers."""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from tidegauge.batch import Signal

_RESPONSES: dict[Signal, tuple[Any, str]] = {
    Signal.TRACES: (ExportTraceServiceResponse, "rejected_spans"),
    Signal.METRICS: (ExportMetricsServiceResponse, "rejected_data_points"),
    Signal.LOGS: (ExportLogsServiceResponse, "rejected_log_records"),
}


class Verdict(enum.Enum):
    """What became of a request."""

    DELIVERED = enum.auto()
    RETRY = enum.auto()
    REJECTED = enum.auto()


class Outcome(NamedTuple):
    """A collector's answer.

    `rejected_items` of a delivered request were refused (partial success), and are not to be sent
    again. `delay_s` is the wait that the collector asked for. `about_content`: a part of the
    rejected request may well be taken. `timed_out`: a smaller one may be in time.
    """

    verdict: Verdict
    rejected_items: int = 0
    delay_s: float | None = None
    about_content: bool = False
    message: str = ""
    timed_out: bool = False


def delivered(signal: Signal, response: bytes) -> Outcome:
    """What the Export response of a successful call says."""
    kind, field = _RESPONSES[signal]
    try:
        partial = kind.FromString(response).partial_success
    except DecodeError:
        return Outcome(Verdict.DELIVERED, message="its response cannot be decoded")
    rejected = max(0, getattr(partial, field))
    message = partial.error_message or (f"{rejected} items, without saying why" if rejected else "")
    return Outcome(Verdict.DELIVERED, rejected_items=rejected, message=message)
