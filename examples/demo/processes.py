"""Starting, watching and stopping the demo's processes."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import aiohttp

START_TIMEOUT_S = 300
"""A first start compiles the agent's kernels: 40 s of a core, and longer on a busy machine."""
STOP_TIMEOUT_S = 15


class DemoError(Exception):
    """The demo cannot go on."""


class Ports(NamedTuple):
    """Of the agent (gRPC, HTTP, pages) and of the model server, on 127.0.0.1."""

    grpc: int
    http: int
    pages: int
    server: int


DEFAULT_PORTS = Ports(4317, 4318, 9464, 8000)


def choose_ports() -> Ports:
    """The default ports, or free ones in place of those that are taken."""
    return Ports(*map(_free_port, DEFAULT_PORTS))


def _free_port(preferred: int) -> int:
    for port in (preferred, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise DemoError("there is no free port on 127.0.0.1")


@asynccontextmanager
async def process(
    folder: Path, name: str, command: list[str], environ: Mapping[str, str]
) -> AsyncIterator[asyncio.Task[int]]:
    """A child that writes to NAME.log; leaving stops it, by SIGTERM if that will do.

    Gives the task that ends, with the exit status, when the child does.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    # A proxy in the environment must not come between these processes.
    inherited |= {"no_proxy": "127.0.0.1", "PYTHONUNBUFFERED": "1"}
    with (folder / f"{name}.log").open("wb") as log:
        # In a session of its own Ctrl-C does not reach it: the demo stops its children in order.
        child = await asyncio.create_subprocess_exec(
            *command,
            cwd=Path(__file__).parent,
            env=inherited | dict(environ),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    ended = asyncio.create_task(child.wait(), name=name)
    try:
        yield ended
    finally:
        with suppress(ProcessLookupError):
            child.terminate()
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(ended), STOP_TIMEOUT_S)
        if not ended.done():
            child.kill()
            await ended
            raise DemoError(f"the {name} did not stop within {STOP_TIMEOUT_S} s")


async def until_ok(session: aiohttp.ClientSession, url: str, ended: asyncio.Task[int]) -> None:
    """Wait for a page to answer 200, as long as the process behind it lives.

    Raises:
        DemoError: where it has ended, or START_TIMEOUT_S have passed.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(START_TIMEOUT_S):
            while not ended.done():
                with suppress(aiohttp.ClientError):
                    async with session.get(url) as response:
                        if response.status == 200:
                            return
                await asyncio.sleep(0.1)
    raise DemoError(f"the {ended.get_name()} does not answer at {url}")
