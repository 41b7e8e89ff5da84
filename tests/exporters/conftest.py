"""A collector that keeps what it is sent, a real gRPC server; and a reader of the protobuf exposition."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.unknown_fields import UnknownFieldSet
from google.rpc.error_details_pb2 import DebugInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_tools import protoc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tidegauge.batch import Signal

FIELDS = {
    Signal.TRACES: ("resource_spans", "scope_spans", "spans", "name"),
    Signal.METRICS: ("resource_metrics", "scope_metrics", "metrics", "name"),
    Signal.LOGS: ("resource_logs", "scope_logs", "log_records", "event_name"),
}
"""Where a request holds its items, and an item its name."""


class Failure(NamedTuple):
    """How the collector refuses a request."""

    code: grpc.StatusCode
    retry_s: float | None = None


class Call(NamedTuple):
    """One call that arrived."""

    signal: Signal
    request: Any
    metadata: dict[str, str | bytes]
    time_s: float

    @property
    def names(self) -> list[str]:
        """Names of its items, in order."""
        resources, scopes, items, name = FIELDS[self.signal]
        return [
            getattr(item, name)
            for resource in getattr(self.request, resources)
            for scope in getattr(resource, scopes)
            for item in getattr(scope, items)
        ]


class Sink:
    """Keeps calls, and those among them that it took; fails as told.

    `failures` are used up one a call; then `judge` decides. `partial` is answered to what is taken.
    `gate` holds every call while it is cleared.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.taken: list[Call] = []
        self.failures: dict[Signal, list[Failure]] = {signal: [] for signal in Signal}
        self.judge: Callable[[Call], Failure | None] = lambda _: None
        self.partial: tuple[int, str] | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.changed = asyncio.Event()
        self.port = 0

    async def __aenter__(self) -> Self:
        self.server = grpc.aio.server(options=[("grpc.max_receive_message_length", 1 << 26)])
        response = trace_service_pb2.ExportTraceServiceResponse
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(
            Service(self, Signal.TRACES, response, "rejected_spans"), self.server
        )
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(
            Service(
                self, Signal.METRICS, metrics_service_pb2.ExportMetricsServiceResponse, "rejected_data_points"
            ),
            self.server,
        )
        logs_service_pb2_grpc.add_LogsServiceServicer_to_server(
            Service(self, Signal.LOGS, logs_service_pb2.ExportLogsServiceResponse, "rejected_log_records"),
            self.server,
        )
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self.server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gate.set()
        await self.server.stop(0)

    async def until(self, done: Callable[[], bool]) -> None:
        """Wait, for as long as the test may take, until calls have made `done` true."""
        async with asyncio.timeout(20):
            while not done():
                try:
                    await asyncio.wait_for(self.changed.wait(), 0.02)
                except TimeoutError:
                    continue
                self.changed.clear()


class Service:
    """Export of one signal."""

    def __init__(self, sink: Sink, signal: Signal, response: Any, rejected: str) -> None:
        self.sink = sink
        self.signal = signal
        self.response = response
        self.rejected = rejected

    async def Export(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        sink = self.sink
        metadata = dict(context.invocation_metadata() or ())
        call = Call(self.signal, request, metadata, asyncio.get_running_loop().time())
        sink.calls.append(call)
        sink.changed.set()
        await sink.gate.wait()
        script = sink.failures[self.signal]
        failure = script.pop(0) if script else sink.judge(call)
        if failure is not None:
            await refuse(context, failure)
        sink.taken.append(call)
        response = self.response()
        if sink.partial is not None:
            setattr(response.partial_success, self.rejected, sink.partial[0])
            response.partial_success.error_message = sink.partial[1]
        return response


async def refuse(context: grpc.aio.ServicerContext, failure: Failure) -> None:
    if failure.retry_s is not None:
        status = Status(code=failure.code.value[0], message="later")
        # Another detail in front of the one that counts, as real servers have them.
        status.details.add().Pack(DebugInfo(detail="full"))
        delay = Duration(nanos=round(failure.retry_s * 1e9) % 10**9, seconds=int(failure.retry_s))
        status.details.add().Pack(RetryInfo(retry_delay=delay))
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    await context.abort(failure.code, "as the test\nasks")


@pytest.fixture
def failure() -> type[Failure]:
    return Failure


@pytest.fixture
def sink_type() -> type[Sink]:
    return Sink


@pytest.fixture
def closed_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="session")
def read_families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], list[Any]]:
    """Reads a protobuf exposition into messages of classes that protoc made of proto/prometheus.proto."""
    proto = Path(__file__).parents[2] / "proto"
    compiled = tmp_path_factory.mktemp("proto") / "prometheus.bin"
    google = Path(protoc.__file__).with_name("_proto")
    command = [f"-I{proto}", f"-I{google}", f"--descriptor_set_out={compiled}", "prometheus.proto"]
    assert protoc.main(["protoc", *command]) == 0
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
    for file in descriptor_pb2.FileDescriptorSet.FromString(compiled.read_bytes()).file:
        pool.Add(file)
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("io.prometheus.client.MetricFamily"))

    def read(body: bytes) -> list[Any]:
        found, place = [], 0
        while place < len(body):
            size, shift = 0, 0
            while True:
                byte = body[place]
                place += 1
                size |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
            assert place + size <= len(body)
            found.append(kind.FromString(body[place : place + size]))
            place += size
            assert not has_unknown_fields(found[-1])
        return found

    return read


def has_unknown_fields(message: Any) -> bool:
    """Whether the message or one inside it carries what the .proto does not name."""
    if len(UnknownFieldSet(message)):
        return True
    inner = [value for field, value in message.ListFields() if field.message_type is not None]
    listed = [one for value in inner for one in (value if hasattr(value, "__len__") else [value])]
    return any(map(has_unknown_fields, listed))


class Tls(NamedTuple):
    """A certificate for localhost that is its own CA."""

    key: Path
    certificate: Path

    @property
    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.certificate, self.key)
        return context


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    made = Tls(tmp_path / "key.pem", tmp_path / "certificate.pem")
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -keyout {made.key} -out {made.certificate}"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    return made
