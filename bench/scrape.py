"""A scrape of 10 k and of 100 k series: server CPU, memory, the loop's stall; beside prometheus_client."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine, Iterable, Iterator
from typing import Any

import grpc
from prometheus_client import CollectorRegistry, Metric, exposition
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from bench.figure import Figure
from bench.payload import SPANS, span_request
from bench.process import Agent
from bench.sender import TRACES
from tidegauge.exporters.exposition import Format, renderer
from tidegauge.exporters.prometheus import MetricsPage
from tidegauge.metric import ExponentialHistogram, Kind, Number
from tidegauge.metric import Metric as Own
from tidegauge.snapshot import Snapshots

PEER = "generate_latest alone"
HISTOGRAM_SERIES = 40
_PEERS = {
    Format.TEXT: exposition.generate_latest,
    Format.OPENMETRICS: lambda page: openmetrics.generate_latest(page, version="1.0.0"),  # type: ignore[no-untyped-call]
}


def measure(rounds: int, seconds: int) -> Iterator[Figure]:
    """What it costs to write a page that has changed, and to serve one that has not."""
    for series in (10_000, 100_000):
        yield from _written(series, rounds)
    yield _stalls(100_000, rounds)
    for requests in (1, 5):
        yield from _served(requests, rounds, seconds)


def _written(series: int, rounds: int) -> Iterator[Figure]:
    """CPU to write a snapshot in which every value is another one than before."""
    page = _Page(renderer(Format.TEXT).render(snapshot(series)).body.decode())
    registry = CollectorRegistry()
    registry.register(page)
    for form in Format:
        pages = renderer(form)
        pages.render(snapshot(series))
        own: list[float] = []
        alone: list[float] = []
        for _ in range(rounds):
            metrics = snapshot(series)
            own.append(_cpu_ms(lambda: pages.render(metrics)))  # noqa: B023
            if form in _PEERS:
                alone.append(_cpu_ms(lambda: _PEERS[form](registry)))  # noqa: B023
        what = f"writing {page.series} changed series, {form.value}"
        yield Figure(what, "ms CPU", own, PEER if alone else "", alone, less=True)


def _served(requests: int, rounds: int, seconds: int) -> Iterator[Figure]:
    """A scrape of the agent when the same is published again every second, and when nothing was."""
    settings = {"pipeline": {"publish_interval": "1s"}, "latency": {"max_series": 5000}}
    with Agent(settings) as agent:
        with grpc.insecure_channel(f"127.0.0.1:{agent.grpc}") as channel:
            export: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(TRACES)
            operations = SPANS if requests > 1 else SPANS // 2
            for number in range(requests):
                export(
                    span_request(operations).replace(b"/v1/predict/", b"/v%d/predict/" % number), timeout=30
                )
        # Half the page is written in text here: that must not count as the agent's own.
        agent.wait_for(SPANS * requests, "tidegauge_folded_total", signal="traces")
        time.sleep(2)
        before_mb = agent.anonymous_mb()
        agent.scrape()
        again = [_again_ms(agent) for _ in range(rounds)]
        fresh = [_fresh_ms(agent, seconds) for _ in range(rounds)]
        memory = [agent.anonymous_mb() - before_mb]
        page = _Page(agent.text())
    registry = CollectorRegistry()
    registry.register(page)
    alone = [_cpu_ms(lambda: _PEERS[Format.OPENMETRICS](registry)) for _ in range(rounds)]
    what = f"scrape of {page.series} series"
    yield Figure(f"{what}, the same published again", "ms CPU", fresh, PEER, alone, less=True)
    yield Figure(f"{what}, nothing published", "ms CPU", again, PEER, alone, less=True)
    yield Figure(f"{what}: memory for OpenMetrics beside text", "MB", memory)


class _Page:
    """The agent's own page, as a collector."""

    def __init__(self, text: str) -> None:
        self._families = list(text_string_to_metric_families(text))
        self.series = sum(len(family.samples) for family in self._families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def snapshot(series: int) -> tuple[Own, ...]:
    """Half gauges of five labels, half histograms, with random values; new objects each time."""
    model = (("model", "fraud"), ("version", "2.1"), ("stage", "production"))
    gauges = tuple(
        Number(
            (*model, ("feature", f"f{n // 20}"), ("bin", f"({n % 20}, {n % 20 + 1}]")), random.random() * 1e3
        )
        for n in range(series // 2)
    )
    histograms = tuple(
        ExponentialHistogram(
            (*model, ("operation", f"/v1/predict/{n}"), ("status", "ok")),
            3,
            -60 + random.randrange(5),
            tuple(random.choices(range(1000), k=80)),
            0,
            random.random() * 1e3,
            0.0,
            10.0,
        )
        for n in range(series // 2 // HISTOGRAM_SERIES)
    )
    return (
        Own("feature.window.count", Kind.GAUGE, "{row}", "Rows per bin in the window.", gauges),
        Own("model.inference.latency", Kind.EXPONENTIAL_HISTOGRAM, "s", "Duration.", histograms, 1),
    )


def _stalls(series: int, rounds: int) -> Figure:
    """The longest that the event loop waits while a changed page is written and compressed on a thread."""
    registry = CollectorRegistry()
    registry.register(_Page(renderer(Format.TEXT).render(snapshot(series)).body.decode()))

    async def scene() -> tuple[float, float]:
        snapshots = Snapshots()
        page = MetricsPage(snapshots)
        for _ in range(2):
            snapshots.publish("bench", snapshot(series))
            own = await _longest_gap_ms(page.answer("", "gzip"))
        return own, await _longest_gap_ms(asyncio.to_thread(_PEERS[Format.OPENMETRICS], registry))

    own, peers = zip(*(asyncio.run(scene()) for _ in range(rounds)), strict=True)
    what = f"longest stall of the loop, writing {series} changed"
    return Figure(what, "ms", own, "generate_latest on a thread", peers, less=True)


async def _longest_gap_ms(work: Coroutine[Any, Any, Any]) -> float:
    task = asyncio.create_task(work)
    longest_s, before_s = 0.0, time.perf_counter()
    while not task.done():
        await asyncio.sleep(0)
        now_s = time.perf_counter()
        longest_s, before_s = max(longest_s, now_s - before_s), now_s
    return longest_s * 1e3


def _cpu_ms(work: Any) -> float:
    begin = time.process_time()
    work()
    return (time.process_time() - begin) * 1e3


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
