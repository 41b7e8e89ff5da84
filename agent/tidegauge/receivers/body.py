"""Bodies of HTTP requests: read within a time and a budget of bytes, and inflated within a limit."""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

from tidegauge.config import HttpReceiver
from tidegauge.listening.door import Door
from tidegauge.receivers.outcome import RefusedError, Verdict
from tidegauge.receivers.turn import Turn

CODINGS = ("", "identity", "gzip", "deflate")

_INLINE_BYTES = 2**18
"""What is inflated on the event loop, in about a millisecond; a thread goes on from there."""


class Share:
    """What one request holds of the budget."""

    def __init__(self, bodies: Bodies, peer: str) -> None:
        self._bodies = bodies
        self.peer = peer
        self.nbytes = 0

    def take(self, nbytes: int) -> None:
        """Take more of it.

        Raises:
            RefusedError: where it is used up.
        """
        self._bodies.check_room(nbytes, self.peer)
        self._bodies.arriving_bytes += nbytes
        self._bodies.arriving_from[self.peer] += nbytes
        self.nbytes += nbytes


class Bodies:
    """Reads bodies; those of all connections together may hold `receivers.http.max_receiving`.

    Those of one address may hold `max_receiving_per_peer`, where that is not zero.
    """

    def __init__(self, settings: HttpReceiver, door: Door) -> None:
        self._settings = settings
        self._door = door
        self._turn = Turn()
        self.arriving_bytes = 0
        self.arriving_from: Counter[str] = Counter()

    @contextmanager
    def share(self, peer: str) -> Iterator[Share]:
        """A part of the budget, and of that of an address, given back in the end."""
        share = Share(self, peer)
        try:
            yield share
        finally:
            self.arriving_bytes -= share.nbytes
            self.arriving_from[peer] -= share.nbytes
            if not self.arriving_from[peer]:
                del self.arriving_from[peer]

    async def read(self, request: web.BaseRequest, share: Share, limit: int) -> bytes:
        """The body of a request, decompressed; of at most `limit` bytes before and after.

        Raises:
            RefusedError: where it is too large, too slow, too much, or not what it says it is.
        """
        length = request.content_length
        if length is not None and length > limit:
            raise too_large(limit)
        self.check_room(length or 0, share.peer)
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await self._receive(request, share, limit)
        if coding(request) in ("gzip", "deflate"):
            return await self._inflate(body, limit)
        return body

    def check_room(self, nbytes: int, peer: str) -> None:
        """Raises RefusedError where so many bytes more would not fit."""
        most = int(self._settings.max_receiving_per_peer)
        if most and peer and self.arriving_from[peer] + nbytes > most:
            self._door.deny("peer_receiving")
            message = "too much of this address is arriving at once (receivers.http.max_receiving_per_peer)"
            raise RefusedError(Verdict.OVERLOAD, message)
        if self.arriving_bytes + nbytes > int(self._settings.max_receiving):
            raise RefusedError(
                Verdict.OVERLOAD, "too much is arriving at once (receivers.http.max_receiving)"
            )

    async def _receive(self, request: web.BaseRequest, share: Share, limit: int) -> bytes:
        pieces = []
        limit_s = self._settings.timeout
        try:
            async with asyncio.timeout(limit_s):
                while piece := await request.content.readany():
                    share.take(len(piece))
                    pieces.append(piece)
                    if share.nbytes > limit:
                        raise too_large(limit)
        except TimeoutError:
            raise RefusedError(
                Verdict.SLOW, f"the body did not come within {limit_s:g} s (receivers.http.timeout)"
            ) from None
        except ConnectionError as error:
            raise RefusedError(Verdict.ABANDONED, "the connection ended within the body") from error
        except web.RequestPayloadError as error:
            raise RefusedError(Verdict.UNDECODABLE, f"the body cannot be read: {error}") from error
        return b"".join(pieces)

    async def _inflate(self, body: bytes, limit: int) -> bytes:
        """One gzip or zlib stream, decompressed: no more than a byte over the limit is made."""
        stream = zlib.decompressobj(wbits=47)  # 32 + 15: gzip or zlib, told by the header
        try:
            raw = stream.decompress(body, min(_INLINE_BYTES, limit + 1))
            if not stream.eof and len(raw) <= limit:
                # Each byte makes up to a thousand: one stream at a time may be that large.
                raw += await self._turn.run(
                    limit, stream.decompress, stream.unconsumed_tail, limit + 1 - len(raw)
                )
        except zlib.error as error:
            raise RefusedError(Verdict.UNDECODABLE, f"the body cannot be decompressed: {error}") from error
        if len(raw) > limit:
            raise too_large(limit)
        if not stream.eof or stream.unused_data:
            raise RefusedError(Verdict.UNDECODABLE, "the body is not one whole compressed stream")
        return raw


def coding(request: web.BaseRequest) -> str:
    """The request's Content-Encoding, in lower case."""
    return request.headers.get("Content-Encoding", "").strip().lower()


def too_large(limit: int) -> RefusedError:
    """The refusal of a body over the limit."""
    return RefusedError(Verdict.TOO_LARGE, f"a request may have {limit} bytes, also when decompressed")
