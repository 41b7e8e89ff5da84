"""The queue under overload, failure and shutdown: bounded, never blocking, and exact in its counts."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass

import pytest

from tidegauge.batch import Signal
from tidegauge.pipeline import Pipeline
from tidegauge.telemetry import Telemetry


@dataclass(frozen=True)
class Sized:
    """A batch that is nothing but its size."""

    items: int
    nbytes: int
    signal: Signal
    receiver: str = "otlp_grpc"


def batch(items=10, nbytes=100, signal=Signal.LOGS):
    return Sized(items, nbytes, signal)


@dataclass
class Slow:
    """A processor that waits to be let on."""

    gate: threading.Event
    folded: int = 0

    def update(self, *batches):
        self.gate.wait(20)
        self.folded += sum(batch.items for batch in batches)
        return {}

    def collect(self, now_ns):
        return ()


class Picky:
    """A processor that leaves out one item of each batch and fails on batches of 13."""

    def update(self, *batches):
        if any(batch.items == 13 for batch in batches):
            raise RuntimeError("thirteen")
        return {"late": len(batches)}

    def collect(self, now_ns):
        raise RuntimeError("never")


class Hops:
    """A processor that notes how many batches each call brought."""

    def __init__(self):
        self.sizes = []

    def update(self, *batches):
        self.sizes.append(len(batches))
        return {}

    def collect(self, now_ns):
        return ()


def identity_holds(telemetry, pipeline):
    pipeline.observe()
    pending = sum(
        point.value for m in telemetry.collect() if m.name == "tidegauge.pending" for point in m.points
    )
    accepted = telemetry.total("accepted")
    return accepted == telemetry.total("folded") + telemetry.total("dropped") + pending


def test_a_full_queue_refuses_at_once_and_every_item_is_accounted_for():
    async def main():
        telemetry, slow = Telemetry(), Slow(threading.Event())
        async with Pipeline([slow], telemetry, queue_bytes=1_000) as pipeline:
            taken = refused = 0
            longest = 0.0
            for step in range(5_000):
                began = time.perf_counter()
                if pipeline.offer(batch()):
                    taken += 10
                else:
                    refused += 10
                longest = max(longest, time.perf_counter() - began)
                assert pipeline.queue_bytes <= 1_000
                if step % 100 == 0:
                    assert identity_holds(telemetry, pipeline)
                    await asyncio.sleep(0)
            # One batch is enough to show that nothing waited for the consumer, which waits 20 s.
            assert longest < 10
            assert (taken, refused) == (100, 49_900)
            assert telemetry.total("accepted") == 100
            slow.gate.set()
            while pipeline.queue_bytes:
                await asyncio.sleep(0.01)
            assert identity_holds(telemetry, pipeline)
            assert pipeline.offer(batch())
        assert slow.folded == 110
        assert telemetry.total("folded") == 110
        assert identity_holds(telemetry, pipeline)

    asyncio.run(main())


def test_what_a_processor_leaves_out_or_fails_on_is_dropped_with_its_reason():
    async def main():
        telemetry = Telemetry()
        async with Pipeline([Picky()], telemetry, queue_bytes=10_000) as pipeline:
            assert pipeline.offer(batch(10))
            assert pipeline.offer(batch(13, signal=Signal.TRACES))
            assert pipeline.offer(batch(5, signal=Signal.METRICS))
        assert telemetry.total("dropped", reason="late") == 2
        assert telemetry.total("dropped", reason="error") == 13
        assert telemetry.total("folded", signal="logs") == 9
        assert telemetry.total("folded", signal="metrics") == 4
        assert identity_holds(telemetry, pipeline)
        assert await pipeline.collect(0) == ()

    asyncio.run(main())


def test_a_consumer_that_hangs_is_seen_and_does_not_hold_up_the_end():
    async def main():
        telemetry, stuck = Telemetry(), Slow(threading.Event())
        async with Pipeline([stuck], telemetry, queue_bytes=10_000, drain_s=0.2) as pipeline:
            assert pipeline.stalled_s == 0
            pipeline.offer(batch())
            await asyncio.sleep(0.05)
            pipeline.offer(batch())
            await asyncio.sleep(0.25)
            assert pipeline.stalled_s > 0.2
        assert telemetry.total("dropped", reason="shutdown") == 20
        assert identity_holds(telemetry, pipeline)
        assert await pipeline.collect(0) == ()
        assert await pipeline.ask(lambda: "something") is None
        stuck.gate.set()

    asyncio.run(main())


def test_what_is_asked_is_asked_between_batches_and_here_after_the_end():
    async def main():
        slow = Slow(threading.Event())
        async with Pipeline([slow], Telemetry(), queue_bytes=10_000, linger_s=0) as pipeline:
            pipeline.offer(batch())
            await asyncio.sleep(0.01)
            asked = asyncio.create_task(pipeline.ask(lambda: (slow.folded, threading.current_thread().name)))
            await asyncio.sleep(0.01)
            assert not asked.done()
            slow.gate.set()
            assert (await asked)[0] == 10
            assert (await asked)[1].startswith("fold")
            pipeline.offer(batch())
        assert await pipeline.ask(lambda: (slow.folded, threading.current_thread().name)) == (
            20,
            "MainThread",
        )

    asyncio.run(main())


def test_batches_that_come_soon_after_each_other_share_a_hop():
    async def main():
        hops = Hops()
        async with Pipeline([hops], Telemetry(), queue_bytes=10_000, linger_s=0.2) as pipeline:
            for _ in range(2):
                for _ in range(5):
                    assert pipeline.offer(batch())
                    await asyncio.sleep(0)
                assert pipeline.queue_bytes == 500
                while pipeline.queue_bytes:
                    await asyncio.sleep(0.001)
        assert hops.sizes == [5, 5]

    asyncio.run(main())


def test_what_fills_a_hop_and_what_is_left_at_the_end_wait_for_nothing():
    async def main():
        hops = Hops()
        async with Pipeline([hops], Telemetry(), queue_bytes=1_000, linger_s=3_600) as pipeline:
            for _ in range(3):
                assert pipeline.offer(batch())
            while pipeline.queue_bytes:
                await asyncio.sleep(0.001)
            assert pipeline.offer(batch())
            await asyncio.sleep(0.01)
            assert pipeline.queue_bytes == 100
        assert hops.sizes == [3, 1]

    asyncio.run(main())


def test_a_closed_pipeline_takes_nothing():
    async def main():
        async with Pipeline([], Telemetry(), queue_bytes=1_000) as pipeline:
            assert pipeline.alive
        assert not pipeline.offer(batch())
        assert not pipeline.alive

    asyncio.run(main())


@pytest.mark.parametrize(("nbytes", "fits"), [(1_000, True), (1_001, False)])
def test_what_could_never_fit_is_told_apart(nbytes, fits):
    async def main():
        async with Pipeline([], Telemetry(), queue_bytes=1_000) as pipeline:
            assert pipeline.fits(nbytes) is fits

    asyncio.run(main())
