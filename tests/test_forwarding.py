"""The agent as a process between a sender and its collectors: what it has answered for arrives."""

from __future__ import annotations

import os
import signal
import socket
import time
from concurrent import futures
from contextlib import contextmanager

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the names of the spans it is sent."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def Export(self, request, context):
        self.names += [
            span.name for resource in request.resource_spans for span in resource.scope_spans[0].spans
        ]
        return trace_service_pb2.ExportTraceServiceResponse()

    def has(self, count: int) -> None:
        deadline = time.monotonic() + 30
        while len(set(self.names)) < count:
            assert time.monotonic() < deadline, f"{len(set(self.names))} of {count}"
            time.sleep(0.05)


@contextmanager
def collecting(port: int):
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield collector
    finally:
        server.stop(0).wait()


def send(port: int, first: int, count: int) -> None:
    """Send so many requests of a span, waiting for each answer."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = trace_service_pb2_grpc.TraceServiceStub(channel)
        for n in range(first, first + count):
            request = trace_service_pb2.ExportTraceServiceRequest()
            request.resource_spans.add().scope_spans.add().spans.add(name=str(n))
            stub.Export(request, timeout=20)


def test_a_kill_loses_nothing_that_was_answered_for(start_agent, tmp_path):
    ports = free_port(), free_port()
    settings = {
        "state_dir": str(tmp_path / "state"),
        "exporters": {
            "otlp": {"endpoint": f"http://127.0.0.1:{ports[0]}"},
            "collectors": [{"name": "audit", "endpoint": f"http://127.0.0.1:{ports[1]}", "in_flight": 1}],
        },
    }
    agent = start_agent(**settings)
    with collecting(ports[1]) as audit:
        send(agent.grpc, 0, 100)
        audit.has(100)
        with pytest.raises(AssertionError, match=r"state_dir: .* is in use by another agent"):
            start_agent(**settings)
    send(agent.grpc, 100, 50)
    agent.process.send_signal(signal.SIGKILL)
    agent.process.wait()
    agent = start_agent(**settings)
    assert agent.total("tidegauge_export_restored_total", collector="default") == 150
    assert 50 <= agent.total("tidegauge_export_restored_total", collector="audit") < 150
    with collecting(ports[0]) as default, collecting(ports[1]) as audit:
        send(agent.grpc, 150, 1)
        default.has(151)
        audit.has(51)
        assert set(default.names) == {str(n) for n in range(151)}
        assert set(audit.names) >= {str(n) for n in range(100, 151)}
        agent.await_total(0, "tidegauge_export_pending")
        assert agent.total("tidegauge_exported_total", exporter="forwarder", collector="default") == 151
        assert agent.total("tidegauge_export_dropped_total", exporter="forwarder") == 0
    assert agent.stop() == 0
    assert sorted(os.listdir(tmp_path / "state" / "queue")) == ["audit", "default"]


def test_a_queue_that_no_collector_has_any_more_is_told(start_agent, tmp_path):
    left = tmp_path / "state" / "queue" / "gone"
    left.mkdir(parents=True)
    (left / "000000000001.traces").write_bytes(b"x")
    otlp = {"endpoint": f"http://127.0.0.1:{free_port()}", "disk_queue": {"size": "0B"}}
    agent = start_agent(state_dir=str(tmp_path / "state"), exporters={"otlp": otlp})
    assert f"{left} is left from earlier" in agent.log.read_text()
    assert agent.stop() == 0
