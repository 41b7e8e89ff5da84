"""The OpenTelemetry collector that everything is exported to, and what its answers mean."""

from __future__ import annotations

import enum
import logging
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from tidegauge import __version__
from tidegauge.batch import Signal
from tidegauge.config import ConfigError, OtlpExporter, Problem
from tidegauge.units import parse_endpoint

log = logging.getLogger(__name__)

_SERVICE = "/opentelemetry.proto.collector"
_METHODS: dict[Signal, tuple[str, Any, str]] = {
    Signal.TRACES: (f"{_SERVICE}.trace.v1.TraceService/Export", ExportTraceServiceResponse, "rejected_spans"),
    Signal.METRICS: (
        f"{_SERVICE}.metrics.v1.MetricsService/Export",
        ExportMetricsServiceResponse,
        "rejected_data_points",
    ),
    Signal.LOGS: (
        f"{_SERVICE}.logs.v1.LogsService/Export",
        ExportLogsServiceResponse,
        "rejected_log_records",
    ),
}
# OTLP specification, "OTLP/gRPC Response"; RESOURCE_EXHAUSTED joins them with RetryInfo only.
_RETRYABLE = {
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
}
# What a smaller request, or one without the offending item, may not meet with.
_ABOUT_CONTENT = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_CHANNEL_OPTIONS = (
    ("grpc.primary_user_agent", f"tidegauge/{__version__}"),
    # gRPC's own 2 min would keep a returned collector waiting for longer than our own backoff does.
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)


class Verdict(enum.Enum):
    """What became of a request."""

    DELIVERED = enum.auto()
    RETRY = enum.auto()
    REJECTED = enum.auto()


class Outcome(NamedTuple):
    """A collector's answer.

    `rejected_items` of a delivered request were refused (partial success), and are not to be sent
    again. `delay_s` is the wait that the collector asked for. `about_content`: a part of the
    rejected request may well be taken.
    """

    verdict: Verdict
    rejected_items: int = 0
    delay_s: float | None = None
    about_content: bool = False
    message: str = ""


class Collector:
    """A channel to the collector. An async context manager; leaving it closes the channel.

    A change of what the collector does, and not each attempt, is worth a line in the log. Use it on
    the event loop.

    Raises:
        ConfigError: where the CA file cannot be read.
    """

    def __init__(self, settings: OtlpExporter) -> None:
        if settings.endpoint is None:
            raise ValueError("a collector needs an endpoint")
        self.endpoint = settings.endpoint
        self._settings = settings
        self._credentials = _credentials(settings)
        self._metadata = tuple((key.lower(), value) for key, value in settings.headers.items())
        self._calls: dict[Signal, Any] = {}
        self._unreachable = False
        self._refusals: dict[Signal, str] = {}

    async def __aenter__(self) -> Self:
        host, port = parse_endpoint(self.endpoint.partition("://")[2].rstrip("/"), default_port=4317)
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        gzipped = self._settings.compression == "gzip"
        compression = grpc.Compression.Gzip if gzipped else grpc.Compression.NoCompression
        if self._credentials is None:
            self._channel = grpc.aio.insecure_channel(target, _CHANNEL_OPTIONS, compression)
        else:
            self._channel = grpc.aio.secure_channel(target, self._credentials, _CHANNEL_OPTIONS, compression)
        self._calls = {signal: self._channel.unary_unary(method) for signal, (method, *_) in _METHODS.items()}
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def export(self, signal: Signal, request: bytes) -> Outcome:
        """Send a serialised Export request once. Never raises for what the collector does."""
        try:
            response = await self._calls[signal](
                request, timeout=self._settings.timeout, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            outcome = classify(error)
        else:
            outcome = _delivered(signal, response)
        self._tell(signal, outcome)
        return outcome

    def _tell(self, signal: Signal, outcome: Outcome) -> None:
        unreachable = outcome.verdict is Verdict.RETRY
        if unreachable and not self._unreachable:
            log.warning("collector %s takes nothing: %s", self.endpoint, outcome.message)
        elif self._unreachable and not unreachable:
            log.info("collector %s answers again", self.endpoint)
        self._unreachable = unreachable
        if unreachable:
            return
        if outcome.message and outcome.message != self._refusals.get(signal):
            log.warning("collector %s refuses %s: %s", self.endpoint, signal, outcome.message)
        self._refusals[signal] = outcome.message


def classify(error: grpc.aio.AioRpcError) -> Outcome:
    """What a failed call means for its request (OTLP specification, "OTLP/gRPC Response")."""
    code = error.code()
    delay_s = _retry_delay_s(error)
    message = f"{code.name} {' '.join((error.details() or '').split())}".strip()
    if code in _RETRYABLE or (code is grpc.StatusCode.RESOURCE_EXHAUSTED and delay_s is not None):
        return Outcome(Verdict.RETRY, delay_s=delay_s, message=message)
    return Outcome(Verdict.REJECTED, about_content=code in _ABOUT_CONTENT, message=message)


def _retry_delay_s(error: grpc.aio.AioRpcError) -> float | None:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            info = RetryInfo()
            try:
                # Unpack is true of the first detail that is a RetryInfo.
                if any(detail.Unpack(info) for detail in Status.FromString(value).details):
                    return max(0.0, float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9))
            except DecodeError:
                return None
    return None


def _delivered(signal: Signal, response: bytes) -> Outcome:
    _, kind, field = _METHODS[signal]
    try:
        partial = kind.FromString(response).partial_success
    except DecodeError:
        return Outcome(Verdict.DELIVERED, message="its response cannot be decoded")
    rejected = max(0, getattr(partial, field))
    message = partial.error_message or (f"{rejected} items, without saying why" if rejected else "")
    return Outcome(Verdict.DELIVERED, rejected_items=rejected, message=message)


def _credentials(settings: OtlpExporter) -> grpc.ChannelCredentials | None:
    if not str(settings.endpoint).startswith("https://"):
        return None
    if settings.certificate is None:
        return grpc.ssl_channel_credentials()
    try:
        return grpc.ssl_channel_credentials(Path(settings.certificate).read_bytes())
    except OSError as error:
        reason = f"{settings.certificate} cannot be read: {error.strerror}"
        raise ConfigError([Problem("exporters.otlp.certificate", reason)]) from error
