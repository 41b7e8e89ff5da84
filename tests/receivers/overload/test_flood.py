"""The agent as a process under 12 GB of messages that begin and do not end."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

pytestmark = pytest.mark.e2e

TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
DO_PUT = "/arrow.flight.protocol.FlightService/DoPut"


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def anonymous_bytes(process: subprocess.Popen[bytes]) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.parametrize("path", [TRACES, DO_PUT])
@pytest.mark.parametrize("pause_s", [0.0, 0.03])
def test_200_messages_of_60_mib_at_once_take_no_more_than_max_receiving(
    http2: Any, trace_request: Any, tmp_path: Path, path: str, pause_s: float
) -> None:
    port, http, pages = free_port(), free_port(), free_port()
    file = tmp_path / "agent.yaml"
    file.write_text(
        f"receivers: {{grpc: {{endpoint: '127.0.0.1:{port}'}}, http: {{endpoint: '127.0.0.1:{http}'}}}}\n"
        f"exporters: {{prometheus: {{endpoint: '127.0.0.1:{pages}'}}}}\n"
    )
    command = [sys.executable, "-m", "tidegauge", "run", "--config", str(file)]

    async def send(client: Any) -> None:
        client.call(path)
        await client.send(b"\0" + (60 * 2**20).to_bytes(4, "big"))
        for _ in range(900):
            if not await client.send(bytes(2**16)):
                return
            await asyncio.sleep(pause_s)

    async def flood(agent: subprocess.Popen[bytes]) -> int:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            export = channel.unary_unary(TRACES)
            await export(trace_request(5), wait_for_ready=True, timeout=120)
            before = peak = anonymous_bytes(agent)
            clients = [await http2.connect(f"127.0.0.1:{port}") for _ in range(200)]
            await asyncio.sleep(0.5)
            sending = asyncio.gather(*map(send, clients))
            while not sending.done():
                peak = max(peak, anonymous_bytes(agent))
                await export(trace_request(5), timeout=10)
                await asyncio.sleep(0.02)
            await sending
            assert all(b"grpc-status\x0214" in client.trailers[1] for client in clients)
            for client in clients:
                await client.close()
            return peak - before

    with subprocess.Popen(command) as agent:
        try:
            assert asyncio.run(flood(agent)) < 256 * 2**20
        finally:
            agent.terminate()
            agent.wait(20)
