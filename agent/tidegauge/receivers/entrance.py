"""The gRPC port's entrance: nobody without a credential, and no peer with too many calls at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import grpc

from tidegauge.listening.door import Door
from tidegauge.receivers.arrivals import Context
from tidegauge.receivers.outcome import RefusedError, Verdict
from tidegauge.receivers.status import abort


class Unlocked(grpc.GenericRpcHandler):
    """Asked before all other services: answers those itself that the door does not admit."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        if not self._door.gate.guarded:
            return None
        metadata: Any = handler_call_details.invocation_metadata or ()
        shown = [value for key, value in metadata if key == "authorization"]
        if self._door.admits(shown[0] if len(shown) == 1 else None):
            return None
        return grpc.stream_stream_rpc_method_handler(_turn_away)


async def _turn_away(_: AsyncIterator[bytes], context: Context) -> None:
    await context.abort(
        grpc.StatusCode.UNAUTHENTICATED, "this port wants credentials in the metadata `authorization`"
    )


class Entrance:
    """Counts the calls that each address has open; more than `most` are refused, and may come again."""

    def __init__(self, door: Door, most: int) -> None:
        self._door = door
        self._most = most
        self._open: Counter[str] = Counter()

    def count(self, service: grpc.GenericRpcHandler) -> grpc.GenericRpcHandler:
        """The service, with its calls counted."""
        return _Counted(service, self) if self._most else service

    @contextmanager
    def call(self, peer: str) -> Iterator[None]:
        """One call, for as long as it is open.

        Raises:
            RefusedError: where its peer has too many.
        """
        address = address_of(peer)
        if self._open[address] >= self._most:
            self._door.deny("peer_calls")
            message = f"{self._most} calls of this address are open (receivers.grpc.max_calls_per_peer)"
            raise RefusedError(Verdict.OVERLOAD, message)
        self._open[address] += 1
        try:
            yield
        finally:
            self._open[address] -= 1
            if not self._open[address]:
                del self._open[address]


class _Counted(grpc.GenericRpcHandler):
    def __init__(self, service: grpc.GenericRpcHandler, entrance: Entrance) -> None:
        self._service = service
        self._entrance = entrance

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        found = self._service.service(handler_call_details)
        if found is None:
            return None
        inner: Any = found.stream_unary or found.stream_stream

        async def counted(requests: AsyncIterator[bytes], context: Context) -> Any:
            try:
                with self._entrance.call(context.peer()):
                    return await inner(requests, context)
            except RefusedError as error:
                await abort(context, error.outcome)

        made: Any = grpc.stream_unary_rpc_method_handler
        if found.stream_unary is None:
            made = grpc.stream_stream_rpc_method_handler
        counted_handler: grpc.RpcMethodHandler[Any, Any] = made(counted)
        return counted_handler


def address_of(peer: str) -> str:
    """The address in gRPC's name of a peer, without the port, which each connection has its own of.

    >>> address_of("ipv4:10.1.2.3:4711"), address_of("ipv6:%5B::1%5D:4711"), address_of("unix:")
    ('10.1.2.3', '::1', 'unix')
    """
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind
    return rest.rpartition(":")[0].strip("[]")
