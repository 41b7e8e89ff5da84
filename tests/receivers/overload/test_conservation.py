"""Every item accounted for, at every instant: all kinds of clients, a stuck processor, a sudden end."""

from __future__ import annotations

import asyncio
import contextlib
import io
import random
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import grpc
import pyarrow as pa
import pytest

from tidegauge import config
from tidegauge.receivers.flight import FlightReceiver
from tidegauge.receivers.grpc_server import GrpcServer
from tidegauge.receivers.http import HttpReceiver
from tidegauge.units import Duration, Size

TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
DO_PUT = "/arrow.flight.protocol.FlightService/DoPut"

Client = Callable[[], Coroutine[Any, Any, None]]


async def repeat(client: Client, until: asyncio.Event) -> int:
    """Run a client over and over; those that the server sends away or leaves come back."""
    rounds = 0
    while not until.is_set():
        try:
            with contextlib.suppress(
                grpc.aio.AioRpcError, aiohttp.ClientError, ConnectionError, TimeoutError
            ):
                await client()
        except asyncio.CancelledError:
            # gRPC says so as well of a call that has met its own deadline.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
        rounds += 1
        await asyncio.sleep(0.001)
    return rounds


@pytest.mark.parametrize("seed", range(3))
def test_the_counts_add_up_at_every_instant(
    grpc_agent: Any, http2: Any, trace_request: Any, arrow: Any, identity_holds: Any, seed: int
) -> None:
    chance = random.Random(seed)
    small, large = trace_request(40), trace_request(20_000)
    batches = arrow.stream([arrow.numbers(500)] * 5)
    texts = arrow.stream([pa.record_batch({"t": pa.array(["x" * 40] * 40_000)})] * 2)

    async def main() -> None:
        limits = {"max_message_size": "2MiB", "max_receiving": "16MiB", "timeout": "200ms"}
        until = asyncio.Event()
        async with AsyncExitStack() as clients:
            async with grpc_agent(12 * 2**20, max_connections=60, **limits) as running:
                working = await load(running, clients, until)
                await asyncio.sleep(2.5)
                identity_holds(running)
            # All servers and the queue have ended in the midst of it.
            identity_holds(running)
            until.set()
            assert min(await asyncio.gather(*working)) > 0
            identity_holds(running)
        await asyncio.sleep(0.1)  # connections of the last moment see that their clients are gone
        assert running.telemetry.total("received") > 10_000
        reasons = {"queue_full", "undecodable", "too_large", "abandoned", "slow"}
        missing = [reason for reason in reasons if not running.telemetry.total("rejected", reason=reason)]
        assert not missing

    async def load(running: Any, clients: AsyncExitStack, until: asyncio.Event) -> list[asyncio.Task[int]]:
        """Start the other servers, which end with the first one, and the clients of all."""
        settings = config.HttpReceiver(
            endpoint="127.0.0.1:0", max_receiving=Size("3MiB"), timeout=Duration("200ms")
        )
        flight = FlightReceiver(running.pipeline, running.telemetry, config.RecordLimits())
        records = config.GrpcReceiver(endpoint="127.0.0.1:0")
        http = await running.servers.enter_async_context(HttpReceiver(settings, running.otlp, grace_s=0.1))
        streams = await running.servers.enter_async_context(
            GrpcServer(records, running.otlp, (flight.service(),), grace_s=0.1)
        )
        session = await clients.enter_async_context(aiohttp.ClientSession())
        channel = await clients.enter_async_context(grpc.aio.insecure_channel(running.address))
        other = await clients.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{streams.port}"))
        export = channel.unary_unary(TRACES)
        url = f"http://127.0.0.1:{http.port}/v1/traces"

        async def sends_small() -> None:
            await export(small)

        async def sends_large_and_may_give_up() -> None:
            await export(large, timeout=chance.choice([0.002, 0.01, 0.05, 5]))

        async def sends_nonsense() -> None:
            await export(chance.randbytes(2000))

        async def sends_too_much() -> None:
            await export(bytes(2**21 + 1 + chance.choice([0, 2**20])))

        async def drops_off() -> None:
            client = await http2.connect(running.address)
            try:
                client.call(TRACES)
                start = small[: chance.randrange(len(small))]
                await client.send(b"\0" + len(small).to_bytes(4, "big") + start)
                await asyncio.sleep(chance.choice([0, 0.05, 0.4]))
            finally:
                await client.close()

        async def posts() -> None:
            body = chance.choice([small, large, b"nonsense"])
            timeout = aiohttp.ClientTimeout(chance.choice([0.01, 5]))
            headers = {"Content-Type": "application/x-protobuf"}
            async with session.post(url, data=io.BytesIO(body), headers=headers, timeout=timeout) as reply:
                await reply.read()

        async def puts() -> None:
            messages = chance.choice([batches, texts])
            call = other.stream_stream(DO_PUT)(iter(messages), timeout=chance.choice([0.01, 5]))
            # gRPC's client raises CancelledError, too, where the server ends in the midst of a stream.
            with contextlib.suppress(asyncio.CancelledError):
                async for _ in call:
                    pass

        async def gets_stuck() -> None:
            running.gate.open.clear()
            await asyncio.sleep(0.15)
            running.gate.open.set()
            await asyncio.sleep(0.15)

        async def audits() -> None:
            identity_holds(running)

        kinds: list[Client] = [sends_small] * 3 + [sends_large_and_may_give_up] * 4 + [drops_off] * 3
        kinds += [sends_nonsense, sends_too_much, posts, posts, puts, puts, gets_stuck, audits]
        return [asyncio.create_task(repeat(kind, until)) for kind in kinds]

    asyncio.run(main())
