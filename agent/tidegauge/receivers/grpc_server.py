"""The one gRPC port: OTLP's three services, and whatever services it is given besides."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import NoReturn, Self

import grpc
from google.protobuf.any_pb2 import Any
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from tidegauge.batch import Signal
from tidegauge.config import ConfigError, GrpcReceiver, Problem
from tidegauge.receivers.otlp import RETRY_DELAY_S, OtlpReceiver, Outcome, Verdict
from tidegauge.units import parse_endpoint

RECEIVER = "otlp_grpc"

_SERVICES = {
    Signal.TRACES: "opentelemetry.proto.collector.trace.v1.TraceService",
    Signal.METRICS: "opentelemetry.proto.collector.metrics.v1.MetricsService",
    Signal.LOGS: "opentelemetry.proto.collector.logs.v1.LogsService",
}

_CODES = {
    Verdict.UNDECODABLE: grpc.StatusCode.INVALID_ARGUMENT,
    Verdict.QUEUE_FULL: grpc.StatusCode.UNAVAILABLE,
    # Without RetryInfo, RESOURCE_EXHAUSTED tells a sender not to try again.
    Verdict.TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
}

_SUCCESS = b""
"""An Export response without partial success: no field at all."""


class GrpcServer:
    """Serves OTLP, and `services` besides, on `receivers.grpc.endpoint`.

    An async context manager: entering it listens, leaving it lets calls finish for `grace_s` seconds.
    Load is shed by refusing with UNAVAILABLE, not by `maximum_concurrent_rpcs`: the status that gRPC
    answers there makes senders drop what they have.
    """

    def __init__(
        self,
        settings: GrpcReceiver,
        otlp: OtlpReceiver,
        services: Sequence[grpc.GenericRpcHandler] = (),
        *,
        grace_s: float = 1.5,
    ) -> None:
        self._settings = settings
        self._services = (*(_service(otlp, signal) for signal in _SERVICES), *services)
        self._grace_s = grace_s
        self._server: grpc.aio.Server | None = None
        self._port = 0

    @property
    def port(self) -> int:
        """The port it listens on, also where the endpoint's is 0."""
        return self._port

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server(
            options=(
                # It holds for the message as sent and as decompressed.
                ("grpc.max_receive_message_length", int(self._settings.max_message_size)),
                # Two agents on one port would each get a part of the calls, silently.
                ("grpc.so_reuseport", 0),
            )
        )
        self._server.add_generic_rpc_handlers(self._services)
        endpoint = self._settings.endpoint
        parse_endpoint(endpoint)
        try:
            self._port = self._server.add_insecure_port(endpoint)
        except RuntimeError as error:
            raise ConfigError(
                [
                    Problem(
                        "receivers.grpc.endpoint",
                        f"cannot listen on {endpoint}",
                        "the port is taken, or the address is not this machine's",
                    )
                ]
            ) from error
        await self._server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        await self._server.stop(self._grace_s)


def _service(otlp: OtlpReceiver, signal: Signal) -> grpc.GenericRpcHandler:
    """A signal's Export service. Without (de)serializers the messages are bytes, as on the wire."""

    async def export(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        outcome = await otlp.receive(RECEIVER, signal, request)
        if outcome.verdict is not Verdict.ACCEPTED:
            await _abort(context, outcome)
        return _SUCCESS

    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(export)
    return grpc.method_handlers_generic_handler(_SERVICES[signal], {"Export": method})


async def _abort(context: grpc.aio.ServicerContext[bytes, bytes], outcome: Outcome) -> NoReturn:
    trailers: tuple[tuple[str, bytes], ...] = ()
    if outcome.verdict is Verdict.QUEUE_FULL:
        retry = RetryInfo()
        retry.retry_delay.FromSeconds(RETRY_DELAY_S)
        detail = Any()
        detail.Pack(retry)
        status = Status(code=Code.UNAVAILABLE, message=outcome.message, details=[detail])
        trailers = (
            ("grpc-status-details-bin", status.SerializeToString()),  # what the specification asks for
            ("google.rpc.retryinfo-bin", retry.SerializeToString()),  # what OpenTelemetry's Python reads
        )
    await context.abort(_CODES[outcome.verdict], outcome.message, trailers)
