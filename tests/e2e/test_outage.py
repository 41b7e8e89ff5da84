"""Nothing that the agent acknowledged is lost: not to an outage of the collector, not to kill -9.

A sender that retries, as OpenTelemetry's exporters do, names every span. What it was told is taken must
be in the file of a real Collector in the end.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

pytestmark = pytest.mark.e2e

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
OUTAGES_S = (30.0, *(3.0,) * 9)
SPANS = 10  # of one request
SENDERS = 3
KILLS = 5
BATCH_BYTES, IN_FLIGHT = 16384, 4
RETRYABLE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
RECONNECT = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500))


class Sender:
    """Sends requests of SPANS spans until it is stopped, each again until it is taken."""

    def __init__(self, port: int) -> None:
        self.acknowledged: list[set[bytes]] = [set() for _ in range(SENDERS)]
        self.retries = 0
        self.errors: list[BaseException] = []
        self._port = port
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(index,)) for index in range(SENDERS)]

    @property
    def spans(self) -> set[bytes]:
        """The ids of all spans that were acknowledged."""
        return set().union(*self.acknowledged)

    def _run(self, index: int) -> None:
        try:
            with grpc.insecure_channel(f"127.0.0.1:{self._port}", RECONNECT) as channel:
                export: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(EXPORT)
                for number in range(1_000_000):
                    if self._stop.wait(0.01):
                        return
                    ids = [
                        bytes([index + 1]) + (number * SPANS + one).to_bytes(7, "big") for one in range(SPANS)
                    ]
                    self._deliver(export, request(ids))
                    self.acknowledged[index].update(ids)
        except BaseException as error:
            self.errors.append(error)

    def _deliver(self, export: Any, raw: bytes) -> None:
        while True:
            try:
                answer = ExportTraceServiceResponse.FromString(export(raw, timeout=5))
                assert answer.partial_success.rejected_spans == 0
                return
            except grpc.RpcError as error:
                if error.code() not in RETRYABLE:
                    raise
                self.retries += 1
                time.sleep(0.05)

    @contextmanager
    def running(self) -> Iterator[Sender]:
        """Send; leaving it waits until what is being sent is taken."""
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(60)
        assert not self.errors, self.errors
        assert not any(thread.is_alive() for thread in self._threads)


def request(ids: list[bytes]) -> bytes:
    message = ExportTraceServiceRequest()
    spans = message.resource_spans.add().scope_spans.add().spans
    for one in ids:
        spans.add(
            trace_id=one * 2,
            span_id=one,
            name="predict",
            kind=2,
            start_time_unix_nano=10**18,
            end_time_unix_nano=10**18 + 10**6,
        )
    return message.SerializeToString()


def written(collector: Any) -> Counter[bytes]:
    """How often each span is in the collector's file."""
    return Counter(
        span.span_id
        for resource in collector.written("traces").resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    )


def pending(agent: Any) -> float:
    return float(agent.total("tidegauge_export_pending", exporter="forwarder", signal="traces"))


def misfortune(agent: Any, collector: Any, outage_s: float, dice: random.Random) -> None:
    """The collector is away for `outage_s`, and the agent is killed around that time, whenever it falls."""
    begin = time.monotonic()
    steps = sorted(
        [
            (0.3, collector.end),
            (0.3 + outage_s, collector.start),
            (dice.uniform(0, outage_s + 0.6), lambda: (agent.kill(), agent.start())),
        ],
        key=lambda step: step[0],
    )
    for when_s, step in steps:
        time.sleep(max(0.0, begin + when_s - time.monotonic()))
        step()


def forwarding(collector: Any, folder: Path) -> dict[str, Any]:
    """The settings of an agent with a disk queue, whose calls carry little."""
    otlp = {
        "endpoint": f"http://127.0.0.1:{collector.grpc}",
        "batch_size": f"{BATCH_BYTES}B",
        "in_flight": IN_FLIGHT,
    }
    return {"exporters": {"otlp": otlp}, "state_dir": str(folder / "state")}


def repeated_at_most(misfortunes: int) -> int:
    """Spans that may arrive twice: when either end goes away, those whose answer was under way."""
    carried = BATCH_BYTES // len(request([bytes(8)] * SPANS)) * SPANS
    return misfortunes * (SENDERS * SPANS + IN_FLIGHT * carried)


def test_what_was_acknowledged_survives_outages_and_kills(
    start_agent: Callable[..., Any],
    make_collector: Callable[..., Any],
    until: Callable[..., Any],
    tmp_path: Path,
) -> None:
    collector = make_collector(signals=["traces"])
    collector.start()
    agent = start_agent(**forwarding(collector, tmp_path))
    dice = random.Random()
    with Sender(agent.grpc).running() as sender:
        for outage_s in OUTAGES_S:
            misfortune(agent, collector, outage_s, dice)
    until(lambda: pending(agent) == 0, 120)
    until(lambda: written(collector).keys() >= sender.spans)
    found = written(collector)
    assert found.keys() == sender.spans
    assert len(found) > 1000
    assert agent.total("tidegauge_export_dropped_total") == 0
    assert found.total() - len(found) <= repeated_at_most(2 * len(OUTAGES_S))


def test_a_collector_in_front_loses_nothing_to_kills_of_the_agent(
    start_agent: Callable[..., Any],
    make_collector: Callable[..., Any],
    until: Callable[..., Any],
    tmp_path: Path,
) -> None:
    behind = make_collector(signals=["traces"])
    behind.start()
    agent = start_agent(**forwarding(behind, tmp_path))
    out = {
        "endpoint": f"127.0.0.1:{agent.grpc}",
        "tls": {"insecure": True},
        "retry_on_failure": {"initial_interval": "200ms", "max_interval": "1s"},
        "sending_queue": {"num_consumers": SENDERS, "queue_size": 100_000},
    }
    front = make_collector({"otlp_grpc": out}, ["traces"])
    front.start()
    with Sender(front.grpc).running() as sender:
        for _ in range(KILLS):
            time.sleep(random.uniform(0.5, 2))
            agent.kill()
            agent.start()
    until(lambda: written(behind).keys() >= sender.spans, 60)
    found = written(behind)
    assert found.keys() == sender.spans
    assert sender.retries == 0  # the collector in front had its queue for that
    assert found.total() - len(found) <= repeated_at_most(KILLS)
