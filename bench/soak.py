"""Rising load on a real agent, up to twice what it can take, and whether every item is accounted for.

`python -m bench.soak [--minutes N]` prints a line every few seconds. In the last part of the overload
the collector behind the agent stands still, so that both queues are full. Exit status 1 where what was
received is not what was accepted and rejected, or what was accepted not what was folded, dropped and is
pending, or what was forwarded not what was exported, dropped and is pending.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from bench.load import Load
from bench.process import Agent, total
from bench.sink import Sink

EVERY_S = 3.0
PROBE_S = 6.0  # at full speed, to find out what the agent can take
STEPS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.0, 2.0)
"""Shares of that, each for an equal part of the time. The collector stands still in the last one."""
SIGNALS = {"traces": "otlp_grpc", "metrics": "otlp_grpc", "logs": "otlp_grpc", "records": "flight"}
FULL_SPEED = 1e4  # calls a second, more than can be made
DROPPED = "tidegauge_export_dropped_total"
FORWARD_USAGE = "tidegauge_export_queue_usage_bytes"
HEADING = (
    " load  k items/s taken: spans,  points,    logs, records | anonymous MB, queue, forwarder"
    " | rejected, dropped, dropped by the forwarder"
)
SETTINGS: dict[str, Any] = {
    "pipeline": {"queue_size": "16MiB", "publish_interval": "1s"},
    "latency": {"max_series": 100},
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description="Rising load, accounted for.")
    parser.add_argument("--minutes", type=float, default=3.0, help="how long, without start and end")
    seconds = 60 * parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as folder, Sink(Path(folder)) as sink:
        out = {"endpoint": f"http://127.0.0.1:{sink.grpc}", "queue_size": "16MiB", "timeout": "2s"}
        with Agent(SETTINGS | {"exporters": {"otlp": out}}) as agent:
            memory, load = run(agent, sink, seconds)
            settle(agent)
            problems = list(faults(agent.text(), load, sink))
            print(flatness(memory))
    for problem in problems:
        print(f"does not add up: {problem}")
    print("every item is accounted for" if not problems else "NOT every item is accounted for")
    sys.exit(1 if problems else 0)


def run(agent: Agent, sink: Sink, seconds: float) -> tuple[list[list[float]], Load]:
    """Load it; the anonymous memory in MB of each step, and what the senders were told."""
    memory = []
    print(HEADING)
    with Load(agent.grpc) as load:
        load.rate = FULL_SPEED
        time.sleep(PROBE_S)
        most = load.calls / PROBE_S / len(SIGNALS)
        for step, share in enumerate(STEPS):
            load.rate = share * most
            if step == len(STEPS) - 1:
                sink.stand_still()
            memory.append(list(watch(agent, load, f"{share:.0%}", seconds / len(STEPS))))
        load.rate = 0.0
        sink.go_on()
    return memory, load


def watch(agent: Agent, load: Load, share: str, seconds: float) -> Iterator[float]:
    """Print a line every EVERY_S, and yield the anonymous memory in MB."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        before, begin = load.taken.copy(), time.monotonic()
        time.sleep(min(EVERY_S, max(0.1, end - begin)))
        took_s = time.monotonic() - begin
        rates = (f"{(load.taken[signal] - before[signal]) / took_s / 1e3:8.1f}" for signal in SIGNALS)
        page, memory_mb = agent.text(), agent.anonymous_mb()
        queues = (total(page, name) / 1e6 for name in ("tidegauge_queue_usage_bytes", FORWARD_USAGE))
        lost = (
            total(page, name) for name in ("tidegauge_rejected_total", "tidegauge_dropped_total", DROPPED)
        )
        print(
            f"{share:>5} {' '.join(rates)} | {memory_mb:9.1f}"
            f" {' '.join(f'{one:8.1f}' for one in queues)} | {' '.join(f'{one:11.0f}' for one in lost)}",
            flush=True,
        )
        yield memory_mb


def settle(agent: Agent) -> None:
    """Wait until nothing is pending any more, or nothing changes for 20 s."""
    since, before = time.monotonic(), ""
    while time.monotonic() < since + 20:
        page = agent.text()
        pending = [total(page, name) for name in ("tidegauge_pending", "tidegauge_export_pending")]
        if not any(pending):
            time.sleep(2.5)  # two publications: counters and gauges of one moment
            return
        if str(pending) != before:
            since, before = time.monotonic(), str(pending)
        time.sleep(0.5)


def faults(page: str, load: Load, sink: Sink) -> Iterator[str]:
    """Every sum that does not hold, of the agent's page, what senders were told, and the sink's counts."""
    arrived = sink.told()
    for signal, receiver in SIGNALS.items():

        def sum_of(name: str, signal: str = signal, **labels: str) -> float:
            return total(page, f"tidegauge_{name}", signal=signal, **labels)

        received, accepted, rejected, folded, dropped, pending = (
            sum_of(name, receiver=receiver)
            for name in (
                "received_total",
                "accepted_total",
                "rejected_total",
                "folded_total",
                "dropped_total",
                "pending",
            )
        )
        print(
            f"{signal:8} received {received:.0f} = accepted {accepted:.0f} + rejected {rejected:.0f};"
            f" accepted = folded {folded:.0f} + dropped {dropped:.0f} + pending {pending:.0f}"
        )
        if received != accepted + rejected:
            yield f"{signal}: received is not accepted + rejected"
        if accepted != folded + dropped + pending:
            yield f"{signal}: accepted is not folded + dropped + pending"
        known, failed = load.taken[signal], load.failed[signal]
        if not known <= accepted <= known + failed:
            yield f"{signal}: the senders were told {known} were taken, and of {failed} nothing"
        if signal == "records":
            continue
        exported, lost, waiting = (
            sum_of(name, exporter="forwarder")
            for name in ("exported_total", "export_dropped_total", "export_pending")
        )
        print(f"{'':8} forwarded = exported {exported:.0f} + dropped {lost:.0f} + pending {waiting:.0f}")
        if accepted != exported + lost + waiting:
            yield f"{signal}: accepted is not exported + dropped + pending"
        # A call that is answered too late is made again, so there may be more.
        if arrived[signal] < exported:
            yield f"{signal}: {exported:.0f} exported, but {arrived[signal]} arrived"


def flatness(memory: list[list[float]]) -> str:
    """What the memory did in the steps of twice the load."""
    first, *_, last = (median(step) for step, share in zip(memory, STEPS, strict=True) if share == max(STEPS))
    most = max(max(step) for step in memory)
    return (
        f"anonymous memory: {first:.1f} MB in the first step at {max(STEPS):.0%} and {last:.1f} MB in the"
        f" last ({last - first:+.1f}); {most:.1f} MB at most"
    )


if __name__ == "__main__":
    main()
