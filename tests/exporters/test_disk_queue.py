"""The forwarder with a disk queue, against a real collector: what was answered for is never lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tidegauge.batch import Signal
from tidegauge.config import Destination, DiskQueue
from tidegauge.exporters.channel import Collector
from tidegauge.exporters.forward import Forwarder
from tidegauge.telemetry import Telemetry
from tidegauge.units import Size

SIGNALS = (Signal.TRACES, Signal.METRICS, Signal.LOGS)


def spans(*names: str, padding: int = 0) -> bytes:
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add(schema_url="x" * padding)
    for name in names:
        scope.spans.add(name=name)
    return request.SerializeToString()


class Ledger:
    """A forwarder whose books are checked at every turn of the event loop."""

    def __init__(self, forwarder: Forwarder, telemetry: Telemetry) -> None:
        self.forwarder = forwarder
        self.telemetry = telemetry
        self.offered: Counter[Signal] = Counter()

    async def offer(self, raw: bytes, items: int = 1, signal: Signal = Signal.TRACES) -> None:
        self.offered[signal] += items
        answer = self.forwarder.offer(signal, raw, items)
        self.check()
        if answer is not None:
            await answer

    def total(self, counter: str, signal: Signal = Signal.TRACES, **labels: str) -> int:
        return self.telemetry.total(counter, exporter="forwarder", signal=signal, **labels)

    def check(self) -> None:
        for signal in SIGNALS:
            came = self.offered[signal] + self.total("export.restored", signal)
            went = self.total("exported", signal) + self.total("export.dropped", signal)
            assert came == went + self.forwarder.pending_items(signal)

    @property
    def dropped(self) -> dict[str, int]:
        found = {
            reason: self.total("export.dropped", reason=reason)
            for reason in ("queue_full", "rejected", "expired", "corrupt", "shutdown")
        }
        return {reason: items for reason, items in found.items() if items}

    async def watch(self) -> None:
        while True:
            self.check()
            await asyncio.sleep(0)

    async def until(self, done: Any) -> None:
        async with asyncio.timeout(20):
            while not done():
                await asyncio.sleep(0.005)


@asynccontextmanager
async def forwarding(
    port: int,
    folder: Path,
    options: dict[str, Any] | None = None,
    disk: dict[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[Ledger]:
    given = Destination(endpoint=f"http://127.0.0.1:{port}", disk_queue=DiskQueue(**(disk or {})), **settings)
    async with Collector(given) as collector:
        telemetry = Telemetry()
        chosen = {"linger_s": 0.0, "backoff_s": (0.02, 0.05), "drain_s": 3.0} | (options or {})
        forwarder = Forwarder(collector, telemetry, given, folder=folder, **chosen)
        ledger = Ledger(forwarder, telemetry)
        async with forwarder:
            watch = asyncio.create_task(ledger.watch())
            yield ledger
        watch.cancel()
        await asyncio.wait({watch})
        assert watch.cancelled()
        ledger.check()


def taken(sink: Any, signal: Signal = Signal.TRACES) -> list[str]:
    return [name for call in sink.taken if call.signal is signal for name in call.names]


def test_what_comes_is_delivered_and_its_segments_go(sink_type: Any, tmp_path: Path) -> None:
    async def scene() -> None:
        async with sink_type() as sink, forwarding(sink.port, tmp_path / "q") as ledger:
            for n in range(50):
                await ledger.offer(spans(str(n)))
            await ledger.until(lambda: len(taken(sink)) == 50)
        assert taken(sink) == [str(n) for n in range(50)]
        async with sink_type() as sink, forwarding(sink.port, tmp_path / "q") as ledger:
            assert ledger.total("export.restored") == 0
            await ledger.offer(spans("last"))
        assert taken(sink) == ["last"]

    asyncio.run(scene())


def test_an_outage_and_a_restart_lose_nothing(sink_type: Any, closed_port: int, tmp_path: Path) -> None:
    async def scene() -> None:
        options = {"drain_s": 0.1}
        async with forwarding(closed_port, tmp_path / "q", options, queue_size=Size("64KiB")) as ledger:
            for n in range(200):
                await ledger.offer(spans(str(n), padding=1000))
            assert ledger.forwarder.pending_bytes < 65536
        assert ledger.forwarder.pending_items(Signal.TRACES) == 200
        assert ledger.dropped == {}
        async with sink_type() as sink, forwarding(sink.port, tmp_path / "q") as ledger:
            assert ledger.total("export.restored") == 200
            await ledger.until(lambda: len(taken(sink)) == 200)
        assert taken(sink) == [str(n) for n in range(200)]
        assert ledger.total("exported") == 200

    asyncio.run(scene())
