"""Several collectors: each gets what it is to get, and waits for no other."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tidegauge.batch import Signal
from tidegauge.config import ConfigError, Destination, OtlpSignal
from tidegauge.exporters.channel import Collector
from tidegauge.exporters.fanout import Fanout
from tidegauge.exporters.forward import Forwarder
from tidegauge.telemetry import Telemetry


def request(text: str) -> bytes:
    """A request of any signal: a schema's URL stands in the same field of all three."""
    message = ExportTraceServiceRequest()
    message.resource_spans.add().schema_url = text
    return message.SerializeToString()


def destination(port: int, *signals: OtlpSignal) -> Destination:
    return Destination(endpoint=f"http://127.0.0.1:{port}", signals=signals or tuple(OtlpSignal))


@pytest.mark.parametrize("disks", [0, 1, 2])
def test_each_gets_its_signals_and_one_that_is_away_holds_up_none(
    sink_type: Any, closed_port: int, tmp_path: Path, disks: int
) -> None:
    async def scene() -> None:
        telemetry = Telemetry()
        async with AsyncExitStack() as stack:
            every, some = [await stack.enter_async_context(sink_type()) for _ in range(2)]
            forwarders = []
            for index, settings in enumerate(
                (
                    destination(every.port),
                    destination(some.port, OtlpSignal.LOGS, OtlpSignal.METRICS),
                    destination(closed_port, OtlpSignal.TRACES),
                )
            ):
                collector = await stack.enter_async_context(Collector(settings))
                folder = tmp_path / f"{index}" if index < disks else None
                forwarders.append(
                    Forwarder(
                        collector,
                        telemetry,
                        settings,
                        name=f"c{index}",
                        folder=folder,
                        drain_s=0.5,
                        linger_s=0.0,
                    )
                )
            async with Fanout(forwarders) as fanout:
                for n in range(10):
                    for signal in (Signal.TRACES, Signal.METRICS, Signal.LOGS):
                        answer = fanout.offer(signal, request(f"{signal} {n}"), 1)
                        if answer is not None:
                            await answer
                fanout.observe()
                await every.until(lambda: sum(call.signal is Signal.TRACES for call in every.taken) > 0)
        for signal in (Signal.TRACES, Signal.METRICS, Signal.LOGS):
            count = 10 if signal is not Signal.TRACES else 0
            assert telemetry.total("exported", collector="c0", signal=signal) == 10
            assert telemetry.total("exported", collector="c1", signal=signal) == count
        assert telemetry.total("exported", collector="c2") == 0
        assert telemetry.total("export.dropped", collector="c2", reason="shutdown") == 10
        assert telemetry.total("export.dropped") == 10

    asyncio.run(scene())


def test_one_that_cannot_start_ends_the_others(sink_type: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    async def scene() -> None:
        settings = destination(1)
        telemetry = Telemetry()
        async with Collector(settings) as collector:
            well = Forwarder(collector, telemetry, settings, folder=tmp_path / "well")
            ill = Forwarder(collector, telemetry, settings, folder=tmp_path / "file")
            with pytest.raises(ConfigError, match="cannot be used"):
                async with Fanout([well, ill]):
                    raise AssertionError
            well.offer(Signal.TRACES, b"", 1)
            assert telemetry.total("export.dropped", reason="shutdown") == 1

    asyncio.run(scene())


def test_without_collectors_nothing_happens() -> None:
    async def scene() -> None:
        async with Fanout([]) as fanout:
            assert fanout.offer(Signal.TRACES, b"", 1) is None
            fanout.observe()

    asyncio.run(scene())
