"""How many connections one address has on the gRPC port."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections import defaultdict
from types import TracebackType
from typing import Self

from tidegauge.listening.door import Door

log = logging.getLogger(__name__)

_TICK_S = 1.0


class PeerConnections:
    """Closes connections of an address that has more than `most` of them, the newest ones.

    gRPC tells nothing of connections from Python, so the process's own sockets are looked at once a
    second (3 us each): an address may have more for as long. A socket that is shut down reads as closed by
    its peer, and gRPC drops it. Not on Linux, nothing is watched. An async context
    manager: entering it starts the watch.
    """

    def __init__(self, door: Door, port: int, most: int) -> None:
        self._door = door
        self._port = port
        self._most = most
        self._known: dict[tuple[str, int], int] = {}  # each with when it was seen first, in looks
        self._looks = 0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._most and sys.platform == "linux":
            self._task = asyncio.create_task(self._watch(), name="peer connections")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            closed = await asyncio.to_thread(self.look)
            for address, number in closed.items():
                log.debug("closed %d connections of %s", number, address)
                for _ in range(number):
                    self._door.deny("peer_connections")

    def look(self) -> dict[str, int]:
        """Close what is too many; returns how many, by address."""
        self._looks += 1
        peers: dict[str, list[tuple[int, int]]] = defaultdict(list)
        now: dict[tuple[str, int], int] = {}
        for number in map(int, os.listdir("/proc/self/fd")):
            if (peer := self._peer(number)) is not None:
                now[peer] = self._known.get(peer, self._looks)
                peers[peer[0]].append((now[peer], number))
        self._known = now
        return {
            address: sum(self._close(number) for _, number in sorted(found)[self._most :])
            for address, found in peers.items()
            if len(found) > self._most
        }

    def _peer(self, number: int) -> tuple[str, int] | None:
        """Address and port of who is at the other end of this port's connection, if it is one."""
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as one:
            if one.family in (socket.AF_INET, socket.AF_INET6) and one.getsockname()[1] == self._port:
                address, port, *_ = one.getpeername()
                return address.removeprefix("::ffff:"), port
        return None

    def _close(self, number: int) -> bool:
        # Between two looks at a descriptor it may have become another one's: the copy cannot.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as one:
            if one.getsockname()[1] == self._port:
                one.shutdown(socket.SHUT_RDWR)
                return True
        return False
