"""OTLP over HTTP, from the client's side."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from types import TracebackType
from typing import Self

import aiohttp
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status

from tidegauge import __version__
from tidegauge.batch import Signal
from tidegauge.config import Destination
from tidegauge.exporters.credentials import Credentials
from tidegauge.exporters.outcome import Outcome, Verdict, delivered

_PROTOBUF = "application/x-protobuf"
# OTLP specification, "Retryable Response Codes": these and no others.
_RETRYABLE = {429, 502, 503, 504}
# What a smaller request, or one without the offending item, may not meet with.
_ABOUT_CONTENT = {400, 413, 422, 500}
_RESPONSE_BYTES = 4 * 2**20  # the specification's limit of a response
_PIECE_BYTES = 2**18
_GZIP_LEVEL = 1  # a third of level 6's time, for a tenth more bytes (bench.payload's spans)
_GZIP_BITS = 31  # zlib's window size of 15, and 16 for gzip's framing


class HttpChannel:
    """Connections to `endpoint`/v1/SIGNAL, kept alive."""

    def __init__(self, settings: Destination, credentials: Credentials) -> None:
        self._settings = settings
        self._credentials = credentials
        self._gzip = settings.compression == "gzip"

    async def __aenter__(self) -> Self:
        headers = {"User-Agent": f"tidegauge/{__version__}", "Content-Type": _PROTOBUF, "Accept": _PROTOBUF}
        if self._gzip:
            headers["Content-Encoding"] = "gzip"
        self._session = aiohttp.ClientSession(
            # As many connections as there are calls: the forwarder bounds them.
            connector=aiohttp.TCPConnector(limit=0, ssl=self._credentials.context or True),
            headers=headers | self._credentials.headers(self._settings),
            timeout=aiohttp.ClientTimeout(total=self._settings.timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def send(self, signal: Signal, request: bytes) -> Outcome:
        """Send a serialised Export request once. Never raises for what the collector does."""
        if self._gzip:
            request = await asyncio.to_thread(_compressed, request)
        url = f"{str(self._settings.endpoint).rstrip('/')}/v1/{signal}"
        try:
            async with self._session.post(
                url,
                data=_pieces(request),
                headers={"Content-Length": str(len(request))},
                allow_redirects=False,
            ) as response:
                body = await _read(response)
        except TimeoutError:
            message = f"no answer within {self._settings.timeout:g} s"
            return Outcome(Verdict.RETRY, message=message, timed_out=True)
        except aiohttp.ClientError as error:
            # Also a connection dropped without an answer: the specification wants a retry.
            return Outcome(Verdict.RETRY, message=" ".join(f"{type(error).__name__} {error}".split()))
        if 200 <= response.status < 300:
            return delivered(signal, body)
        return _refused(response.status, response.headers.get("Retry-After"), body)


def _refused(status: int, retry_after: str | None, body: bytes) -> Outcome:
    """What a status other than success means (OTLP specification, "OTLP/HTTP Response")."""
    try:
        reason = " ".join(Status.FromString(body).message.split())
    except DecodeError:
        reason = ""
    message = f"{status} {reason or _phrase(status)}".strip()
    if status in _RETRYABLE:
        delay_s = retry_after_s(retry_after, time.time())
        late = status == HTTPStatus.GATEWAY_TIMEOUT
        return Outcome(Verdict.RETRY, delay_s=delay_s, message=message, timed_out=late)
    return Outcome(Verdict.REJECTED, about_content=status in _ABOUT_CONTENT, message=message)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def retry_after_s(text: str | None, now_s: float) -> float | None:
    """Seconds to wait by a Retry-After header: a number of them, or a date (RFC 9110, 10.2.3).

    >>> retry_after_s("3", 0.0), retry_after_s("Thu, 01 Jan 1970 00:01:00 GMT", 50.0), retry_after_s("?", 0.0)
    (3.0, 10.0, None)
    """
    text = (text or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now_s)
    except (ValueError, OverflowError):
        return None


async def _pieces(request: bytes) -> AsyncIterator[memoryview]:
    """The request a little at a time, with the loop's other work between: 4 MiB at once took 15 ms."""
    for start in range(0, len(request), _PIECE_BYTES):
        yield memoryview(request)[start : start + _PIECE_BYTES]
        await asyncio.sleep(0)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body, as far as it is worth reading."""
    pieces: list[bytes] = []
    left = _RESPONSE_BYTES
    async for piece in response.content.iter_chunked(2**16):
        pieces.append(piece[:left])
        left -= len(piece)
        if left <= 0:
            break
    return b"".join(pieces)


def _compressed(request: bytes) -> bytes:
    packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_BITS)
    return packer.compress(request) + packer.flush()
