"""Receivers as the agent runs them, behind real servers on free ports, and what clients send to them."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar

import grpc
import numpy as np
import pyarrow as pa
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind
from pyarrow import flight

from tidegauge import config
from tidegauge.batch import Batch, Records, Signal
from tidegauge.metric import ExponentialHistogram, Metric
from tidegauge.pipeline import Pipeline
from tidegauge.processors.latency import Latency
from tidegauge.receivers.flight import FlightReceiver
from tidegauge.receivers.grpc_server import GrpcServer
from tidegauge.receivers.otlp import OtlpReceiver
from tidegauge.telemetry import Telemetry
from tidegauge.units import Size

METHOD = "/arrow.flight.protocol.FlightService/DoPut"
PATH = ("records", "fraud", "2.1")

T = TypeVar("T")


async def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(4000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen within 20 s")


class Gate:
    """A processor that holds the worker until it is opened."""

    def __init__(self) -> None:
        self.open = threading.Event()

    def update(self, *batches: Batch) -> Mapping[str, int]:
        self.open.wait(30)
        return {}

    def collect(self, now_ns: int) -> tuple[Metric, ...]:
        return ()


class Sink(Gate):
    """A gate that keeps the records it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Records] = []
        self.keep = True

    def update(self, *batches: Batch) -> Mapping[str, int]:
        super().update(*batches)
        for batch in batches:
            assert isinstance(batch, Records)
            if self.keep:
                self.batches.append(batch)
        return {}


def totals_of(telemetry: Telemetry, receiver: str, signal: str) -> tuple[int, int, int]:
    """Items received, accepted and rejected, which must add up."""
    received, accepted, rejected = (
        telemetry.total(name, receiver=receiver, signal=signal)
        for name in ("received", "accepted", "rejected")
    )
    assert received == accepted + rejected
    return received, accepted, rejected


# OTLP


class OtlpAgent:
    """OTLP's receiver before a queue, latency and a gate; what it forwards; and where it listens."""

    def __init__(self, receiver: str, queue_bytes: int) -> None:
        self.receiver = receiver
        self.telemetry, self.gate = Telemetry(), Gate()
        self.forwarded: list[tuple[Signal, bytes]] = []
        folding, identity = [Latency(config.Latency()), self.gate], config.IdentityAttributes()
        self.pipeline = Pipeline(folding, self.telemetry, queue_bytes=queue_bytes)
        self.otlp = OtlpReceiver(self.pipeline, self.telemetry, identity, self._keep)
        self.address = ""
        self.servers = AsyncExitStack()  # for those that end with this one

    def _keep(self, signal: Signal, raw: bytes, items: int) -> None:
        self.forwarded.append((signal, raw))

    def totals(self, signal: Signal) -> tuple[int, int, int]:
        return totals_of(self.telemetry, self.receiver, str(signal))

    def rejected(self, reason: str) -> int:
        return self.telemetry.total("rejected", receiver=self.receiver, reason=reason)

    async def latency(self) -> dict[str, int]:
        """Spans folded, by operation, when all are."""
        await eventually(lambda: self.pipeline.queue_bytes == 0)
        (latency, *_) = await self.pipeline.collect(0)
        return {
            dict(point.attributes)["operation"]: point.count
            for point in latency.points
            if isinstance(point, ExponentialHistogram)
        }

    async def refuses_at_first(self, exporter: SpanExporter) -> None:
        """The SDK sends a span that finds the queue full, and sends it again when there is room."""

        def send() -> None:
            provider = TracerProvider(resource=Resource({"service.name": "fraud"}))
            provider.add_span_processor(BatchSpanProcessor(exporter))
            with provider.get_tracer("test").start_as_current_span("late", kind=SpanKind.SERVER):
                pass
            provider.shutdown()

        sending = asyncio.create_task(asyncio.to_thread(send))
        await eventually(lambda: self.rejected("queue_full") > 0)
        self.gate.open.set()
        await sending
        assert (await self.latency())["late"] == 1
        assert self.rejected("queue_full") == 1


@asynccontextmanager
async def serve_otlp(
    receiver: str, server_type: Any, settings: Any, *, queue_bytes: int = 2**24, blocked: bool = False
) -> AsyncIterator[OtlpAgent]:
    running = OtlpAgent(receiver, queue_bytes)
    if not blocked:
        running.gate.open.set()
    server = server_type(settings, running.otlp, grace_s=0.2)
    async with running.pipeline, running.servers, server:
        running.address = f"127.0.0.1:{server.port}"
        try:
            yield running
        finally:
            running.gate.open.set()


@pytest.fixture
def otlp_agent() -> Callable[..., Any]:
    """Serves OTLP with a server of that type and settings."""
    return serve_otlp


@pytest.fixture(scope="session")
def trace_request() -> Callable[..., bytes]:
    """Makes requests of that many spans of 1 ms."""

    def encoded(spans: int, name: str = "predict") -> bytes:
        message = ExportTraceServiceRequest()
        scope = message.resource_spans.add().scope_spans.add()
        for number in range(spans):
            span = scope.spans.add(name=name, span_id=number.to_bytes(8, "big"), trace_id=bytes(range(16)))
            span.start_time_unix_nano, span.end_time_unix_nano = 10**18, 10**18 + 10**6
        return message.SerializeToString()

    return encoded


# Flight


class Outcome(NamedTuple):
    """What a raw call came to."""

    code: grpc.StatusCode
    details: str
    answers: list[dict[str, Any]]


class FlightAgent:
    """A server, queue and sink on an event loop of their own, as a client in another process sees them."""

    def __init__(self, **settings: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.telemetry, self.sink = Telemetry(), Sink()
        self.errors: list[str] = []
        self._settings = settings
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._stack = AsyncExitStack()

    def on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    async def start(self) -> None:
        self.loop.set_exception_handler(lambda loop, context: self.errors.append(str(context)))
        queue_bytes = self._settings.pop("queue_bytes", 2**26)
        message = Size(self._settings.pop("max_message", "64MiB"))
        pipeline = Pipeline([self.sink], self.telemetry, queue_bytes=queue_bytes)
        receiver = FlightReceiver(pipeline, self.telemetry, config.RecordLimits(**self._settings))
        self.pipeline = await self._stack.enter_async_context(pipeline)
        self.server = GrpcServer(
            config.GrpcReceiver(endpoint="127.0.0.1:0", max_message_size=message),
            OtlpReceiver(pipeline, self.telemetry, config.IdentityAttributes()),
            (receiver.service(),),
            grace_s=0.3,
        )
        await self._stack.enter_async_context(self.server)
        self.address = f"127.0.0.1:{self.server.port}"

    def __enter__(self) -> FlightAgent:
        self._thread.start()
        self.on_loop(self.start())
        self.sink.open.set()
        return self

    def __exit__(self, *failure: object) -> None:
        self.sink.open.set()
        self.on_loop(self._stack.aclose())
        gc.collect()  # when tasks tell of exceptions that nobody asked for
        self.on_loop(self.loop.shutdown_asyncgens())  # gRPC's, of calls that were aborted
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
        assert not self.errors

    def totals(self) -> tuple[int, int, int]:
        """Rows received, accepted and rejected, which must add up."""

        async def count() -> tuple[int, int, int]:
            return totals_of(self.telemetry, "flight", "records")

        return self.on_loop(count())

    def rejected(self, reason: str) -> int:
        return self.telemetry.total("rejected", receiver="flight", signal="records", reason=reason)

    def streams(self) -> int:
        """Calls that are still being served, and tasks of theirs."""

        async def count() -> int:
            names = (task.get_coro().__qualname__ for task in asyncio.all_tasks())  # type: ignore[union-attr]
            return sum("_rpc" in name or "_Answers" in name for name in names)

        return self.on_loop(count())

    def eventually(self, condition: Callable[[], bool]) -> None:
        asyncio.run(eventually(condition))  # not on the agent's loop, which conditions wait for

    def folded(self, rows: int) -> list[Records]:
        """The batches, once that many rows have come."""
        self.eventually(lambda: sum(batch.items for batch in self.sink.batches) >= rows)
        return self.sink.batches

    @contextmanager
    def client(self) -> Iterator[flight.FlightClient]:
        with flight.connect(f"grpc://{self.address}") as client:
            yield client

    def put(
        self, batches: list[Any], path: tuple[str, ...] = PATH, schema: Any = None, **options: Any
    ) -> list[dict[str, Any]]:
        """Send batches in one stream as a stock client does; the answers."""
        with self.client() as client:
            call = flight.FlightCallOptions(timeout=20, write_options=pa.ipc.IpcWriteOptions(**options))
            descriptor = flight.FlightDescriptor.for_path(*path)
            writer, results = client.do_put(descriptor, schema or batches[0].schema, call)
            with writer:
                for batch in batches:
                    writer.write_batch(batch)
                writer.done_writing()
                answers = []
                while (answer := results.read()) is not None:  # type: ignore[attr-defined]
                    answers.append(json.loads(answer.to_pybytes()))
        return answers

    def call(self, messages: Iterable[bytes]) -> Outcome:
        """Send bytes as they are."""
        with grpc.insecure_channel(self.address) as channel:
            return self.call_on(channel, messages)

    @staticmethod
    def call_on(channel: grpc.Channel, messages: Iterable[bytes]) -> Outcome:
        """Send bytes as they are, through a channel that is open."""
        call = channel.stream_stream(METHOD)(iter(messages), timeout=20)
        answers = []
        try:
            for raw in call:
                metadata = raw[2:] if raw[1] < 0x80 else raw[3:]
                answers.append(json.loads(metadata))
        except grpc.RpcError:
            assert call.code() is not grpc.StatusCode.OK
        return Outcome(call.code(), call.details(), answers)

    def is_well(self) -> None:
        """The agent serves another client, and none of the streams before has left anything."""
        self.eventually(lambda: self.streams() == 0)
        before = self.totals()
        assert self.put([numbers(3)]) == [accepted(3)]
        after = self.totals()
        assert [b - a for a, b in zip(before, after, strict=True)] == [3, 3, 0]

    def undecodable(self, words: str, messages: Iterable[bytes]) -> Outcome:
        """The call fails in words that tell why, and counts as one item."""
        before, known = self.totals(), self.rejected("undecodable")
        outcome = self.call(messages)
        assert outcome.code is grpc.StatusCode.INVALID_ARGUMENT
        assert words in outcome.details
        rows = sum(answer["accepted_rows"] for answer in outcome.answers)
        assert [b - a for a, b in zip(before, self.totals(), strict=True)] == [rows + 1, rows, 1]
        assert self.rejected("undecodable") == known + 1
        self.is_well()
        return outcome


def accepted(rows: int) -> dict[str, Any]:
    return {"accepted_rows": rows, "rejected_rows": 0, "reason": ""}


def numbers(rows: int, columns: int = 1) -> pa.RecordBatch:
    return pa.record_batch({f"x{number}": np.arange(rows, dtype=float) for number in range(columns)})


def coded(dictionary: list[str | None], *picks: int | None) -> pa.RecordBatch:
    indices = pa.array(picks, pa.int8())
    return pa.record_batch(
        {"colour": pa.DictionaryArray.from_arrays(indices, pa.array(dictionary, pa.string()))}
    )


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def flight_data(header: bytes, body: bytes = b"", path: tuple[str, ...] = ()) -> bytes:
    """A serialized FlightData."""
    texts = b"".join(b"\x1a" + varint(len(text.encode())) + text.encode() for text in path)
    descriptor = b"\x0a" + varint(len(texts)) + texts if path else b""
    return descriptor + b"\x12" + varint(len(header)) + header + b"\xc2\x3e" + varint(len(body)) + body


def parts(batches: list[Any], **options: Any) -> list[tuple[bytes, bytes]]:
    """Headers and bodies of what a stream writer makes of batches."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return [
        (message.metadata.to_pybytes(), b"" if message.body is None else message.body.to_pybytes())
        for message in pa.ipc.MessageReader.open_stream(sink.getvalue())
    ]


def framed(messages: list[tuple[bytes, bytes]], path: tuple[str, ...] = PATH) -> list[bytes]:
    return [flight_data(*message, path=() if index else path) for index, message in enumerate(messages)]


def stream(batches: list[Any], **options: Any) -> list[bytes]:
    return framed(parts(batches, **options))


@pytest.fixture(scope="session")
def arrow() -> SimpleNamespace:
    """Batches, the messages that carry them, and the answers to them."""
    batches = {"accepted": accepted, "coded": coded, "numbers": numbers}
    messages = {"flight_data": flight_data, "framed": framed, "parts": parts, "stream": stream}
    return SimpleNamespace(METHOD=METHOD, PATH=PATH, **batches, **messages)


@pytest.fixture
def agent_type() -> type[FlightAgent]:
    return FlightAgent


@pytest.fixture(scope="module")
def module_agent() -> Iterator[FlightAgent]:
    with FlightAgent() as running:
        yield running


@pytest.fixture
def agent(module_agent: FlightAgent) -> FlightAgent:
    """One that the tests of a module share, with nothing in its sink."""
    module_agent.sink.batches.clear()
    return module_agent
