"""The forwarder against a real collector: nothing lost unseen, whatever the collector does."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tidegauge.batch import Signal
from tidegauge.config import OtlpExporter, OtlpSignal
from tidegauge.exporters.channel import Collector
from tidegauge.exporters.forward import Forwarder
from tidegauge.exporters.lane import OVERHEAD
from tidegauge.telemetry import Telemetry
from tidegauge.units import Duration, Size

SIGNALS = (Signal.TRACES, Signal.METRICS, Signal.LOGS)
REASONS = ("queue_full", "rejected", "expired", "shutdown")
BAD = "bad"


def spans(*names: str, padding: int = 0) -> bytes:
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add(schema_url="x" * padding)
    for name in names:
        scope.spans.add(name=name)
    return request.SerializeToString()


def request(signal: Signal, name: str) -> bytes:
    if signal is Signal.TRACES:
        return spans(name)
    message: Any
    if signal is Signal.METRICS:
        message = ExportMetricsServiceRequest()
        message.resource_metrics.add().scope_metrics.add().metrics.add(name=name)
    else:
        message = ExportLogsServiceRequest()
        message.resource_logs.add().scope_logs.add().log_records.add(event_name=name)
    return bytes(message.SerializeToString())


class Ledger:
    """A forwarder whose books are checked at every step."""

    def __init__(self, collector: Collector, settings: OtlpExporter, **options: Any) -> None:
        self.telemetry = Telemetry()
        options = {"linger_s": 0.0, "backoff_s": (0.02, 0.05), "drain_s": 5.0} | options
        self.forwarder = Forwarder(collector, self.telemetry, settings, **options)
        self.offered: Counter[Signal] = Counter()

    def offer(self, signal: Signal, raw: bytes, items: int = 1) -> None:
        self.offered[signal] += items
        self.forwarder.offer(signal, raw, items)
        self.check()

    def check(self) -> None:
        for signal in SIGNALS:
            known = self.exported(signal) + sum(self.dropped(signal).values())
            assert self.offered[signal] == known + self.forwarder.pending_items(signal)

    def exported(self, signal: Signal) -> int:
        return self.telemetry.total("exported", exporter="forwarder", signal=signal)

    def dropped(self, signal: Signal = Signal.TRACES) -> dict[str, int]:
        total = self.telemetry.total
        counts = {
            reason: total("export.dropped", exporter="forwarder", signal=signal, reason=reason)
            for reason in REASONS
        }
        return {reason: items for reason, items in counts.items() if items}

    @property
    def retries(self) -> int:
        return self.telemetry.total("export.retries", exporter="forwarder")


def settings_for(port: int, **settings: Any) -> OtlpExporter:
    # One call at a time where a test asks for no more: gRPC delivers them in any order.
    return OtlpExporter(endpoint=f"http://127.0.0.1:{port}", **({"in_flight": 1} | settings))


@asynccontextmanager
async def forwarding(
    port: int, options: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Ledger]:
    """A running forwarder, watched all the while, whose books must balance with nothing left after it."""
    given = settings_for(port, **settings)
    async with Collector(given) as collector:
        ledger = Ledger(collector, given, **(options or {}))
        watch = asyncio.create_task(watching(ledger))
        async with ledger.forwarder:
            yield ledger
        watch.cancel()
        await asyncio.wait({watch})
        assert watch.cancelled()  # else a check failed
        ledger.check()
        assert ledger.forwarder.pending_bytes == 0
        assert not any(ledger.forwarder.pending_items(signal) for signal in SIGNALS)


async def watching(ledger: Ledger) -> None:
    while True:
        ledger.check()
        await asyncio.sleep(0)  # every turn of the event loop


def taken(sink: Any, signal: Signal = Signal.TRACES) -> list[str]:
    return [name for call in sink.taken if call.signal is signal for name in call.names]


def test_all_signals_arrive_in_order_and_in_batches(sink_type: Any) -> None:
    async def scene() -> None:
        async with sink_type() as sink, forwarding(sink.port) as ledger:
            sink.gate.clear()
            for n in range(100):
                for signal in SIGNALS:
                    ledger.offer(signal, request(signal, str(n)))
                if n == 50:
                    await sink.until(lambda: len(sink.calls) == 3)
            sink.gate.set()
        for signal in SIGNALS:
            assert taken(sink, signal) == [str(n) for n in range(100)]
            assert ledger.exported(signal) == 100
            # What gathered during the first call went out in the second, as one request.
            assert [len(call.names) for call in sink.taken if call.signal is signal] == [51, 49]

    asyncio.run(scene())


def test_a_batch_is_the_sum_of_its_parts(sink_type: Any) -> None:
    parts = [spans("a", "b", padding=300), spans("c"), b"", spans("d", padding=5)]

    async def scene() -> None:
        async with sink_type() as sink, forwarding(sink.port) as ledger:
            for raw, items in zip(parts, (2, 1, 0, 1), strict=True):
                ledger.offer(Signal.TRACES, raw, items)
        (call,) = sink.taken
        whole = ExportTraceServiceRequest()
        for raw in parts:
            whole.MergeFromString(raw)
        assert call.request == whole
        assert ledger.exported(Signal.TRACES) == 4

    asyncio.run(scene())


def test_a_batch_that_is_never_done_in_time_is_sent_in_halves(sink_type: Any, failure: Any) -> None:
    """Whole it would hold up its signal for `max_elapsed`, which is a day where there is a disk queue."""

    async def scene() -> None:
        late = failure(grpc.StatusCode.DEADLINE_EXCEEDED)
        async with sink_type() as sink, forwarding(sink.port) as ledger:
            sink.judge = lambda call: late if len(call.names) > 3 else None
            for n in range(20):
                ledger.offer(Signal.TRACES, spans(str(n)))
            await sink.until(lambda: len(taken(sink, Signal.TRACES)) == 20)
        assert taken(sink, Signal.TRACES) == [str(n) for n in range(20)]
        assert ledger.exported(Signal.TRACES) == 20

    asyncio.run(scene())


def test_a_batch_has_a_size(sink_type: Any) -> None:
    async def scene() -> None:
        async with sink_type() as sink, forwarding(sink.port, batch_size=Size("10kB")) as ledger:
            for n in range(12):
                ledger.offer(Signal.TRACES, spans(str(n), padding=3000))
            ledger.offer(Signal.TRACES, spans("large", padding=50_000))  # goes alone
        assert [len(call.names) for call in sink.taken] == [3, 3, 3, 3, 1]

    asyncio.run(scene())


def test_lingering_gathers_what_comes_one_by_one(sink_type: Any) -> None:
    async def scene() -> None:
        async with sink_type() as sink, forwarding(sink.port, {"linger_s": 60.0}) as ledger:
            for n in range(5):
                ledger.offer(Signal.TRACES, spans(str(n)))
                await asyncio.sleep(0.01)
            assert not sink.calls
        assert [call.names for call in sink.taken] == [["0", "1", "2", "3", "4"]]

    asyncio.run(scene())


def test_unavailable_then_well(sink_type: Any, failure: Any) -> None:
    async def scene() -> None:
        async with sink_type() as sink, forwarding(sink.port) as ledger:
            sink.failures[Signal.TRACES] = [failure(grpc.StatusCode.UNAVAILABLE)] * 3
            ledger.offer(Signal.TRACES, spans("a"))
            await sink.until(lambda: bool(sink.taken))
        assert taken(sink) == ["a"]
        assert (len(sink.calls), ledger.retries, ledger.dropped()) == (4, 3, {})

    asyncio.run(scene())


def test_retry_info_is_kept(sink_type: Any, failure: Any) -> None:
    async def scene() -> None:
        async with sink_type() as sink, forwarding(sink.port) as ledger:
            sink.failures[Signal.TRACES] = [failure(grpc.StatusCode.RESOURCE_EXHAUSTED, 0.5)]
            ledger.offer(Signal.TRACES, spans("a"))
            await sink.until(lambda: bool(sink.taken))
        assert sink.calls[1].time_s - sink.calls[0].time_s >= 0.5

    asyncio.run(scene())


def test_resource_exhausted_without_retry_info_is_for_good(sink_type: Any, failure: Any) -> None:
    async def scene() -> None:
        async with sink_type() as sink, forwarding(sink.port) as ledger:
            sink.failures[Signal.TRACES] = [failure(grpc.StatusCode.RESOURCE_EXHAUSTED)]
            ledger.offer(Signal.TRACES, spans("a"))
        assert (len(sink.calls), ledger.dropped()) == (1, {"rejected": 1})

    asyncio.run(scene())


def test_only_what_the_collector_rejects_is_dropped(sink_type: Any, failure: Any) -> None:
    async def scene() -> None:
        async with sink_type() as sink, forwarding(sink.port) as ledger:
            sink.judge = lambda call: failure(grpc.StatusCode.INVALID_ARGUMENT) if BAD in call.names else None
            for n in range(40):
                ledger.offer(Signal.TRACES, spans(BAD if n in (7, 8, 30) else str(n)))
        assert taken(sink) == [str(n) for n in range(40) if n not in (7, 8, 30)]
        assert (ledger.exported(Signal.TRACES), ledger.dropped()) == (37, {"rejected": 3})
        assert len(sink.calls) < 40

    asyncio.run(scene())


def test_a_refusal_of_the_sender_drops_the_batch_at_once(sink_type: Any, failure: Any) -> None:
    async def scene() -> None:
        async with sink_type() as sink, forwarding(sink.port) as ledger:
            sink.judge = lambda _: failure(grpc.StatusCode.UNAUTHENTICATED)
            for n in range(40):
                ledger.offer(Signal.TRACES, spans(str(n)))
        assert (len(sink.calls), ledger.dropped()) == (1, {"rejected": 40})

    asyncio.run(scene())


def test_partial_success(sink_type: Any) -> None:
    async def scene() -> None:
        async with sink_type() as sink, forwarding(sink.port) as ledger:
            sink.partial = (2, "two are odd")
            ledger.offer(Signal.TRACES, spans("a", "b", "c"), 3)
        assert len(sink.calls) == 1
        assert (ledger.exported(Signal.TRACES), ledger.dropped()) == (1, {"rejected": 2})

    asyncio.run(scene())


def test_a_collector_that_rejects_more_than_it_got(sink_type: Any) -> None:
    async def scene() -> None:
        async with sink_type() as sink, forwarding(sink.port) as ledger:
            sink.partial = (1000, "")
            ledger.offer(Signal.TRACES, spans("a"))
        assert (ledger.exported(Signal.TRACES), ledger.dropped()) == (0, {"rejected": 1})

    asyncio.run(scene())


def test_one_signal_does_not_block_another(sink_type: Any, failure: Any) -> None:
    async def scene() -> None:
        async with (
            sink_type() as sink,
            forwarding(sink.port, {"backoff_s": (60.0, 60.0), "drain_s": 0.1}) as ledger,
        ):
            sink.judge = lambda call: (
                failure(grpc.StatusCode.UNAVAILABLE) if call.signal is Signal.TRACES else None
            )
            for signal in SIGNALS:
                ledger.offer(signal, request(signal, "a"))
            await sink.until(lambda: len(sink.taken) == 2)
            ledger.offer(Signal.LOGS, request(Signal.LOGS, "b"))
            await sink.until(lambda: len(sink.taken) == 3)
            assert ledger.forwarder.pending_items(Signal.TRACES) == 1
        assert ledger.dropped() == {"shutdown": 1}

    asyncio.run(scene())


def test_an_outage_drops_the_oldest_and_keeps_to_the_limit(sink_type: Any, closed_port: int) -> None:
    raw = spans("00", padding=1000)
    room = 20 * (len(raw) + OVERHEAD)

    async def scene() -> None:
        async with forwarding(closed_port, queue_size=Size(f"{room}B")) as ledger:
            for n in range(50):
                ledger.offer(Signal.TRACES, spans(f"{n:02}", padding=1000))
                ledger.offer(Signal.LOGS, request(Signal.LOGS, f"{n}"))
                assert ledger.forwarder.pending_bytes <= room
                await asyncio.sleep(0.002)
            waiting = ledger.forwarder.pending_items(Signal.TRACES)
            assert 0 < waiting < 20
            assert ledger.dropped() == {"queue_full": 50 - waiting}
            sink = sink_type()
            sink.port = closed_port
            async with sink:
                await sink.until(lambda: len(taken(sink)) + len(taken(sink, Signal.LOGS)) > waiting)
                await sink.until(lambda: not ledger.forwarder.pending_bytes)
                # The newest came through, but for what a failing call carried: a quarter of the queue.
                traces, logs = (
                    [int(n) for n in taken(sink, signal)] for signal in (Signal.TRACES, Signal.LOGS)
                )
                assert len(traces) == waiting
                assert traces == sorted(set(traces))
                assert traces[6:] == list(range(50 - waiting + 6, 50))
                assert logs == sorted(set(logs))
                assert logs[-1] == 49

    asyncio.run(scene())


def test_what_a_call_carries_is_not_dropped(sink_type: Any) -> None:
    raw = spans("x", padding=1000)

    async def scene() -> None:
        async with sink_type() as sink:
            sink.gate.clear()
            room = 8 * (len(raw) + OVERHEAD)
            async with forwarding(sink.port, queue_size=Size(f"{room}B")) as ledger:
                ledger.offer(Signal.TRACES, spans("0", padding=1000))
                await sink.until(lambda: len(sink.calls) == 1)
                for n in range(1, 10):
                    ledger.offer(Signal.TRACES, spans(str(n), padding=1000))
                assert ledger.dropped() == {"queue_full": 2}
                ledger.offer(Signal.TRACES, spans("huge", padding=100_000))
                assert ledger.dropped() == {"queue_full": 3}
                sink.gate.set()
            assert taken(sink) == ["0", "3", "4", "5", "6", "7", "8", "9"]

    asyncio.run(scene())


def test_a_lane_whose_every_entry_is_on_its_way_gives_none_up(sink_type: Any) -> None:
    large = spans("large", padding=6000)

    async def scene() -> None:
        async with sink_type() as sink, forwarding(sink.port, queue_size=Size("10kB")) as ledger:
            sink.gate.clear()
            ledger.offer(Signal.LOGS, request(Signal.LOGS, "first"))
            await sink.until(lambda: len(sink.calls) == 1)
            ledger.offer(Signal.TRACES, large)
            await sink.until(lambda: len(sink.calls) == 2)
            ledger.offer(Signal.TRACES, spans("small"))
            ledger.offer(Signal.TRACES, large)  # drops the small one, and still does not fit
            assert ledger.dropped() == {"queue_full": 2}
            assert ledger.dropped(Signal.LOGS) == {}
            sink.gate.set()
        assert (taken(sink), taken(sink, Signal.LOGS)) == (["large"], ["first"])

    asyncio.run(scene())


def test_what_was_tried_too_long_expires(sink_type: Any, failure: Any) -> None:
    async def scene() -> None:
        async with sink_type() as sink, forwarding(sink.port, max_elapsed=Duration("300ms")) as ledger:
            sink.judge = lambda _: failure(grpc.StatusCode.UNAVAILABLE)
            ledger.offer(Signal.TRACES, spans("a"))
            await sink.until(lambda: not ledger.forwarder.pending_bytes)
        assert ledger.dropped() == {"expired": 1}
        assert ledger.retries == len(sink.calls) > 1

    asyncio.run(scene())


def test_leaving_takes_a_bounded_time_and_counts_the_rest(sink_type: Any) -> None:
    async def scene() -> None:
        async with sink_type() as sink, forwarding(sink.port, {"drain_s": 0.2}) as ledger:
            sink.gate.clear()
            ledger.offer(Signal.TRACES, spans("a", "b"), 2)
            await sink.until(lambda: len(sink.calls) == 1)
            ledger.offer(Signal.TRACES, spans("c"))
        assert ledger.dropped() == {"shutdown": 3}
        ledger.offer(Signal.TRACES, spans("d"))  # a receiver that is late itself
        assert ledger.dropped() == {"shutdown": 4}

    asyncio.run(scene())


def test_leaving_tries_again_without_a_full_backoff(sink_type: Any, failure: Any) -> None:
    async def scene() -> None:
        async with sink_type() as sink, forwarding(sink.port, {"backoff_s": (600.0, 600.0)}) as ledger:
            sink.failures[Signal.TRACES] = [failure(grpc.StatusCode.UNAVAILABLE)] * 2
            ledger.offer(Signal.TRACES, spans("a"))
            await sink.until(lambda: len(sink.calls) == 1)
        assert taken(sink) == ["a"]

    asyncio.run(scene())


def test_several_calls_are_under_way(sink_type: Any) -> None:
    async def scene() -> None:
        async with sink_type() as sink, forwarding(sink.port, in_flight=3, batch_size=Size("1kB")) as ledger:
            sink.gate.clear()
            for n in range(10):
                ledger.offer(Signal.TRACES, spans(str(n), padding=600))
            await sink.until(lambda: len(sink.calls) == 3)
            await asyncio.sleep(0.05)
            assert sorted(call.names[0] for call in sink.calls) == ["0", "1", "2"]
            sink.gate.set()
        arrived = [int(name) for name in taken(sink)]
        assert sorted(arrived) == list(range(10))
        for place, number in enumerate(arrived):
            assert sum(other > number for other in arrived[:place]) <= 2

    asyncio.run(scene())


def test_few_overtake_a_call_that_fails_and_it_is_repeated_alone(sink_type: Any, failure: Any) -> None:
    async def scene() -> None:
        async with sink_type() as sink, forwarding(sink.port, in_flight=3, batch_size=Size("1kB")) as ledger:
            refusals = 5

            def judge(call: Any) -> Any:
                nonlocal refusals
                if call.names != ["0"] or not refusals:
                    return None
                refusals -= 1
                return failure(grpc.StatusCode.UNAVAILABLE)

            sink.judge = judge
            for n in range(10):
                ledger.offer(Signal.TRACES, spans(str(n), padding=600))
            await sink.until(lambda: len(sink.taken) == 10)
        arrived = [call.names[0] for call in sink.calls]
        assert sorted(arrived[:3]) == ["0", "1", "2"]
        assert arrived[3:8] == ["0"] * 5
        assert taken(sink)[:3] in (["1", "2", "0"], ["2", "1", "0"])
        assert sorted(taken(sink)) == [str(n) for n in range(10)]
        assert ledger.retries == 5

    asyncio.run(scene())


def test_an_outage_is_met_with_one_call_at_a_time(sink_type: Any, failure: Any) -> None:
    async def scene() -> None:
        async with sink_type() as sink, forwarding(sink.port, in_flight=4, batch_size=Size("1kB")) as ledger:
            sink.failures[Signal.TRACES] = [failure(grpc.StatusCode.UNAVAILABLE)] * 10
            for n in range(12):
                ledger.offer(Signal.TRACES, spans(str(n), padding=600))
            await sink.until(lambda: len(sink.taken) == 12)
        arrived = [call.names[0] for call in sink.calls]
        assert sorted(arrived[:4]) == ["0", "1", "2", "3"]
        assert arrived[4:11] == ["0"] * 7
        assert sorted(taken(sink)) == sorted(map(str, range(12)))

    asyncio.run(scene())


def test_calls_that_fail_together_are_waited_for_once(sink_type: Any, failure: Any) -> None:
    async def scene() -> None:
        options = {"backoff_s": (0.2, 60.0)}
        async with (
            sink_type() as sink,
            forwarding(sink.port, options, in_flight=8, batch_size=Size("1kB")) as ledger,
        ):
            sink.failures[Signal.TRACES] = [failure(grpc.StatusCode.UNAVAILABLE)] * 8
            for n in range(8):
                ledger.offer(Signal.TRACES, spans(str(n), padding=600))
            # Had each of them made the backoff longer, the next attempt would be seconds away.
            await sink.until(lambda: len(sink.calls) == 9)
            lane = ledger.forwarder._lanes[Signal.TRACES]
            assert lane.backoff.next_s() <= 0.2 * 1.5 * 1.5
            await sink.until(lambda: len(sink.taken) == 8)

    asyncio.run(scene())


def test_the_longest_wait_that_a_collector_asks_for_counts(sink_type: Any, failure: Any) -> None:
    async def scene() -> None:
        async with sink_type() as sink, forwarding(sink.port, in_flight=3, batch_size=Size("1kB")) as ledger:
            sink.failures[Signal.TRACES] = [
                failure(grpc.StatusCode.UNAVAILABLE, 0.1),
                failure(grpc.StatusCode.UNAVAILABLE, 0.6),
                failure(grpc.StatusCode.UNAVAILABLE),
            ]
            for n in range(3):
                ledger.offer(Signal.TRACES, spans(str(n), padding=600))
            await sink.until(lambda: len(sink.taken) == 3)
        assert sink.calls[3].time_s - sink.calls[2].time_s >= 0.55

    asyncio.run(scene())


def test_a_batch_that_is_halved_and_then_refused_for_now_loses_nothing(sink_type: Any, failure: Any) -> None:
    async def scene() -> None:
        async with sink_type() as sink, forwarding(sink.port) as ledger:
            sink.failures[Signal.TRACES] = [
                failure(grpc.StatusCode.INVALID_ARGUMENT),  # 0 to 7
                failure(grpc.StatusCode.INVALID_ARGUMENT),  # 0 to 3
                failure(grpc.StatusCode.UNAVAILABLE),  # 0 and 1
            ]
            for n in range(8):
                ledger.offer(Signal.TRACES, spans(str(n)))
            await sink.until(lambda: len(taken(sink)) == 8)
        assert taken(sink) == [str(n) for n in range(8)]
        assert [len(call.names) for call in sink.calls] == [8, 4, 2, 8]

    asyncio.run(scene())


def test_signals_that_are_not_asked_for_go_nowhere(sink_type: Any) -> None:
    async def scene() -> None:
        async with sink_type() as sink:
            settings = settings_for(sink.port, signals=(OtlpSignal.LOGS,))
            async with Collector(settings) as collector:
                ledger = Ledger(collector, settings)
                async with ledger.forwarder as forwarder:
                    forwarder.offer(Signal.TRACES, spans("a"), 1)
                    forwarder.offer(Signal.LOGS, request(Signal.LOGS, "b"), 1)
            assert [call.names for call in sink.taken] == [["b"]]
            assert ledger.telemetry.total("export.dropped") == 0

    asyncio.run(scene())


def test_a_channel_that_breaks_loses_nothing_unseen(sink_type: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        async with sink_type() as sink, forwarding(sink.port, {"drain_s": 0.2}) as ledger:
            await ledger.forwarder._collector.__aexit__(None, None, None)
            ledger.offer(Signal.TRACES, spans("a"))
            await asyncio.sleep(0.1)
            assert ledger.forwarder.pending_items(Signal.TRACES) == 1
        assert ledger.dropped() == {"shutdown": 1}
        assert ledger.retries > 0

    asyncio.run(scene())
    assert "forwarding traces failed" in caplog.text


def test_gauges() -> None:
    async def scene() -> None:
        settings = settings_for(1)
        ledger = Ledger(Collector(settings), settings)
        ledger.offer(Signal.LOGS, b"12345", 3)
        ledger.forwarder.observe()
        found = {
            (metric.name, dict(point.attributes).get("signal", "")): point.value
            for metric in ledger.telemetry.collect()
            for point in metric.points
        }
        assert found["tidegauge.export.pending", "logs"] == 3
        assert found["tidegauge.export.pending", "traces"] == 0
        assert found["tidegauge.export.queue.usage", ""] == 5 + OVERHEAD
        assert found["tidegauge.export.queue.limit", ""] == settings.queue_size

    asyncio.run(scene())
