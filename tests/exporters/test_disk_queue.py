"""The forwarder with a disk queue, against a real collector: what was answered for is never lost."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import resource
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tidegauge.batch import Signal
from tidegauge.config import ConfigError, Destination, DiskQueue, OtlpSignal
from tidegauge.exporters.channel import Collector
from tidegauge.exporters.forward import Forwarder
from tidegauge.exporters.journal import Journal
from tidegauge.exporters.segment import encode
from tidegauge.telemetry import Telemetry
from tidegauge.units import Allowance, Duration, Size

SIGNALS = (Signal.TRACES, Signal.METRICS, Signal.LOGS)


def spans(*names: str, padding: int = 0) -> bytes:
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add(schema_url="x" * padding)
    for name in names:
        scope.spans.add(name=name)
    return request.SerializeToString()


class Ledger:
    """A forwarder whose books are checked at every turn of the event loop."""

    def __init__(self, forwarder: Forwarder, telemetry: Telemetry, signals: Iterable[str]) -> None:
        self.forwarder = forwarder
        self.telemetry = telemetry
        self.signals = [Signal(signal) for signal in signals]
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
        for signal in self.signals:
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
    given = Destination(
        endpoint=f"http://127.0.0.1:{port}",
        disk_queue=DiskQueue(**(disk or {})),
        **({"in_flight": 1} | settings),  # gRPC may deliver calls in any order
    )
    async with Collector(given) as collector:
        telemetry = Telemetry()
        chosen = {"linger_s": 0.0, "backoff_s": (0.02, 0.05), "drain_s": 3.0} | (options or {})
        forwarder = Forwarder(collector, telemetry, given, folder=folder, **chosen)
        ledger = Ledger(forwarder, telemetry, map(str, given.signals))
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


def test_a_collector_that_keeps_up_costs_no_reading(sink_type: Any, tmp_path: Path) -> None:
    async def scene() -> None:
        async with sink_type() as sink, forwarding(sink.port, tmp_path / "q") as ledger:
            for n in range(30):
                await ledger.offer(spans(str(n), padding=1000))
                await ledger.until(lambda n=n: len(taken(sink)) == n + 1)
                # Were it read back, it would be missing now and then.
                for path in (tmp_path / "q").glob("*.traces"):
                    path.unlink()
        assert ledger.dropped == {}

    asyncio.run(scene())


@pytest.mark.parametrize("when_full", ["drop_oldest", "drop_newest"])
def test_beyond_its_size_the_oldest_or_the_newest_go(
    sink_type: Any, closed_port: int, tmp_path: Path, when_full: str
) -> None:
    folder = tmp_path / "q"

    def bytes_on_disk() -> int:
        return sum(path.stat().st_size for path in folder.glob("*.traces"))

    async def scene() -> None:
        disk = {"size": Allowance("64KiB"), "when_full": when_full}
        options = {"drain_s": 0.1, "backoff_s": (60.0, 60.0)}
        settings = {"queue_size": Size("32KiB"), "batch_size": Size("3KiB")}
        async with forwarding(closed_port, folder, options, disk, **settings) as ledger:
            for n in range(200):
                await ledger.offer(spans(str(n), padding=1000))
                assert bytes_on_disk() <= 65536
            await ledger.offer(spans("huge", padding=70_000))
            left = ledger.forwarder.pending_items(Signal.TRACES)
            assert ledger.dropped == {"queue_full": 201 - left}
            assert 45 < left < 65
        async with sink_type() as sink, forwarding(sink.port, folder) as ledger:
            await ledger.until(lambda: not ledger.forwarder.pending_items(Signal.TRACES))
        assert ledger.dropped == {}
        numbers = [int(name) for name in taken(sink)]
        if when_full == "drop_newest":
            assert numbers == list(range(left))
        else:
            # What the call carried, that failed all the while, had its segment dropped under it.
            assert numbers == list(range(200 - len(numbers), 200))
            assert left - 4 <= len(numbers) <= left

    asyncio.run(scene())


def test_the_oldest_of_all_signals_goes_first(closed_port: int, tmp_path: Path) -> None:
    async def scene() -> None:
        disk = {"size": Allowance("64KiB")}
        options = {"drain_s": 0.1, "backoff_s": (60.0, 60.0)}
        async with forwarding(closed_port, tmp_path / "q", options, disk, queue_size=Size("32KiB")) as ledger:
            for n in range(20):
                await ledger.offer(spans(str(n), padding=1000), signal=Signal.LOGS)
            for n in range(38):
                await ledger.offer(spans(str(n), padding=1000))
            assert ledger.total("export.dropped", Signal.LOGS) == 0
            for n in range(10):
                await ledger.offer(spans(str(n), padding=1000))
            assert ledger.total("export.dropped", Signal.LOGS) > 0
            assert ledger.dropped == {}
            for n in range(30):
                await ledger.offer(spans(str(n), padding=1000))
            assert ledger.dropped["queue_full"] > 0

    asyncio.run(scene())


@pytest.mark.parametrize("taken_in_the_end", [True, False])
def test_what_a_call_carries_may_lose_its_segment(
    sink_type: Any, failure: Any, tmp_path: Path, taken_in_the_end: bool
) -> None:
    async def scene() -> None:
        disk = {"size": Allowance("64KiB")}
        settings = {"queue_size": Size("32KiB"), "batch_size": Size("2KiB"), "in_flight": 2}
        async with sink_type() as sink, forwarding(sink.port, tmp_path / "q", {}, disk, **settings) as ledger:
            sink.gate.clear()
            await ledger.offer(spans("0", padding=1000))
            await sink.until(lambda: len(sink.calls) == 1)
            for n in range(1, 100):
                await ledger.offer(spans(str(n), padding=1000))
            lost = ledger.dropped["queue_full"]
            if not taken_in_the_end:
                sink.failures[Signal.TRACES] = [failure(grpc.StatusCode.UNAVAILABLE)] * 2
            sink.gate.set()
            await ledger.until(lambda: not ledger.forwarder.pending_items(Signal.TRACES))
        if taken_in_the_end:
            assert ledger.dropped == {"queue_full": lost}
            assert "0" in taken(sink)
        else:
            assert ledger.dropped["queue_full"] > lost
            assert "0" not in taken(sink)
        assert len(set(taken(sink))) == len(taken(sink)) == 100 - ledger.dropped["queue_full"]
        # The cursor has passed what was dropped: the next start misses nothing.
        async with sink_type() as sink, forwarding(sink.port, tmp_path / "q") as ledger:
            assert ledger.total("export.restored") == 0

    asyncio.run(scene())


def test_a_restart_sends_again_what_overtook(sink_type: Any, failure: Any, tmp_path: Path) -> None:
    async def scene() -> None:
        settings = {"batch_size": Size("2200B"), "in_flight": 3}
        options = {"drain_s": 0.6, "backoff_s": (60.0, 60.0)}
        async with sink_type() as sink, forwarding(sink.port, tmp_path / "q", options, **settings) as ledger:
            # The oldest batch fails for good, so the two that overtake it will come twice.
            sink.judge = lambda call: failure(grpc.StatusCode.UNAVAILABLE) if "0" in call.names else None
            for n in range(40):
                ledger.forwarder.offer(Signal.TRACES, spans(str(n), padding=1000), 1)
                ledger.offered[Signal.TRACES] += 1
            await sink.until(lambda: len(sink.calls) == 3)
            await ledger.until(lambda: not ledger.forwarder._lanes[Signal.TRACES].calls)
        before = taken(sink)
        assert sorted(before) == ["2", "3", "4", "5"]
        async with sink_type() as sink, forwarding(sink.port, tmp_path / "q") as ledger:
            assert ledger.total("export.restored") == 40
            await ledger.until(lambda: len(taken(sink)) == 40)
        assert taken(sink) == [str(n) for n in range(40)]

    asyncio.run(scene())


@contextmanager
def full_disk(nbytes: int) -> Iterator[None]:
    """No file may grow beyond `nbytes`: the nearest to a full disk that a process can make for itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_memory(
    sink_type: Any, closed_port: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        options = {"drain_s": 0.3}
        async with forwarding(closed_port, tmp_path / "q", options) as ledger:
            await ledger.offer(spans("0", padding=1000))
            with full_disk(3000):
                for n in range(1, 6):
                    await ledger.offer(spans(str(n), padding=1000))
                ledger.forwarder.observe()
                assert gauge(ledger, "tidegauge.export.disk.failing") == 1
                assert ledger.total("export.unsaved") == 4
            await ledger.offer(spans("6", padding=1000))
            ledger.forwarder.observe()
            assert gauge(ledger, "tidegauge.export.disk.failing") == 0
        # What the disk would not take then, it took at the end.
        assert ledger.forwarder.pending_items(Signal.TRACES) == 7
        async with sink_type() as sink, forwarding(sink.port, tmp_path / "q") as ledger:
            await ledger.until(lambda: len(taken(sink)) == 7)
        assert sorted(taken(sink)) == [str(n) for n in range(7)]

    asyncio.run(scene())
    told = [record.getMessage() for record in caplog.records if "disk queue" in record.getMessage()]
    assert len(told) == 1
    assert "fails to write: [Errno 27] File too large" in told[0]


def test_a_full_disk_at_the_end_is_counted(closed_port: int, tmp_path: Path) -> None:
    async def scene() -> None:
        with full_disk(2000):
            async with forwarding(closed_port, tmp_path / "q", {"drain_s": 0.1}) as ledger:
                for n in range(5):
                    await ledger.offer(spans(str(n), padding=1000))
        assert ledger.dropped == {"shutdown": 4}
        assert ledger.forwarder.pending_items(Signal.TRACES) == 1

    asyncio.run(scene())


def test_memory_is_bounded_while_the_disk_fails(closed_port: int, tmp_path: Path) -> None:
    async def scene() -> None:
        options = {"drain_s": 0.1, "backoff_s": (60.0, 60.0)}
        with full_disk(100):
            async with forwarding(closed_port, tmp_path / "q", options, queue_size=Size("32KiB")) as ledger:
                for n in range(100):
                    await ledger.offer(spans(str(n), padding=1000))
                    assert ledger.forwarder.pending_bytes <= 32768
                assert ledger.dropped["queue_full"] > 70

    asyncio.run(scene())


class Hang:
    """A disk whose writes hang while `gate` is cleared."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # No disk here can be made to hang on demand.
        self.gate = threading.Event()
        self.gate.set()
        monkeypatch.setattr(os, "pwritev", self.write)

    def write(self, *arguments: Any, really: Any = os.pwritev) -> int:
        self.gate.wait(20)
        return int(really(*arguments))


def test_a_disk_that_hangs_holds_up_no_answer_for_long(
    sink_type: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang = Hang(monkeypatch)

    async def scene() -> None:
        options = {"patience_s": 0.2}
        async with sink_type() as sink, forwarding(sink.port, tmp_path / "q", options) as ledger:
            await ledger.offer(spans("0"))
            hang.gate.clear()
            for n in range(1, 50):
                await ledger.offer(spans(str(n)))  # the first for patience_s, the others at once
            assert ledger.total("export.unsaved") == 49
            await ledger.until(lambda: len(taken(sink)) == 50)
            hang.gate.set()
            await ledger.until(lambda: not ledger.forwarder._spool.failing)
            await ledger.offer(spans("50"))
            assert ledger.total("export.unsaved") == 49
        assert taken(sink) == [str(n) for n in range(51)]
        async with sink_type() as sink, forwarding(sink.port, tmp_path / "q") as ledger:
            assert ledger.total("export.restored") == 0

    asyncio.run(scene())


def test_a_disk_that_hangs_does_not_keep_the_agent_from_ending(
    closed_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hang = Hang(monkeypatch)

    async def scene() -> None:
        options = {"patience_s": 0.1, "drain_s": 0.3}
        async with forwarding(closed_port, tmp_path / "q", options) as ledger:
            hang.gate.clear()
            await ledger.offer(spans("0"))
        assert ledger.dropped == {"shutdown": 1}

    asyncio.run(scene())
    assert "the disk was not done with" in caplog.text
    hang.gate.set()


def test_a_sender_that_goes_away_changes_nothing(
    sink_type: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang = Hang(monkeypatch)

    async def scene() -> None:
        async with sink_type() as sink, forwarding(sink.port, tmp_path / "q") as ledger:
            hang.gate.clear()
            sender = asyncio.create_task(ledger.offer(spans("a")))
            await asyncio.sleep(0.01)
            sender.cancel()
            await asyncio.wait({sender})
            hang.gate.set()
            await ledger.until(lambda: taken(sink) == ["a"])

    asyncio.run(scene())


def test_what_is_written_late_is_bounded(
    closed_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang = Hang(monkeypatch)

    async def scene() -> None:
        options = {"patience_s": 10.0, "drain_s": 0.1}
        async with forwarding(closed_port, tmp_path / "q", options, queue_size=Size("32KiB")) as ledger:
            hang.gate.clear()
            async with asyncio.TaskGroup() as group:
                for n in range(30):
                    group.create_task(ledger.offer(spans(str(n), padding=1000)))
                await asyncio.sleep(0.05)
                assert ledger.dropped == {"queue_full": 30 - 15}  # half of queue_size may be on its way
                hang.gate.set()
        assert ledger.forwarder.pending_items(Signal.TRACES) == 15

    asyncio.run(scene())


def test_damage_on_disk_is_counted(sink_type: Any, closed_port: int, tmp_path: Path) -> None:
    async def scene() -> None:
        disk = {"size": Allowance("1MiB")}
        async with forwarding(closed_port, tmp_path / "q", {"drain_s": 0.1}, disk) as ledger:
            for n in range(200):
                await ledger.offer(spans(str(n), padding=1000), 2)
        first, second, third, *_ = sorted((tmp_path / "q").glob("*.traces"))
        first.unlink()
        damaged = bytearray(second.read_bytes())
        damaged[1500:1510] = b"\0" * 10  # inside the second request
        second.write_bytes(damaged)
        damaged = bytearray(third.read_bytes())
        damaged[:4] = b"\0" * 4  # the first header
        third.write_bytes(damaged)
        async with sink_type() as sink, forwarding(sink.port, tmp_path / "q") as ledger:
            assert ledger.total("export.restored") == 400
            await ledger.until(lambda: not ledger.forwarder.pending_items(Signal.TRACES))
        missing = 200 - len(taken(sink))
        assert ledger.dropped == {"corrupt": 2 * missing}
        assert 2 < missing < 70
        assert [int(name) for name in taken(sink)] == sorted(map(int, taken(sink)))

    asyncio.run(scene())


def test_a_segment_that_vanishes_while_the_agent_runs_is_counted(
    sink_type: Any, closed_port: int, tmp_path: Path
) -> None:
    async def scene() -> None:
        settings = {"queue_size": Size("64KiB"), "disk": {"size": Allowance("1MiB")}}
        options = {"backoff_s": (0.05, 0.05)}
        async with forwarding(closed_port, tmp_path / "q", options, **settings) as ledger:
            for n in range(200):
                await ledger.offer(spans(str(n), padding=1000))
            for path in (tmp_path / "q").glob("*.traces"):
                path.unlink()
            sink = sink_type()
            sink.port = closed_port
            async with sink:
                await ledger.until(lambda: not ledger.forwarder.pending_items(Signal.TRACES))
        assert ledger.dropped == {"corrupt": 200 - len(taken(sink))}
        assert 0 < len(taken(sink)) < 100

    asyncio.run(scene())


def test_a_signal_that_is_not_forwarded_any_more_is_told(
    sink_type: Any, closed_port: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        async with forwarding(closed_port, tmp_path / "q", {"drain_s": 0.1}) as ledger:
            await ledger.offer(spans("a"), 3, Signal.LOGS)
        async with sink_type() as sink:
            settings = Destination(endpoint=f"http://127.0.0.1:{sink.port}", signals=(OtlpSignal.TRACES,))
            async with (
                Collector(settings) as collector,
                Forwarder(collector, Telemetry(), settings, folder=tmp_path / "q") as forwarder,
            ):
                assert forwarder.offer(Signal.LOGS, b"", 1) is None
            assert sink.calls == []

    asyncio.run(scene())
    assert "3 items of logs wait on disk, which are not forwarded any more" in caplog.text


def test_it_tells_when_the_disk_does_not_keep_up(sink_type: Any, tmp_path: Path) -> None:
    async def scene() -> None:
        sizes: dict[str, Any] = {"queue_size": Size("1MiB"), "batch_size": Size("64KiB")}
        async with sink_type() as sink, forwarding(sink.port, tmp_path / "q", **sizes) as ledger:
            assert ledger.forwarder.keeps_up(Signal.TRACES, 2**21)
            offers = [asyncio.create_task(ledger.offer(spans(str(n), padding=100_000))) for n in range(5)]
            await asyncio.sleep(0)
            assert ledger.forwarder.keeps_up(Signal.TRACES, 20_000)
            assert not ledger.forwarder.keeps_up(Signal.TRACES, 30_000)
            await asyncio.gather(*offers)
            assert ledger.forwarder.keeps_up(Signal.TRACES, 2**21)
            await ledger.until(lambda: len(taken(sink)) == 5)

    asyncio.run(scene())


@pytest.mark.parametrize("when_full", ["drop_oldest", "drop_newest"])
def test_signals_that_are_not_forwarded_any_more_give_way(
    sink_type: Any, closed_port: int, tmp_path: Path, when_full: str
) -> None:
    async def scene() -> None:
        disk = {"size": Allowance("64KiB"), "when_full": when_full}
        async with forwarding(closed_port, tmp_path / "q", {"drain_s": 0.1}, disk) as ledger:
            for _ in range(15):
                await ledger.offer(spans("a", padding=4000), 1, Signal.LOGS)
        assert ledger.dropped == {}
        async with sink_type() as sink:
            only = {"signals": (OtlpSignal.TRACES,)}
            async with forwarding(sink.port, tmp_path / "q", None, disk, **only) as ledger:
                for n in range(30):
                    await ledger.offer(spans(str(n), padding=4000))
                    await ledger.until(lambda wanted=n + 1: len(taken(sink)) == wanted)
                assert ledger.dropped == {}
            assert taken(sink) == [str(n) for n in range(30)]

    asyncio.run(scene())


def test_what_a_disk_would_not_note_it_is_told_again(
    sink_type: Any, closed_port: int, tmp_path: Path
) -> None:
    async def scene() -> None:
        disk = {"size": Allowance("64KiB")}
        async with forwarding(closed_port, tmp_path / "q", {"drain_s": 0.1}, disk) as ledger:
            for n in range(14):
                await ledger.offer(spans(str(n), padding=4000))
        async with sink_type() as sink, forwarding(sink.port, tmp_path / "q", None, disk) as ledger:
            with full_disk(10):
                await ledger.until(lambda: ledger.total("exported") == 14)
                await asyncio.sleep(0.05)
                ledger.forwarder.observe()
                assert gauge(ledger, "tidegauge.export.disk.failing") == 1
            await ledger.offer(spans("14"))
            await ledger.until(lambda: ledger.total("exported") == 15)
            ledger.forwarder.observe()
            assert gauge(ledger, "tidegauge.export.disk.failing") == 0
            await ledger.until(lambda: len(list((tmp_path / "q").glob("*.traces"))) == 1)

    asyncio.run(scene())


def test_a_folder_that_cannot_be_used_is_told(closed_port: int, tmp_path: Path) -> None:
    (tmp_path / "q").write_text("a file")

    async def scene() -> None:
        async with forwarding(closed_port, tmp_path / "q"):
            raise AssertionError

    with pytest.raises(ConfigError, match=r"state_dir: the disk queue .* cannot be used"):
        asyncio.run(scene())


def test_syncs_happen_and_are_not_needed(sink_type: Any, closed_port: int, tmp_path: Path) -> None:
    async def scene() -> None:
        for name, disk in (
            ("synced", {"sync_interval": Duration("10ms")}),
            ("unsynced", {"sync": "never"}),
        ):
            async with forwarding(closed_port, tmp_path / name, {"drain_s": 0.1}, disk) as ledger:
                await ledger.offer(spans("a"))
                await asyncio.sleep(0.05)
            async with sink_type() as sink, forwarding(sink.port, tmp_path / name, None, disk) as ledger:
                await ledger.until(lambda sink=sink: taken(sink) == ["a"])

    asyncio.run(scene())


def test_a_sync_that_fails_is_told(
    closed_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tidegauge")

    def failing(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    async def scene() -> None:
        disk = {"sync_interval": Duration("10ms")}
        async with forwarding(closed_port, tmp_path / "q", {"drain_s": 0.3}, disk) as ledger:
            with monkeypatch.context() as patch:
                patch.setattr(os, "fdatasync", failing)
                await ledger.offer(spans("a"))
                await ledger.until(lambda: "fails to sync" in caplog.text)
            await ledger.offer(spans("b"))
            await ledger.until(lambda: "can sync again" in caplog.text)

    asyncio.run(scene())


def gauge(ledger: Ledger, name: str) -> float:
    (metric,) = (one for one in ledger.telemetry.collect() if one.name == name)
    (point,) = metric.points
    return point.value


@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_the_books_balance(sink_type: Any, failure: Any, tmp_path: Path, seed: int) -> None:
    """A collector that fails at random, restarts at random: all that is not dropped arrives."""
    source = random.Random(seed)
    offered, dropped = 0, 0
    arrived: set[str] = set()

    def judge(call: Any) -> Any:
        if any(name.endswith("bad") for name in call.names):
            return failure(grpc.StatusCode.INVALID_ARGUMENT)
        return failure(grpc.StatusCode.UNAVAILABLE) if source.random() < 0.3 else None

    async def scene(last: bool) -> None:
        nonlocal offered, dropped
        disk = {"size": Allowance("256KiB")}
        options = {"drain_s": 10.0 if last else 0.3, "backoff_s": (0.001, 0.01)}
        settings = {
            "in_flight": source.randint(1, 4),
            "queue_size": Size("64KiB"),
            "batch_size": Size(f"{source.randint(1, 8)}KiB"),
        }
        async with sink_type() as sink:
            sink.judge = judge
            async with forwarding(sink.port, tmp_path / "q", options, disk, **settings) as ledger:
                for _ in range(source.randint(20, 120)):
                    name = f"{offered} {source.choice(['good'] * 20 + ['bad'])}"
                    offered += 1
                    raw = spans(name, padding=source.randint(0, 3000))
                    if source.random() < 0.7:
                        await ledger.offer(raw)
                    else:
                        ledger.forwarder.offer(Signal.TRACES, raw, 1)
                        ledger.offered[Signal.TRACES] += 1
                if last:
                    await ledger.until(lambda: not ledger.forwarder.pending_items(Signal.TRACES))
            dropped += sum(ledger.dropped.values())
            assert ledger.dropped.keys() <= {"rejected", "queue_full"}
            arrived.update(taken(sink))

    for turn in range(4):
        asyncio.run(scene(turn == 3))
    # What arrived while its answer was lost, at a stop, is sent again, and may be dropped then.
    assert len(arrived) <= offered <= len(arrived) + dropped
    assert not any(name.endswith("bad") for name in arrived)


def test_what_cannot_be_dropped_leaves_no_room(sink_type: Any, tmp_path: Path) -> None:
    async def scene() -> None:
        disk = {"size": Allowance("64KiB")}
        async with sink_type() as sink, forwarding(sink.port, tmp_path / "q", {}, disk) as ledger:
            sink.gate.clear()
            await ledger.offer(spans("under way", padding=40_000))
            await sink.until(lambda: len(sink.calls) == 1)
            await ledger.offer(spans("new", padding=40_000))
            assert ledger.dropped == {"queue_full": 1}
            sink.gate.set()
        assert taken(sink) == ["under way"]

    asyncio.run(scene())


def test_a_reading_that_fails_for_now_is_repeated(
    sink_type: Any, closed_port: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        async with forwarding(closed_port, tmp_path / "q", {"drain_s": 0.3}) as ledger:
            await ledger.offer(spans("a"))
        async with sink_type() as sink, forwarding(sink.port, tmp_path / "q") as ledger:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                await ledger.until(lambda: "Too many open files" in caplog.text)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await ledger.until(lambda: taken(sink) == ["a"])
        assert ledger.dropped == {}

    asyncio.run(scene())


@pytest.mark.parametrize("held", ["before", "after"])
def test_a_segment_may_be_dropped_while_it_is_read(
    sink_type: Any, closed_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: str
) -> None:
    started, gate = threading.Event(), threading.Event()

    def read(*arguments: Any, really: Any = Journal.read) -> Any:
        chunk = really(*arguments) if held == "after" else None
        started.set()
        gate.wait(20)
        return chunk or really(*arguments)

    async def scene() -> None:
        disk = {"size": Allowance("64KiB")}
        async with forwarding(closed_port, tmp_path / "q", {"drain_s": 0.3}, disk) as ledger:
            for n in range(50):
                await ledger.offer(spans(str(n), padding=1000))
        monkeypatch.setattr(Journal, "read", read)
        async with sink_type() as sink, forwarding(sink.port, tmp_path / "q", {}, disk) as ledger:
            await ledger.until(started.is_set)
            for n in range(50, 70):
                await ledger.offer(spans(str(n), padding=1000))
            assert ledger.dropped["queue_full"] > 5
            gate.set()
            await ledger.until(lambda: not ledger.forwarder.pending_items(Signal.TRACES))
        assert len(set(taken(sink))) == len(taken(sink)) == 70 - ledger.dropped["queue_full"]
        assert ledger.dropped.keys() == {"queue_full"}

    asyncio.run(scene())


def test_a_record_inside_a_damaged_request_is_none(sink_type: Any, closed_port: int, tmp_path: Path) -> None:
    """Whoever forges records inside requests gains nothing when the bytes around them are damaged."""

    async def scene() -> None:
        async with forwarding(closed_port, tmp_path / "q", {"drain_s": 0.3}) as ledger:
            for text in ("a", "b"):
                forged = spans("forged")
                forged = encode(forged, 7, 2**60, 2**30) + forged
                await ledger.offer(spans(text) + b"\x12" + bytes([len(forged)]) + forged)
        (segment,) = (tmp_path / "q").glob("*.traces")
        segment.write_bytes(b"\xff" * 5 + segment.read_bytes()[5:])
        async with sink_type() as sink, forwarding(sink.port, tmp_path / "q") as ledger:
            await ledger.until(lambda: not ledger.forwarder.pending_items(Signal.TRACES))
        assert (taken(sink), ledger.dropped) == (["b"], {"corrupt": 1})

    asyncio.run(scene())


def test_a_disk_queue_that_is_broken_itself_is_told_and_loses_nothing(
    sink_type: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a bug")

    async def scene() -> None:
        async with sink_type() as sink, forwarding(sink.port, tmp_path / "q") as ledger:
            with monkeypatch.context() as patch:
                patch.setattr(Journal, "append", broken)
                await ledger.offer(spans("a"))
                await ledger.until(lambda: taken(sink) == ["a"])
            await ledger.offer(spans("b"))
        assert taken(sink) == ["a", "b"]
        assert ledger.total("export.unsaved") == 1

    asyncio.run(scene())
    assert "a bug" in caplog.text


def test_many_large_requests_at_once(closed_port: int, tmp_path: Path) -> None:
    async def scene() -> None:
        async with forwarding(closed_port, tmp_path / "q", {"drain_s": 0.3}) as ledger:
            async with asyncio.TaskGroup() as group:
                for n in range(12):  # more than one group may hold
                    group.create_task(ledger.offer(spans(str(n), padding=2**20)))
            assert ledger.forwarder.pending_items(Signal.TRACES) == 12
        assert sum(path.stat().st_size for path in (tmp_path / "q").glob("*.traces")) > 12 * 2**20

    asyncio.run(scene())
