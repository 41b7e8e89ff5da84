"""Clients that misbehave on the wire, and the OTLP receivers with limits that they meet."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Self

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tidegauge import config
from tidegauge.receivers.grpc_server import GrpcServer
from tidegauge.receivers.http import HttpReceiver
from tidegauge.telemetry import Telemetry
from tidegauge.units import Duration, Size

DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1


class Http2:
    """One HTTP/2 connection whose client decides about every byte (RFC 9113), flow control apart."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._window, self._initial = 65535, 65535
        self._windows: dict[int, int] = {}
        self._moved = asyncio.Event()
        self.trailers: dict[int, bytes] = {}
        self.reset: set[int] = set()
        self.goaway = b""
        self.closed = False
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def connect(cls, address: str) -> Self:
        client = cls(*await asyncio.open_connection(*address.split(":")))
        client._writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        client.frame(SETTINGS, 0, 0)
        return client

    def frame(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        length = struct.pack(">I", len(payload))[1:]
        self._writer.write(length + bytes([kind, flags]) + struct.pack(">I", stream) + payload)

    def call(self, path: str, *headers: tuple[str, str], stream: int = 1) -> None:
        """Open a call, without any part of its message."""
        fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "test")]
        fields += [("te", "trailers"), ("content-type", "application/grpc"), *headers]
        block = b"".join(
            b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
            for name, value in fields
        )
        self._windows[stream] = self._initial
        self.frame(HEADERS, END_HEADERS, stream, block)

    async def send(self, data: bytes, stream: int = 1, *, end: bool = False) -> bool:
        """Send as fast as windows allow; False where the call or the connection ended before."""
        while data and not self.ended(stream):
            fitting = min(16384, len(data), self._window, self._windows[stream])
            if fitting <= 0:
                self._moved.clear()
                await asyncio.wait_for(self._moved.wait(), 10)
                continue
            piece, data = data[:fitting], data[fitting:]
            self._window -= fitting
            self._windows[stream] -= fitting
            self.frame(DATA, END_STREAM if end and not data else 0, stream, piece)
            await self._writer.drain()
        return not self.ended(stream)

    def ended(self, stream: int = 1) -> bool:
        return self.closed or stream in self.trailers or stream in self.reset

    async def end(self, stream: int = 1) -> bytes:
        """The trailers of a call, as they are on the wire; empty where there are none."""
        while not self.ended(stream):
            self._moved.clear()
            await asyncio.wait_for(self._moved.wait(), 10)
        return self.trailers.get(stream, b"")

    async def close(self) -> None:
        self._writer.transport.abort()
        self._reading.cancel()
        await asyncio.wait({self._reading})

    async def _read(self) -> None:
        try:
            while True:
                head = await self._reader.readexactly(9)
                payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
                self._take(head[3], head[4], int.from_bytes(head[5:], "big"), payload)
                self._moved.set()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed = True
            self._moved.set()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        match kind:
            case 4 if not flags & ACK:
                for key, value in struct.iter_unpack(">HI", payload):
                    if key == 4:
                        for one in self._windows:
                            self._windows[one] += value - self._initial
                        self._initial = value
                self.frame(SETTINGS, ACK, 0)
            case 6 if not flags & ACK:
                self.frame(PING, ACK, 0, payload)
            case 8 if stream:
                self._windows[stream] = self._windows.get(stream, self._initial) + int.from_bytes(
                    payload, "big"
                )
            case 8:
                self._window += int.from_bytes(payload, "big")
            case 1 if flags & END_STREAM:
                self.trailers[stream] = payload
            case 3:
                self.reset.add(stream)
            case 7:
                self.goaway = payload


@pytest.fixture(scope="session")
def http2() -> type[Http2]:
    """A client of the gRPC port that decides about every byte."""
    return Http2


@pytest.fixture
def grpc_agent(otlp_agent: Any) -> Callable[..., Any]:
    """Starts the gRPC port with these limits, which are strings as in a file."""

    def start(queue_bytes: int = 2**28, blocked: bool = False, **limits: Any) -> Any:
        settings = config.GrpcReceiver(endpoint="127.0.0.1:0", **_typed(limits))
        return otlp_agent("otlp_grpc", GrpcServer, settings, queue_bytes=queue_bytes, blocked=blocked)

    return start


@pytest.fixture
def http_agent(otlp_agent: Any) -> Callable[..., Any]:
    """Starts the HTTP port with these limits."""

    def start(queue_bytes: int = 2**28, blocked: bool = False, **limits: Any) -> Any:
        settings = config.HttpReceiver(endpoint="127.0.0.1:0", **_typed(limits))
        return otlp_agent("otlp_http", HttpReceiver, settings, queue_bytes=queue_bytes, blocked=blocked)

    return start


def _typed(limits: dict[str, Any]) -> dict[str, Any]:
    kinds = {"max_message_size": Size, "max_receiving": Size, "timeout": Duration, "idle_timeout": Duration}
    return {name: kinds.get(name, int)(value) for name, value in limits.items()}


@pytest.fixture
def identity_holds() -> Callable[[Any], None]:
    """Checks that every item is accounted for, at this instant."""

    def check(running: Any) -> None:
        telemetry: Telemetry = running.telemetry
        running.pipeline.observe()
        pending = sum(
            point.value
            for metric in telemetry.collect()
            if metric.name == "tidegauge.pending"
            for point in metric.points
        )
        received, accepted, rejected, folded, dropped = map(
            telemetry.total, ("received", "accepted", "rejected", "folded", "dropped")
        )
        assert received == accepted + rejected
        assert accepted == folded + dropped + pending

    return check


@asynccontextmanager
async def _silence(address: str, count: int) -> AsyncIterator[None]:
    writers = []
    try:
        for _ in range(count):
            _, writer = await asyncio.open_connection(*address.split(":"))
            writers.append(writer)
        yield
    finally:
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


@pytest.fixture(scope="session")
def silence() -> Callable[[str, int], Any]:
    """Holds that many connections open which say nothing."""
    return _silence


@pytest.fixture(scope="session")
def eventually() -> Callable[[Callable[[], bool]], Any]:
    """Waits for a condition."""

    async def wait(condition: Callable[[], bool]) -> None:
        for _ in range(2000):
            if condition():
                return
            await asyncio.sleep(0.005)
        raise AssertionError("it did not happen within 10 s")

    return wait


def _padded(nbytes: int) -> bytes:
    """A request of one span that takes exactly so many bytes."""
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add(name="predict", kind=2)
    span.trace_state = "x" * (nbytes - 100)
    span.trace_state += "x" * (nbytes - request.ByteSize())  # the lengths around it take as much as before
    assert request.ByteSize() == nbytes
    return request.SerializeToString()


@pytest.fixture(scope="session")
def padded() -> Callable[[int], bytes]:
    """Makes requests of one span that take exactly so many bytes."""
    return _padded
