"""The HTTP port before clients that are slow, silent, too many, or no HTTP clients at all."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from tidegauge.batch import Signal

HEAD = "POST /v1/traces HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-protobuf\r\n"


async def exchange(address: str, *pieces: bytes, pause_s: float = 0.0) -> bytes:
    """Send pieces as they are, and read until the server closes."""
    reader, writer = await asyncio.open_connection(*address.split(":"))
    try:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(pause_s)
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def post(body: bytes, *headers: str) -> bytes:
    """A request after which the connection is closed."""
    lines = "".join(f"{header}\r\n" for header in (*headers, "Connection: close"))
    return f"{HEAD}{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def served(running: Any, raw: bytes, spans: int) -> None:
    """A well-behaved client is, meanwhile."""
    before = running.totals(Signal.TRACES)[1]
    assert (await exchange(running.address, post(raw))).startswith(b"HTTP/1.1 200 OK")
    assert running.totals(Signal.TRACES)[1] == before + spans


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (b"GARBAGE\r\n\r\n", {400}),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), {400}),  # TLS to the plain port
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 404, 405}),
        (b"GET / HTTP/9.9\r\n\r\n", {400}),
        (b"POST /v1/traces HTTP/1.1\r\n" + b"X: " + b"x" * 20_000 + b"\r\n\r\n", {400}),
        (b"POST /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n", {400, 414}),
        (b"POST / HTTP/1.1\r\n" + b"".join(b"X%d: x\r\n" % n for n in range(3000)) + b"\r\n", {400}),
        (f"{HEAD}Content-Length: 3\r\nContent-Length: 5\r\n\r\nabcde".encode(), {400}),
        (f"{HEAD}Content-Length: -1\r\n\r\n".encode(), {400}),
        (f"{HEAD}Content-Length: 1e3\r\n\r\n".encode(), {400}),
        (f"{HEAD}Content-Length: 99999999999999999999\r\n\r\n".encode(), {400, 413}),
        (f"{HEAD}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode(), {400}),
        (f"{HEAD}Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n".encode(), {400}),
        (f"{HEAD}Transfer-Encoding: gzip\r\nConnection: close\r\n\r\n".encode(), {400, 200}),
        (f"{HEAD}Transfer-Encoding: chunked\r\n\r\nZZ\r\nabc\r\n0\r\n\r\n".encode(), {400}),
        (f"{HEAD}Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nabc".encode(), {400, 413}),
        (f"{HEAD}Transfer-Encoding: chunked\r\n\r\n5\r\nab\r\n0\r\n\r\n".encode(), {400}),
        (f"{HEAD}Content Length: 3\r\n\r\nabc".encode(), {400}),
        (f"{HEAD}Content-Length: 0\r\nUpgrade: h2c\r\nConnection: Upgrade, close\r\n\r\n".encode(), {200}),
        (
            f"{HEAD}Content-Length: 0\r\nExpect: the-unexpected\r\nConnection: close\r\n\r\n".encode(),
            {200, 417},
        ),
        (b"CONNECT /v1/traces HTTP/1.1\r\nHost: a\r\n\r\n", {400, 404, 405}),
        (b"POST http://[::1/v1/traces HTTP/1.1\r\nHost: a\r\n\r\n", {400, 404}),
        (b"POST /v1/traces HTTP/1.1\r\nContent-Type: \xff\xfe;;;=\r\nContent-Length: 0\r\n\r\n", {400, 415}),
        (b"POST /v1/traces HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\n\r\n", {415}),
        (b"\r\n" * 50, {400, 0}),
        (b"\0" * 5000, {400}),
    ],
)
def test_what_is_no_request_gets_an_answer_and_no_stack_trace(
    http_agent: Any, trace_request: Any, caplog: pytest.LogCaptureFixture, sent: bytes, statuses: set[int]
) -> None:
    async def main() -> None:
        async with http_agent(idle_timeout="300ms", timeout="300ms") as running:
            answer = await exchange(running.address, sent)
            status = int(answer.split(b" ", 2)[1]) if answer else 0
            assert status in statuses, answer[:200]
            assert b"Traceback" not in answer
            await served(running, trace_request(2), 2)
            running.totals(Signal.TRACES)

    with caplog.at_level(logging.INFO):
        asyncio.run(main())
    assert not caplog.records


def test_pipelined_requests_are_answered_in_order(http_agent: Any, trace_request: Any) -> None:
    async def main() -> None:
        async with http_agent() as running:
            body = trace_request(1)
            one = f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body
            answer = await exchange(running.address, one * 200 + post(b"\x0a\x7f"))
            assert answer.count(b"HTTP/1.1 200 OK") == 200
            assert answer.rindex(b"HTTP/1.1 400") > answer.rindex(b"HTTP/1.1 200")
            assert running.totals(Signal.TRACES) == (201, 200, 1)

    asyncio.run(main())


def test_chunked_bodies_of_single_bytes(http_agent: Any, trace_request: Any) -> None:
    async def main() -> None:
        async with http_agent() as running:
            body = b"".join(b"1\r\n" + bytes([byte]) + b"\r\n" for byte in trace_request(3))
            head = f"{HEAD}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode()
            answer = await exchange(running.address, head, body, b"0\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200")
            assert running.totals(Signal.TRACES) == (3, 3, 0)

    asyncio.run(main())


def test_who_asks_first_is_told_before_sending(http_agent: Any, trace_request: Any) -> None:
    async def main() -> None:
        async with http_agent(max_message_size="64KiB") as running:
            body = trace_request(2)
            ask = f"{HEAD}Expect: 100-continue\r\nConnection: close\r\n"
            head = f"{ask}Content-Length: {len(body)}\r\n\r\n".encode()
            answer = await exchange(running.address, head, body, pause_s=0.2)
            assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")
            answer = await exchange(running.address, f"{ask}Content-Length: 65537\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 413")
            assert running.totals(Signal.TRACES) == (3, 2, 1)

    asyncio.run(main())


def test_a_body_that_takes_too_long_is_503(http_agent: Any, trace_request: Any) -> None:
    async def main() -> None:
        async with http_agent(timeout="400ms") as running:
            head = f"{HEAD}Content-Length: 1000\r\n\r\n".encode()
            stalled = exchange(running.address, head, b"x" * 500)
            dripping = exchange(running.address, head, *(b"x" for _ in range(12)), pause_s=0.1)
            silent = exchange(running.address, head)
            slow = asyncio.gather(stalled, dripping, silent)
            await served(running, trace_request(2), 2)
            for answer in await slow:
                assert answer.startswith(b"HTTP/1.1 503")
                assert b"Retry-After: 1\r\n" in answer
            assert running.rejected("slow") == 3
            assert running.totals(Signal.TRACES) == (5, 2, 3)

    asyncio.run(main())


def test_a_client_that_leaves_within_its_body_is_counted(
    http_agent: Any, trace_request: Any, eventually: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with http_agent() as running:
            _, writer = await asyncio.open_connection(*running.address.split(":"))
            writer.write(f"{HEAD}Content-Length: 1000\r\n\r\n".encode() + b"x" * 500)
            await asyncio.sleep(0.1)
            writer.transport.abort()
            await eventually(lambda: running.rejected("abandoned") == 1)
            await served(running, trace_request(2), 2)
            assert running.totals(Signal.TRACES) == (3, 2, 1)

    with caplog.at_level(logging.INFO):
        asyncio.run(main())
    assert not caplog.records


def test_bodies_that_arrive_together_have_a_budget(http_agent: Any, trace_request: Any) -> None:
    async def main() -> None:
        async with http_agent(max_message_size="1MiB", max_receiving="2MiB") as running:
            head = f"{HEAD}Content-Length: 1000000\r\n\r\n".encode()
            chunked = f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode() + b"F423F\r\n" + bytes(900_000)
            writers = []
            for start in [head + bytes(900_000)] * 2 + [chunked]:
                reader, writer = await asyncio.open_connection(*running.address.split(":"))
                writer.write(start)
                writers.append((reader, writer))
                await asyncio.sleep(0.2)
            # The third would pass 2 MiB, and a fourth that says how much it brings is not even read.
            reader, _ = writers[2]
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 503")
            answer = await exchange(running.address, head)
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"Retry-After: 1\r\n" in answer
            assert running.rejected("overload") == 2
            await served(running, trace_request(2), 2)
            for reader, writer in writers[:2]:
                writer.write(bytes(100_000))
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 400")
            for _, writer in writers:
                writer.close()
            answer = await exchange(running.address, post(bytes(1_000_000)))
            assert answer.startswith(b"HTTP/1.1 400")  # there is room again, and zeros are no request

    asyncio.run(main())


def test_one_connection_too_many_is_told_so(http_agent: Any, trace_request: Any, silence: Any) -> None:
    async def main() -> None:
        async with http_agent(max_connections=20) as running:
            async with silence(running.address, 19):
                await served(running, trace_request(1), 1)
                async with silence(running.address, 1):
                    await asyncio.sleep(0.1)
                    answer = await exchange(running.address)
                    assert answer.startswith(b"HTTP/1.1 503")
                    assert b"Retry-After: 1\r\n" in answer
            await asyncio.sleep(0.1)
            await served(running, trace_request(1), 1)

    asyncio.run(main())


def test_who_says_nothing_or_half_a_head_is_cut_off(http_agent: Any) -> None:
    async def main() -> None:
        async with http_agent(idle_timeout="300ms") as running:
            drip = [bytes([byte]) for byte in HEAD.encode()[:12]]
            silent = exchange(running.address)
            assert await asyncio.gather(silent, exchange(running.address, *drip, pause_s=0.1)) == [b"", b""]

    asyncio.run(main())


def test_a_client_is_served_beside_two_thousand_silent_ones(
    http_agent: Any, trace_request: Any, silence: Any
) -> None:
    async def main() -> None:
        async with http_agent() as running, silence(running.address, 2000):
            for _ in range(20):
                await served(running, trace_request(5), 5)

    asyncio.run(main())


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_bomb_costs_no_more_than_its_limit(http_agent: Any, trace_request: Any, coding: str) -> None:
    """64 KiB that would become 64 MiB and a byte, four at once, while others are served."""

    async def main() -> None:
        bomb = (gzip.compress if coding == "gzip" else zlib.compress)(bytes(2**26 + 1))
        assert len(bomb) < 2**17
        async with http_agent() as running:
            bombs = asyncio.gather(
                *(exchange(running.address, post(bomb, f"Content-Encoding: {coding}")) for _ in range(4))
            )
            beside = 0
            while not bombs.done():
                await served(running, trace_request(1), 1)
                beside += not bombs.done()
            assert all(answer.startswith(b"HTTP/1.1 413") for answer in await bombs)
            assert running.rejected("too_large") == 4
            assert beside > 0

    asyncio.run(main())


@pytest.mark.parametrize(
    ("make", "status"),
    [
        (lambda raw: gzip.compress(gzip.compress(raw)), 400),  # the inner one is no request
        (lambda raw: gzip.compress(raw) * 3, 400),
        (lambda raw: gzip.compress(raw) + bytes(1000), 400),
        (lambda raw: gzip.compress(raw)[:-4], 400),
        (lambda raw: zlib.compress(raw)[2:-4], 400),  # deflate without its frame
        (lambda raw: gzip.compress(raw)[:10], 400),
        (zlib.compress, 200),  # under the other's name
    ],
)
def test_streams_that_are_not_one_whole(
    http_agent: Any, trace_request: Any, make: Callable[[bytes], bytes], status: int
) -> None:
    async def main() -> None:
        async with http_agent() as running:
            for spans in (2, 9000):  # inflated on the loop, and on a thread
                raw = make(trace_request(spans))
                answer = await exchange(running.address, post(raw, "Content-Encoding: gzip"))
                assert answer.startswith(b"HTTP/1.1 %d" % status)
            assert running.rejected("undecodable") == (2 if status == 400 else 0)

    asyncio.run(main())


@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_64_mib_are_taken_and_a_byte_more_is_413(http_agent: Any, padded: Any, coding: str) -> None:
    async def main() -> None:
        async with http_agent() as running:
            for nbytes, status in ((2**26, 200), (2**26 + 1, 413)):
                raw = padded(nbytes)
                body = gzip.compress(raw, 1) if coding == "gzip" else raw
                answer = await exchange(running.address, post(body, f"Content-Encoding: {coding}"))
                assert answer.startswith(b"HTTP/1.1 %d" % status)
            assert running.totals(Signal.TRACES) == (2, 1, 1)
            assert running.rejected("too_large") == 1

    asyncio.run(main())
