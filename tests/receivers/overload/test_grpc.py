"""The gRPC port before clients that are slow, silent, too many, too large, or gone."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any

import grpc
import pyarrow as pa
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from pyarrow import flight

from tidegauge.batch import Signal

TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
DO_PUT = "/arrow.flight.protocol.FlightService/DoPut"
UNAVAILABLE, RESOURCE_EXHAUSTED = b"grpc-status\x0214", b"grpc-status\x018"


def prefix(nbytes: int) -> bytes:
    """What precedes a message on the wire, which says how long it is."""
    return b"\0" + struct.pack(">I", nbytes)


async def export(address: str, raw: bytes, **options: Any) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        assert await channel.unary_unary(TRACES)(raw, timeout=20, **options) == b""


async def refusal(address: str, raw: bytes, **options: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await export(address, raw, **options)
    return refused.value


def test_a_message_that_takes_too_long_is_refused_and_may_come_again(
    grpc_agent: Any, http2: Any, trace_request: Any
) -> None:
    async def main() -> None:
        async with grpc_agent(timeout="300ms") as running:
            stalled, dripping, silent = [await http2.connect(running.address) for _ in range(3)]
            for client in (stalled, dripping, silent):
                client.call(TRACES)
            await stalled.send(prefix(100_000) + bytes(50_000))
            await dripping.send(prefix(100_000))
            for _ in range(20):
                await dripping.send(b"x")
                await asyncio.sleep(0.025)
            for _ in range(5):
                await export(running.address, trace_request(2))
            for client in (stalled, dripping, silent):
                trailers = await client.end()
                assert UNAVAILABLE in trailers
                assert b"grpc-status-details-bin" in trailers
                assert b"google.rpc.retryinfo-bin" in trailers
                await client.close()
            assert running.rejected("slow") == 3
            assert running.totals(Signal.TRACES) == (13, 10, 3)

    asyncio.run(main())


@pytest.mark.parametrize("way", ["reset", "disconnect", "deadline", "half", "nothing", "gzip"])
def test_a_message_that_never_comes_whole_is_counted(
    grpc_agent: Any, http2: Any, trace_request: Any, eventually: Any, way: str
) -> None:
    async def main() -> None:
        async with grpc_agent() as running:
            client = await http2.connect(running.address)
            headers = {"deadline": [("grpc-timeout", "200m")], "gzip": [("grpc-encoding", "gzip")]}
            client.call(TRACES, *headers.get(way, ()))
            if way == "nothing":
                client.frame(0, 1, 1)
            elif way == "gzip":
                await client.send(b"\1" + prefix(3)[1:] + b"abc", end=True)
            else:
                await client.send(prefix(1000) + bytes(500), end=way == "half")
            await asyncio.sleep(0.1)
            if way == "reset":
                client.frame(3, 0, 1, struct.pack(">I", 8))
            elif way == "disconnect":
                await client.close()
            await eventually(lambda: running.rejected("abandoned") == 1)
            await export(running.address, trace_request(2))
            assert running.totals(Signal.TRACES) == (3, 2, 1)
            await client.close()

    asyncio.run(main())


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_64_mib_are_taken_and_a_byte_more_is_refused_for_good(
    grpc_agent: Any, padded: Any, eventually: Any, compression: grpc.Compression
) -> None:
    async def main() -> None:
        async with grpc_agent() as running:
            await export(running.address, padded(2**26), compression=compression)
            assert running.totals(Signal.TRACES) == (1, 1, 0)
            refused = await refusal(running.address, bytes(2**26 + 1), compression=compression)
            assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "receivers.grpc.max_message_size" in (refused.details() or "")
            assert not refused.trailing_metadata()
            assert running.rejected("too_large") == 1
            # gRPC itself turns away what is over by more than a quarter; all that is seen is an end.
            refused = await refusal(running.address, bytes(85 * 2**20), compression=compression)
            assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert not refused.trailing_metadata()
            await eventually(lambda: running.rejected("abandoned") == 1)
            assert running.totals(Signal.TRACES) == (3, 1, 2)

    asyncio.run(main())


def own_grpc(**settings: str) -> dict[str, Any]:
    """The receivers of an agent that is a process of its own: what others have freed in this one, before a
    flood or in the midst of it, would hide what the flood takes."""
    return {"grpc": {"endpoint": "127.0.0.1:0", **settings}}


def test_memory_of_what_arrives_is_bounded_over_all_connections(
    start_agent: Any, http2: Any, trace_request: Any
) -> None:
    """160 MiB begin to arrive where 32 may."""

    async def flood(address: str) -> tuple[int, Any]:
        client = await http2.connect(address)
        await asyncio.sleep(0.05)
        client.call(TRACES)
        sent = 0
        await client.send(prefix(4 * 2**20))
        while sent < 4 * 2**20 - 2**16 and await client.send(bytes(2**16)):
            sent += 2**16
        return sent, client

    agent = start_agent(receivers=own_grpc(max_message_size="4MiB", max_receiving="32MiB"))
    address = f"127.0.0.1:{agent.grpc}"

    async def main() -> None:
        flooding: list[tuple[int, Any]] = []
        try:
            for _ in range(40):
                flooding += [await flood(address)]
            refused = [client for _, client in flooding if client.ended()]
            agent.await_total(len(refused), "tidegauge_rejected_total", reason="overload")
            assert refused
            assert all(UNAVAILABLE in client.trailers[1] for client in refused)
            assert all(b"google.rpc.retryinfo-bin" in client.trailers[1] for client in refused)
            still = sum(sent for sent, client in flooding if not client.ended())
            assert still <= 64 * 2**20
            await export(address, trace_request(2))
        finally:
            for _, client in flooding:
                await client.close()

    asyncio.run(main())


def test_a_flood_of_record_batches_is_told_to_come_again(start_agent: Any, http2: Any, arrow: Any) -> None:
    agent = start_agent(receivers=own_grpc())

    async def main(address: str) -> list[Any]:
        clients = [await http2.connect(address) for _ in range(30)]
        try:
            await asyncio.sleep(0.1)
            schema, *_ = arrow.stream([arrow.numbers(3)])
            for client in clients:
                client.call(DO_PUT)
                await client.send(prefix(len(schema)) + schema)
                await client.send(prefix(60 * 2**20))
            for _ in range(160):  # up to 10 MiB each
                await asyncio.gather(*(client.send(bytes(2**16)) for client in clients))
        finally:
            for client in clients:
                await client.close()
        return [client for client in clients if client.ended()]

    refused = asyncio.run(main(f"127.0.0.1:{agent.grpc}"))
    assert any(UNAVAILABLE in client.trailers.get(1, b"") for client in refused)
    assert any(b"grpc-status-details-bin" in client.trailers.get(1, b"") for client in refused)
    with flight.connect(f"grpc://127.0.0.1:{agent.grpc}") as client:
        rows = arrow.numbers(3)
        writer, _ = client.do_put(flight.FlightDescriptor.for_path("records", "m", "1"), rows.schema)
        with writer:
            writer.write_batch(rows)
    agent.await_total(3, "tidegauge_accepted_total", signal="records")
    assert agent.total("tidegauge_rejected_total", reason="overload") > 0
    received = agent.total("tidegauge_received_total", signal="records")
    assert received == 3 + agent.total("tidegauge_rejected_total", signal="records")


def test_a_record_batch_over_the_limit_is_counted(agent_type: Any, arrow: Any) -> None:
    with agent_type(max_message="1MiB") as agent:
        with pytest.raises(pa.ArrowInvalid, match=r"receivers\.grpc\.max_message_size"):
            agent.put([arrow.numbers(140_000)])
        assert agent.rejected("too_large") == 1
        assert agent.totals() == (1, 0, 1)
        agent.is_well()


def test_one_connection_too_many_is_closed(grpc_agent: Any, trace_request: Any, silence: Any) -> None:
    async def main() -> None:
        async with grpc_agent(max_connections=20) as running:
            async with silence(running.address, 18):
                await export(running.address, trace_request(1))
                # The exporter's own connection may still be there, or be gone: one more fits, or two.
                ends = [await asyncio.open_connection(*running.address.split(":")) for _ in range(5)]
                reads = [asyncio.ensure_future(reader.read()) for reader, _ in ends]
                try:
                    async with asyncio.timeout(20):
                        while sum(read.done() for read in reads) < 3:
                            await asyncio.sleep(0.01)
                    assert not all(read.done() for read in reads)
                finally:
                    for read, (_, writer) in zip(reads, ends, strict=True):
                        read.cancel()
                        writer.close()
                    closed = (writer.wait_closed() for _, writer in ends)
                    await asyncio.gather(*reads, *closed, return_exceptions=True)
            await asyncio.sleep(0.2)
            await export(running.address, trace_request(1))

    asyncio.run(main())


def test_an_idle_connection_is_sent_away_and_a_channel_does_not_notice(
    grpc_agent: Any, http2: Any, trace_request: Any, eventually: Any
) -> None:
    async def main() -> None:
        async with (
            grpc_agent(idle_timeout="500ms") as running,
            grpc.aio.insecure_channel(running.address) as channel,
        ):
            idle = await http2.connect(running.address)
            await channel.unary_unary(TRACES)(trace_request(1))
            await eventually(lambda: idle.closed)
            assert b"connection idle" in idle.goaway
            await channel.unary_unary(TRACES)(trace_request(1))
            await idle.close()

    asyncio.run(main())


def test_a_client_is_served_beside_two_thousand_idle_ones(
    grpc_agent: Any, http2: Any, trace_request: Any
) -> None:
    async def main() -> None:
        async with grpc_agent() as running:
            idle = [await http2.connect(running.address) for _ in range(2000)]
            for _ in range(20):
                await export(running.address, trace_request(5))
            assert not any(client.closed for client in idle)
            for client in idle:
                await client.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", bytes(5000), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100]
)
def test_what_is_no_http2_is_closed(grpc_agent: Any, trace_request: Any, garbage: bytes) -> None:
    async def main() -> None:
        async with grpc_agent() as running:
            reader, writer = await asyncio.open_connection(*running.address.split(":"))
            writer.write(garbage)
            await asyncio.wait_for(reader.read(), 10)
            writer.transport.abort()
            await export(running.address, trace_request(2))
            assert running.totals(Signal.TRACES) == (2, 2, 0)

    asyncio.run(main())


@pytest.mark.parametrize(
    "method", ["/opentelemetry.proto.collector.profiles.v1development.ProfilesService/Export", "/a/b", "/"]
)
def test_what_is_not_served_is_told_what_is(grpc_agent: Any, method: str) -> None:
    async def main() -> None:
        async with (
            grpc_agent() as running,
            grpc.aio.insecure_channel(running.address) as channel,
        ):
            calls: list[Callable[..., Any]] = [channel.unary_unary, channel.stream_unary]
            for kind in calls:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await kind(method)(b"" if kind == channel.unary_unary else iter([b""]))
                assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
                assert f"{method} is not served here" in (refused.value.details() or "")
                assert "TraceService" in (refused.value.details() or "")

    asyncio.run(main())


def test_a_stream_of_a_full_queue_says_when(grpc_agent: Any, trace_request: Any) -> None:
    """Both trailers, as a client that has nothing but bytes sees them."""

    async def main() -> None:
        async with grpc_agent(queue_bytes=20_000, blocked=True) as running:
            for _ in range(3):
                async with grpc.aio.insecure_channel(running.address) as channel:
                    call = channel.unary_unary(TRACES)(trace_request(100))
                    if await call.code() is grpc.StatusCode.UNAVAILABLE:
                        break
            trailers: dict[str, Any] = dict(await call.trailing_metadata())
            (detail,) = Status.FromString(trailers["grpc-status-details-bin"]).details
            retry = RetryInfo()
            assert detail.Unpack(retry)
            assert retry == RetryInfo.FromString(trailers["google.rpc.retryinfo-bin"])

    asyncio.run(main())
