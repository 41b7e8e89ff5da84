"""A Flight server that reads and answers, and does nothing else: what gRPC itself takes.

`python -m bench.bare PORT`, with the agent's channel options, its threads for sockets and its event loop.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import uvloop

from bench.process import Child, free_port
from tidegauge.cli.root import _EXPERIMENTS
from tidegauge.config import GrpcReceiver
from tidegauge.receivers.grpc_server import _options
from tidegauge.wire.arrow import put_result

_ANSWER = put_result(json.dumps({"accepted_rows": 1, "rejected_rows": 0, "reason": ""}).encode())


class BareServer(Child):
    """The process. A context manager."""

    name = "bare gRPC server"

    def __init__(self) -> None:
        self.grpc = free_port()
        self._folder = tempfile.TemporaryDirectory()
        command = [sys.executable, "-m", "bench.bare", str(self.grpc)]
        super().__init__(command, Path(self._folder.name), {"GRPC_EXPERIMENTS": _EXPERIMENTS})

    def ready(self) -> bool:
        with grpc.insecure_channel(f"127.0.0.1:{self.grpc}") as channel:
            try:
                grpc.channel_ready_future(channel).result(timeout=0.5)
            except grpc.FutureTimeoutError:
                return False
        return True


async def _put(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
    first = True
    async for _ in requests:
        if not first:
            await context.write(_ANSWER)
        first = False


async def serve(port: int) -> None:
    """Until the process is ended."""
    server = grpc.aio.server(options=_options(GrpcReceiver()))
    put: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(_put)
    service = "arrow.flight.protocol.FlightService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"DoPut": put}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1])))
