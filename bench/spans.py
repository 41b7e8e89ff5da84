"""OTLP traces through gRPC into latency histograms, beside protobuf and a walk in Python."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from bench.figure import Figure
from bench.payload import SPANS, span_request
from bench.process import Agent
from bench.sender import run


def measure(rounds: int, requests: int) -> Iterator[Figure]:
    """Spans per CPU second of the agent, transport included, and of the walk, transport excluded."""
    request = span_request()
    rates, walls = [], []
    with Agent() as agent:
        sent = 50
        run("spans", agent.grpc, sent, SPANS)
        agent.wait_for(sent * SPANS, "tidegauge_folded_total", signal="traces")
        for _ in range(rounds):
            begin = agent.cpu_s()
            walls.append(requests * SPANS / run("spans", agent.grpc, requests, SPANS))
            sent += requests
            agent.wait_for(sent * SPANS, "tidegauge_folded_total", signal="traces")
            rates.append(requests * SPANS / (agent.cpu_s() - begin))
    what = f"OTLP spans → latency, {SPANS} x {len(request) // SPANS} B"
    yield Figure(f"{what}, wall clock", "k spans/s", [wall / 1e3 for wall in walls])
    peer = "protobuf and Python, no gRPC"
    walks = [_walk(request) / 1e3 for _ in range(rounds)]
    yield Figure(what, "k spans/core-s", [rate / 1e3 for rate in rates], peer, walks)


def _walk(raw: bytes) -> float:
    """Parse a request, read every attribute, and keep durations by model, version and operation."""
    durations: defaultdict[tuple[object, object, str], list[int]] = defaultdict(list)
    repeats = 20
    begin = time.process_time()
    for _ in range(repeats):
        for resource in ExportTraceServiceRequest.FromString(raw).resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    attributes = {
                        pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value")
                        for pair in span.attributes
                    }
                    key = attributes.get("model.name"), attributes.get("model.version"), span.name
                    durations[key].append(span.end_time_unix_nano - span.start_time_unix_nano)
    return repeats * SPANS / (time.process_time() - begin)
