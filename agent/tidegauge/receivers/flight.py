"""Arrow Flight's DoPut on the agent's gRPC server: record batches in, an answer for each."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator
from functools import lru_cache
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import grpc
import pyarrow as pa

from tidegauge.batch import Batch, Content, Records, Signal
from tidegauge.config import RecordLimits
from tidegauge.layout import LayoutError
from tidegauge.receivers.outcome import RETRY_DELAY_S, RefusedError, Verdict
from tidegauge.receivers.record_stream import InvalidBatchError, RecordStream
from tidegauge.receivers.status import abort
from tidegauge.receivers.turn import Turn
from tidegauge.telemetry import Telemetry
from tidegauge.wire.arrow import (
    DICTIONARY,
    RECORDS,
    ArrowError,
    FlightMessage,
    flight_message,
    message_header,
    put_result,
)

RECEIVER = "flight"

_MAX_WAITING_ANSWERS = 1024
"""Answers kept for a client that does not read them; beyond, the oldest are forgotten."""

_FLUSH_S = 5.0
"""How long a finished stream waits for its client to take the last answers."""

_INLINE_BYTES = 2**20
"""Text in a smaller message is validated on the event loop, in about a millisecond; a thread hop costs
0.1 ms."""

_INLINE_SCHEMA_BYTES = 2**14
"""A smaller schema, of about 300 columns, is read in 2 ms."""

_MAX_MESSAGE = 500
"""Characters of an error sent: with more than 8 KiB of trailers a client sees another error instead."""


class Queue(Protocol):
    """What a receiver needs of the pipeline."""

    def offer(self, batch: Batch) -> bool: ...

    def fits(self, nbytes: int) -> bool: ...

    @property
    def queue_bytes(self) -> int: ...


class Answer(NamedTuple):
    """What became of one batch; `reason` is empty where all of it was accepted."""

    accepted_rows: int
    rejected_rows: int
    reason: str = ""
    retry: bool = False

    def encode(self) -> bytes:
        """As a serialized PutResult that holds it as JSON; what may be sent again says when."""
        return _encoded(self)


@lru_cache(maxsize=256)
def _encoded(answer: Answer) -> bytes:
    words = {name: value for name, value in answer._asdict().items() if name != "retry"}
    when = {"retry_after_s": RETRY_DELAY_S} if answer.retry else {}
    return put_result(json.dumps(words | when).encode())


class Refusal(NamedTuple):
    """Why a batch is not taken: a reason for the counter, and words for the sender."""

    reason: str
    why: str


class UnservedError(ArrowError):
    """A stream of a kind that the agent does not take."""


class FlightReceiver:
    """Serves `DoPut` for any Flight client.

    A batch that is refused is answered with its reason and the stream goes on; a stream whose
    messages cannot be made sense of ends with INVALID_ARGUMENT, and one whose message there is no memory
    for with UNAVAILABLE.
    """

    def __init__(self, queue: Queue, telemetry: Telemetry, limits: RecordLimits) -> None:
        self._queue = queue
        self._telemetry = telemetry
        self._limits = limits
        self._turn = Turn()

    def service(self) -> grpc.GenericRpcHandler:
        """The handler to register; messages stay bytes, as on the wire."""
        put: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(self._put)
        return grpc.method_handlers_generic_handler("arrow.flight.protocol.FlightService", {"DoPut": put})

    async def _put(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> None:
        failure: ArrowError | LayoutError | RefusedError | None = None
        async with _Answers(context) as answers:
            try:
                await self._receive(requests, answers)
            except (ArrowError, LayoutError) as error:
                self._count_rejected(1, Verdict.UNDECODABLE)
                failure = error
            except RefusedError as error:
                self._count_rejected(1, error.outcome.verdict)
                failure = error
        if isinstance(failure, RefusedError):
            await abort(context, failure.outcome)
        if failure is not None:
            unserved = isinstance(failure, UnservedError)
            code = grpc.StatusCode.UNIMPLEMENTED if unserved else grpc.StatusCode.INVALID_ARGUMENT
            await context.abort(code, str(failure)[:_MAX_MESSAGE])

    async def _receive(self, requests: AsyncIterator[bytes], answers: _Answers) -> None:
        stream: RecordStream | None = None
        async for raw in requests:
            if stream is None:
                stream = await self._open(flight_message(raw))
                continue
            content = stream.plain(raw)
            if content is not None:
                answer: Answer | None = self._admit(stream, content, stream.nbytes(len(raw)))
            else:
                answer = await self._take(stream, raw)
            if answer is not None:
                answers.put(answer.encode())

    async def _open(self, first: FlightMessage) -> RecordStream:
        if first.path is not None and first.path[:1] == ("labels",):
            raise UnservedError("labels are not taken yet")
        if len(first.header) < _INLINE_SCHEMA_BYTES:
            return RecordStream(first, self._limits)
        return await self._turn.run(len(first.header), RecordStream, first, self._limits)

    async def _take(self, stream: RecordStream, raw: bytes) -> Answer | None:
        message = flight_message(raw)
        if not len(message.header):
            return None
        header = message_header(message)
        if header.kind == DICTIONARY:
            if header.compressed:
                raise ArrowError(_COMPRESSED)
            stream.add_dictionary(header, message)
            return None
        if header.kind != RECORDS:
            raise ArrowError("a second schema in one stream")
        # A row takes a bit at least: a count beyond that is a lie, and must not enter the counters.
        plausible = header.rows if 0 < header.rows <= 8 * len(message.body) else 1
        if header.compressed:
            return self._reject(plausible, _NOT_INFLATED)
        nbytes = stream.nbytes(len(raw))
        refusal = self._refusal(header.rows, nbytes)
        if refusal is not None:
            return self._reject(plausible, refusal)
        try:
            content = await self._read(stream, message, nbytes)
        except InvalidBatchError as error:
            return self._reject(plausible, Refusal("invalid", str(error)))
        except asyncio.CancelledError:
            self._reject(plausible, _ABANDONED)
            raise
        return self._offer(stream, content, nbytes)

    def _admit(self, stream: RecordStream, content: Content, nbytes: int) -> Answer:
        refusal = self._refusal(content.num_rows, nbytes)
        if refusal is not None:
            return self._reject(content.num_rows, refusal)
        return self._offer(stream, content, nbytes)

    def _offer(self, stream: RecordStream, content: Content, nbytes: int) -> Answer:
        batch = Records(RECEIVER, stream.identity, stream.layout, content, time.time_ns(), nbytes)
        rows = content.num_rows
        if rows and not self._queue.offer(batch):
            return self._reject(rows, _QUEUE_FULL)
        self._telemetry.add("received", rows, receiver=RECEIVER, signal=Signal.RECORDS)
        return Answer(rows, 0)

    def _refusal(self, rows: int, nbytes: int) -> Refusal | None:
        """Why a batch is not even read, if so."""
        if not 0 <= rows <= self._limits.max_rows:
            most = self._limits.max_rows
            return Refusal("too_large", f"more than {most} rows in a batch (receivers.records.max_rows)")
        if not self._queue.fits(nbytes):
            return Refusal(
                "too_large", f"a batch of {nbytes} bytes is more than pipeline.queue_size; send smaller ones"
            )
        if not self._queue.fits(self._queue.queue_bytes + self._turn.waiting_bytes + nbytes):
            return _QUEUE_FULL
        return None

    async def _read(self, stream: RecordStream, message: FlightMessage, nbytes: int) -> pa.RecordBatch:
        if nbytes < _INLINE_BYTES or not stream.slow:
            return stream.read(message)
        return await self._turn.run(nbytes, stream.read, message)

    def _reject(self, rows: int, refusal: Refusal) -> Answer:
        self._count_rejected(rows, refusal.reason)
        return Answer(0, rows, refusal.why[:_MAX_MESSAGE], refusal is _QUEUE_FULL)

    def _count_rejected(self, items: int, reason: str) -> None:
        labels = {"receiver": RECEIVER, "signal": str(Signal.RECORDS)}
        self._telemetry.add("received", items, **labels)
        self._telemetry.add("rejected", items, reason=reason, **labels)


_COMPRESSED = "compressed Arrow buffers are not taken; use gRPC's own compression"
_NOT_INFLATED = Refusal("compressed", _COMPRESSED)
_QUEUE_FULL = Refusal(Verdict.QUEUE_FULL, "the agent's queue is full")
_ABANDONED = Refusal(Verdict.ABANDONED, "")


class _Answers:
    """Writes answers beside the reading of batches, so that a client that reads none is served too.

    An async context manager: leaving it writes what waits, for as long as a client that reads may
    need. Where the call has failed or is cancelled nothing is waited for.
    """

    def __init__(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        self._context = context
        self._waiting: deque[bytes] = deque(maxlen=_MAX_WAITING_ANSWERS)
        self._writer: asyncio.Task[None] | None = None

    def put(self, answer: bytes) -> None:
        """Queue an answer; the oldest gives way when too many wait."""
        self._waiting.append(answer)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is None:
            return
        try:
            if kind is None:
                await asyncio.wait({self._writer}, timeout=_FLUSH_S)
        finally:
            self._writer.cancel()

    async def _write(self) -> None:
        try:
            while self._waiting:
                await self._context.write(self._waiting.popleft())
        except grpc.aio.BaseError:
            self._waiting.clear()  # the client is gone, and the call is about to be cancelled
