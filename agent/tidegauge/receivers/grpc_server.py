"""The one gRPC port: OTLP's three services, and whatever services it is given besides."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, nullcontext
from types import TracebackType
from typing import Any, Self

import grpc

from tidegauge.batch import Signal
from tidegauge.config import GrpcReceiver
from tidegauge.listening.certificate import Certificate
from tidegauge.listening.door import Door
from tidegauge.listening.unix_socket import Owned, naming
from tidegauge.receivers.arrivals import Arrivals, Context
from tidegauge.receivers.entrance import Entrance, Unlocked
from tidegauge.receivers.otlp import OtlpReceiver
from tidegauge.receivers.outcome import RefusedError, Verdict
from tidegauge.receivers.peers import PeerConnections
from tidegauge.receivers.status import abort

RECEIVER = "otlp_grpc"

_SERVICES = {
    Signal.TRACES: "opentelemetry.proto.collector.trace.v1.TraceService",
    Signal.METRICS: "opentelemetry.proto.collector.metrics.v1.MetricsService",
    Signal.LOGS: "opentelemetry.proto.collector.logs.v1.LogsService",
}

_SUCCESS = b""
"""An Export response without partial success: no field at all."""

_MAX_STREAMS = 128
"""Calls that one connection may have open; its further ones wait on its own side."""

_WINDOW = 2**16
"""Bytes of a stream that nobody reads yet. gRPC's own choice grows to 4 MiB with the speed of the
connection: 200 of them held 826 MiB. A stream that is read gets a window as large as its message."""

_HANDSHAKE_S, _KEEPALIVE_S, _MIN_PING_S = 10, 60, 5


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
        door: Door | None = None,
    ) -> None:
        self._settings = settings
        self._door = Door(settings, "receivers.grpc") if door is None else door
        self._arrivals = Arrivals(settings, lambda: otlp.queue_bytes)
        own = (_service(otlp, signal, self._arrivals) for signal in _SERVICES)
        others = (_Watched(service, self._arrivals) for service in services)
        entrance = Entrance(self._door, settings.max_calls_per_peer)
        # Whatever is asked for, the gate is asked first.
        self._services = (Unlocked(self._door), *map(entrance.count, (*own, *others, _Unserved())))
        self._grace_s = grace_s
        self._stack = AsyncExitStack()
        self._port = 0

    @property
    def port(self) -> int:
        """The port it listens on, also where the endpoint's is 0."""
        return self._port

    async def __aenter__(self) -> Self:
        server = grpc.aio.server(options=_options(self._settings))
        server.add_generic_rpc_handlers(self._services)
        try:
            self._bind(server)
        except (OSError, RuntimeError) as error:
            await self._stack.aclose()
            raise self._door.cannot_listen(error) from error
        await self._stack.enter_async_context(self._arrivals)
        self._stack.push_async_callback(server.stop, self._grace_s)
        await server.start()
        most = self._settings.max_connections_per_peer if self._door.path is None else 0
        await self._stack.enter_async_context(PeerConnections(self._door, self._port, most))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def _bind(self, server: grpc.aio.Server) -> None:
        path, certificate = self._door.path, self._door.certificate
        # gRPC by itself would take the name of a socket that somebody listens on.
        named = nullcontext(None) if path is None else naming(path, self._door.mode)
        with named as temporary:
            endpoint = self._settings.endpoint if temporary is None else f"unix:{temporary}"
            if certificate is None:
                port = server.add_insecure_port(endpoint)
            else:
                port = server.add_secure_port(endpoint, _credentials(certificate))
        if path is None:
            self._port = port
        else:
            self._stack.callback(Owned(path).remove)


def _credentials(certificate: Certificate) -> grpc.ServerCredentials:
    """What asks for the certificate at each handshake. gRPC takes TLS 1.2 and 1.3 only, as it is built."""

    def current() -> grpc.ServerCertificateConfiguration:
        loaded = certificate.current
        return grpc.ssl_server_certificate_configuration([(loaded.key, loaded.certificate)], loaded.client_ca)

    asked = certificate.current.client_ca is not None
    return grpc.dynamic_ssl_server_credentials(current(), current, asked)


def _options(settings: GrpcReceiver) -> tuple[tuple[str, int], ...]:
    most = int(settings.max_message_size)
    return (
        # It holds for the message as sent and as decompressed. What is refused by gRPC never gets here to
        # be counted as too large, so that up to a quarter more is let through, and refused here.
        ("grpc.max_receive_message_length", most + most // 4),
        # Two agents on one port would each get a part of the calls, silently.
        ("grpc.so_reuseport", 0),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.max_connection_idle_ms", int(1000 * settings.idle_timeout)),
        ("grpc.max_concurrent_streams", _MAX_STREAMS),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _WINDOW),
        # Who connects and says nothing, and who has vanished in the midst of a call.
        ("grpc.server_handshake_timeout_ms", 1000 * _HANDSHAKE_S),
        ("grpc.keepalive_time_ms", 1000 * _KEEPALIVE_S),
        # A client may ping as often as this. By default those that ping more often than every 5 min
        # are thrown out, and collectors are set up to.
        ("grpc.http2.min_ping_interval_without_data_ms", 1000 * _MIN_PING_S),
        ("grpc.keepalive_permit_without_calls", 1),
    )


def _service(otlp: OtlpReceiver, signal: Signal, arrivals: Arrivals) -> grpc.GenericRpcHandler:
    """A signal's Export service. Without (de)serializers the messages are bytes, as on the wire.

    On the wire a unary call is a stream of one message. Served as one, it is here as soon as its headers
    are, and can be refused while its message is still arriving.
    """

    async def export(_: AsyncIterator[bytes], context: Context) -> bytes:
        try:
            raw = await arrivals.message(context)
        except RefusedError as error:
            outcome = otlp.refuse(RECEIVER, signal, *error.outcome)
        except BaseException:  # cancelled: the sender is gone, or its deadline has passed
            otlp.refuse(RECEIVER, signal, Verdict.ABANDONED, "")
            raise
        else:
            outcome = await otlp.receive(RECEIVER, signal, raw)
        if outcome.verdict is not Verdict.ACCEPTED:
            await abort(context, outcome)
        return _SUCCESS

    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_unary_rpc_method_handler(export)
    return grpc.method_handlers_generic_handler(_SERVICES[signal], {"Export": method})


class _Watched(grpc.GenericRpcHandler):
    """A service whose streams' messages come by way of the arrivals."""

    def __init__(self, service: grpc.GenericRpcHandler, arrivals: Arrivals) -> None:
        self._service = service
        self._arrivals = arrivals

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        found = self._service.service(handler_call_details)
        behaviour: Any = None if found is None else found.stream_stream
        if behaviour is None:
            return found

        async def watched(_: AsyncIterator[bytes], context: Context) -> None:
            await behaviour(self._arrivals.messages(context), context)

        return grpc.stream_stream_rpc_method_handler(watched)


class _Unserved(grpc.GenericRpcHandler):
    """Says what is served to whoever asks for something else."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        async def refuse(_: AsyncIterator[bytes], context: Context) -> None:
            method: Any = handler_call_details.method
            await context.abort(
                grpc.StatusCode.UNIMPLEMENTED,
                f"{method[:200]} is not served here. What is: Export of OTLP's TraceService, MetricsService "
                "and LogsService (v1), and DoPut of Arrow Flight",
            )

        return grpc.stream_stream_rpc_method_handler(refuse)
