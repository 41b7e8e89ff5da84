"""Where forwarded spans end, as a process of its own: `python -m bench.sink PORT`.

It takes Export calls, answers each at once, and tells how many spans and calls it got, so that what
agent and peer hand on can be counted without a part of it being on their account.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from pathlib import Path

import grpc
import uvloop

from bench.process import Child, free_port
from bench.sender import LOGS, METRICS, TRACES
from tidegauge.wire.counts import count_points, count_records

TOLD = "/tidegauge.bench.Sink/Told"


class Sink(Child):
    """A running sink."""

    name = "sink"

    def __init__(self, folder: Path) -> None:
        self.grpc = free_port()
        super().__init__([sys.executable, "-m", "bench.sink", str(self.grpc)], folder)

    def ready(self) -> bool:
        try:
            self.spans()
        except grpc.RpcError:
            return False
        return True

    def settle(self, spans: int, within_s: float = 5.0) -> None:
        """Wait until so many have arrived, or none has for `within_s` seconds."""
        found, since = self.spans(), time.monotonic()
        while found < spans and time.monotonic() < since + within_s:
            time.sleep(0.05)
            if found != (found := self.spans()):
                since = time.monotonic()

    def spans(self) -> int:
        """Spans that have arrived so far."""
        return self.told()["traces"]

    def stand_still(self) -> None:
        """Stop answering, without closing anything."""
        self._child.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Answer again."""
        self._child.send_signal(signal.SIGCONT)

    def told(self) -> dict[str, int]:
        """Spans, points and log records so far, as `traces`, `metrics` and `logs`."""
        with grpc.insecure_channel(f"127.0.0.1:{self.grpc}") as channel:
            ask: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(TOLD)
            found: dict[str, int] = json.loads(ask(b"", timeout=5))
            return found


async def serve(port: int) -> None:
    """Listen until the process is ended."""
    counts = {"traces": 0, "metrics": 0, "logs": 0}

    async def span_call(request: bytes, _: object) -> bytes:
        counts["traces"] += count_records(request)
        return b""

    async def point_call(request: bytes, _: object) -> bytes:
        counts["metrics"] += count_points(request)
        return b""

    async def log_call(request: bytes, _: object) -> bytes:
        counts["logs"] += count_records(request)
        return b""

    async def told(request: bytes, _: object) -> bytes:
        return json.dumps(counts).encode()

    server = grpc.aio.server(options=(("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)))
    for path, behaviour in ((TRACES, span_call), (METRICS, point_call), (LOGS, log_call), (TOLD, told)):
        _, service, method = path.split("/")
        rpc: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(behaviour)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: rpc}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1])))
