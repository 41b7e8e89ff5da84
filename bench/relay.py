"""OTLP spans in, latency histograms on a page, OTLP out: the agent beside the OpenTelemetry Collector.

Same sender, same requests, same kind of sink, no compression, rounds in turn. What counts is the CPU
time of each process from the first request until the sink has all that was sent.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench.collector import COUNT, VARIANTS, Collector, MissingError, binary
from bench.figure import Figure
from bench.payload import SPANS
from bench.process import Agent, Child, wait_for
from bench.sender import run
from bench.sink import Sink

WARM_UP = 50  # requests, in which each makes its series and fills its caches
AGENT_COUNT = "model_inference_latency_seconds_count"


class Subject(NamedTuple):
    """A process under load: where it listens, its page, what counts its spans there, and its sink."""

    process: Child
    port: int
    page: Callable[[], str]
    sample: str
    sink: Sink


class Round(NamedTuple):
    """One round: spans per CPU second and per second, and MB of anonymous memory at its height."""

    rate: float
    wall: float
    peak_mb: float


class Record:
    """All rounds of one subject."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.rounds: list[Round] = []
        self.sent = 0
        self.send(WARM_UP)

    def send(self, requests: int, spans: int = SPANS) -> float:
        """Send, wait until all is handed on or nothing more comes, and return the seconds of sending."""
        wall_s = run("spans", self.subject.port, requests, spans)
        self.sent += requests * spans
        self.subject.sink.settle(self.sent)
        return wall_s

    def round(self, requests: int) -> None:
        """Measure one."""
        begin = self.subject.process.cpu_s()
        with Height(self.subject.process) as height:
            wall_s = self.send(requests)
        spans = requests * SPANS
        rate = spans / (self.subject.process.cpu_s() - begin)
        self.rounds.append(Round(rate, spans / wall_s, height.peak_mb))

    @property
    def handed_on(self) -> float:
        """Percent of all spans sent that have reached the sink."""
        return 100 * self.subject.sink.spans() / self.sent

    @property
    def rate(self) -> float:
        """Median spans per CPU second."""
        return median(one.rate for one in self.rounds)


class Height:
    """The most anonymous memory that a process has between entering and leaving, asked every 50 ms."""

    def __init__(self, process: Child) -> None:
        self._process = process
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.peak_mb = 0.0

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            self.peak_mb = max(self.peak_mb, self._process.anonymous_mb())

    def __enter__(self) -> Height:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def measure(rounds: int, requests: int) -> Iterator[Figure | str]:
    """Figures, and a sentence where the Collector is missing. Its faster variant is the peer."""
    with ExitStack() as started:
        agent = Record(start_agent(started))
        keeping = Record(start_agent(started, state_dir=str(folder(started))))
        peers: dict[str, Record] = {}
        try:
            program, version = binary()
        except MissingError as missing:
            yield str(missing)
        else:
            peers = {name: Record(start_collector(started, program, name)) for name in VARIANTS}
        for _ in range(rounds):
            for record in (agent, keeping, *peers.values()):
                record.round(requests)
        for record in (agent, keeping, *peers.values()):
            wait_for(record.subject.page, record.sent, record.subject.sample)
        best = max(peers, key=lambda name: peers[name].rate, default=None)
        peer = None if best is None else peers[best]
        name = "" if best is None else f"Collector {version}, {best}"
        yield from figures("OTLP → latency + OTLP", agent, name, peer)
        # The Collector has nothing on disk here: its own queue there needs one more extension.
        yield from figures("… with the disk queue", keeping, name, peer)


def figures(label: str, agent: Record, name: str, peer: Record | None) -> Iterator[Figure]:
    """What the table says of them."""
    what = f"{label}, {SPANS} spans a request"
    other = [] if peer is None else peer.rounds

    def both(which: str, unit: str, of: Callable[[Round], float], *, less: bool = False) -> Figure:
        mine, its = [of(one) for one in agent.rounds], [of(one) for one in other]
        return Figure(f"{what}, {which}", unit, mine, name, its, less=less)

    yield both("per CPU second", "k spans/core-s", lambda one: one.rate / 1e3)
    yield both("wall clock", "k spans/s", lambda one: one.wall / 1e3)
    yield both("anonymous memory at most", "MB", lambda one: one.peak_mb, less=True)
    its = [] if peer is None else [peer.handed_on]
    yield Figure(f"{what}, handed on", "% of spans", [agent.handed_on], name, its)


def start_agent(started: ExitStack, state_dir: str | None = None) -> Subject:
    """An agent with its sink, ended with `started`; with a disk queue in `state_dir`."""
    sink = started.enter_context(Sink(folder(started)))
    settings = {"exporters": {"otlp": {"endpoint": f"http://127.0.0.1:{sink.grpc}"}}, "state_dir": state_dir}
    agent = started.enter_context(Agent(settings))
    return Subject(agent, agent.grpc, agent.text, AGENT_COUNT, sink)


def start_collector(started: ExitStack, program: Path, variant: str) -> Subject:
    """A Collector with its sink, ended with `started`."""
    sink = started.enter_context(Sink(folder(started)))
    collector = started.enter_context(Collector(program, folder(started), sink.grpc, variant))
    return Subject(collector, collector.grpc, collector.text, COUNT, sink)


def folder(started: ExitStack) -> Path:
    """A new folder that goes with `started`."""
    return Path(started.enter_context(tempfile.TemporaryDirectory()))
