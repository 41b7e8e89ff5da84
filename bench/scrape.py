"""Server CPU of a scrape of 10 k series, beside prometheus_client's encoder alone."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import grpc
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from bench.figure import Figure
from bench.payload import SPANS, span_request
from bench.process import Agent
from bench.sender import TRACES

OPERATIONS = 256  # each is a histogram of 40 series


def measure(rounds: int, seconds: int) -> Iterator[Figure]:
    """A page that nobody has asked for since it was published, and one that somebody has."""
    with Agent({"pipeline": {"publish_interval": "1s"}}) as agent:
        with grpc.insecure_channel(f"127.0.0.1:{agent.grpc}") as channel:
            export: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(TRACES)
            export(span_request(OPERATIONS), timeout=30)
        agent.wait_for(SPANS, "tidegauge_folded_total", signal="traces")
        fresh = [_fresh_ms(agent, seconds) for _ in range(rounds)]
        again = [_again_ms(agent) for _ in range(rounds)]
        page = _Page(agent.text("application/openmetrics-text"))
    registry = CollectorRegistry()
    registry.register(page)
    alone = []
    for _ in range(rounds):
        begin = time.process_time()
        generate_latest(registry)
        alone.append((time.process_time() - begin) * 1e3)
    peer = "generate_latest alone"
    what = f"scrape of {page.series} series"
    yield Figure(f"{what}, after publishing", "ms CPU", fresh, peer, alone, less=True)
    yield Figure(f"{what}, nothing new", "ms CPU", again, peer, alone, less=True)


class _Page:
    """The agent's own page, as a collector."""

    def __init__(self, text: str) -> None:
        self._families = list(text_string_to_metric_families(text))
        self.series = sum(len(family.samples) for family in self._families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def _fresh_ms(agent: Agent, seconds: int) -> float:
    """CPU that a scrape per publication costs beyond publishing alone."""
    begin = agent.cpu_s()
    time.sleep(seconds)
    quiet_s = agent.cpu_s() - begin
    begin = agent.cpu_s()
    deadline = time.monotonic()
    for _ in range(seconds):
        agent.scrape()
        deadline += 1
        time.sleep(max(0.0, deadline - time.monotonic()))
    return (agent.cpu_s() - begin - quiet_s) / seconds * 1e3


def _again_ms(agent: Agent) -> float:
    """CPU of a scrape where few of many come upon a new publication."""
    scrapes = 500
    begin = agent.cpu_s()
    for _ in range(scrapes):
        agent.scrape()
    return (agent.cpu_s() - begin) / scrapes * 1e3
