"""OTLP over gRPC, from the client's side."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from tidegauge import __version__
from tidegauge.batch import Signal
from tidegauge.config import Destination
from tidegauge.exporters.credentials import Credentials
from tidegauge.exporters.outcome import Outcome, Verdict, delivered
from tidegauge.units import parse_endpoint

_SERVICE = "/opentelemetry.proto.collector"
_METHODS = {
    Signal.TRACES: f"{_SERVICE}.trace.v1.TraceService/Export",
    Signal.METRICS: f"{_SERVICE}.metrics.v1.MetricsService/Export",
    Signal.LOGS: f"{_SERVICE}.logs.v1.LogsService/Export",
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
_OPTIONS = (
    ("grpc.primary_user_agent", f"tidegauge/{__version__}"),
    # gRPC's own 2 min would keep a returned collector waiting for longer than our own backoff does.
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)


class GrpcChannel:
    """A gRPC channel. With gzip its calls are made from threads.

    gRPC compresses where a call is started: on the event loop 4 MiB of spans would stop it for 70 ms.
    """

    def __init__(self, settings: Destination, credentials: Credentials) -> None:
        self._settings = settings
        self._credentials = credentials
        headers = credentials.headers(settings)
        self._metadata = tuple((key.lower(), value) for key, value in headers.items())
        self._calls: dict[Signal, Any] = {}
        self._threads: ThreadPoolExecutor | None = None

    async def __aenter__(self) -> Self:
        host, port = parse_endpoint(
            str(self._settings.endpoint).partition("://")[2].rstrip("/"), default_port=4317
        )
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        gzipped = self._settings.compression == "gzip"
        module: Any = grpc if gzipped else grpc.aio
        compression = grpc.Compression.Gzip if gzipped else grpc.Compression.NoCompression
        if self._credentials.context is None:
            self._channel = module.insecure_channel(target, _OPTIONS, compression)
        else:
            ca, certificate, key, _ = self._credentials.files
            tls = grpc.ssl_channel_credentials(ca, key, certificate)
            self._channel = module.secure_channel(target, tls, _OPTIONS, compression)
        self._calls = {signal: self._channel.unary_unary(method) for signal, method in _METHODS.items()}
        if gzipped:
            # One for each call that may be under way, and one for the push.
            self._threads = ThreadPoolExecutor(len(_METHODS) * self._settings.in_flight + 1, "grpc-gzip")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._threads is None:
            await self._channel.close()
            return
        self._channel.close()  # cancels its calls, so the threads come back
        await asyncio.to_thread(self._threads.shutdown)

    async def send(self, signal: Signal, request: bytes) -> Outcome:
        """Send a serialised Export request once. Never raises for what the collector does."""
        timeout_s = float(self._settings.timeout)
        call = partial(self._calls[signal], request, timeout=timeout_s, metadata=self._metadata)
        try:
            if self._threads is None:
                response = await call()
            else:
                response = await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except grpc.RpcError as error:
            return classify(error)
        return delivered(signal, response)


def classify(error: Any) -> Outcome:
    """What a failed call means for its request (OTLP specification, "OTLP/gRPC Response")."""
    code = error.code()
    delay_s = _retry_delay_s(error)
    message = f"{code.name} {' '.join((error.details() or '').split())}".strip()
    if code in _RETRYABLE or (code is grpc.StatusCode.RESOURCE_EXHAUSTED and delay_s is not None):
        late = code is grpc.StatusCode.DEADLINE_EXCEEDED
        return Outcome(Verdict.RETRY, delay_s=delay_s, message=message, timed_out=late)
    return Outcome(Verdict.REJECTED, about_content=code in _ABOUT_CONTENT, message=message)


def _retry_delay_s(error: Any) -> float | None:
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
