"""Arrow Flight's DoPut on the agent's gRPC server: record batches in, an answer for each."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol

import grpc
import pyarrow as pa

from tidegauge.batch import Batch, Records, Signal
from tidegauge.config import RecordLimits
from tidegauge.layout import Kind, LayoutError
from tidegauge.receivers.record_stream import RecordStream
from tidegauge.telemetry import Telemetry
from tidegauge.wire.arrow import (
    DICTIONARY,
    RECORDS,
    ArrowError,
    FlightMessage,
    flight_message,
    message_header,
)

log = logging.getLogger(__name__)

RECEIVER = "flight"

_MAX_WAITING_ANSWERS = 1024
"""Answers kept for a client that does not read them; beyond, the oldest are forgotten."""

_FLUSH_S = 1.0
"""How long a finished stream waits for its client to take the last answers."""

_THREAD_BYTES = 2**20
"""Text in a message this large takes over 1 ms to validate, which is done off the event loop."""


class Queue(Protocol):
    """What a receiver needs of the pipeline."""

    def offer(self, batch: Batch) -> bool: ...

    def fits(self, nbytes: int) -> bool: ...


class Answer(NamedTuple):
    """What became of one batch; `reason` is empty where all of it was accepted."""

    accepted_rows: int
    rejected_rows: int
    reason: str = ""

    def encode(self) -> bytes:
        """As a serialized PutResult, whose field 1 is the JSON."""
        text = json.dumps(self._asdict()).encode()
        length, size = [], len(text)
        while size > 0x7F:
            length.append(size & 0x7F | 0x80)
            size >>= 7
        return bytes((0x0A, *length, size)) + text


class FlightReceiver:
    """Serves `DoPut` for any Flight client.

    A batch that is refused is answered with its reason and the stream goes on; a stream whose
    messages cannot be made sense of ends with INVALID_ARGUMENT.
    """

    def __init__(self, queue: Queue, telemetry: Telemetry, limits: RecordLimits) -> None:
        self._queue = queue
        self._telemetry = telemetry
        self._limits = limits

    def service(self) -> grpc.GenericRpcHandler:
        """The handler to register; messages stay bytes, as on the wire."""
        put: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(self._put)
        return grpc.method_handlers_generic_handler("arrow.flight.protocol.FlightService", {"DoPut": put})

    async def _put(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> None:
        answers = _Answers(context)
        stream: RecordStream | None = None
        try:
            async for raw in requests:
                message = flight_message(raw)
                if stream is None:
                    if message.path is not None and message.path[:1] == ("labels",):
                        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "labels are not taken yet")
                    stream = RecordStream(message, self._limits)
                elif len(message.header):
                    answer = await self._take(stream, message)
                    if answer is not None:
                        answers.put(answer.encode())
        except (ArrowError, LayoutError) as error:
            self._count_rejected(1, "undecodable")
            await answers.close()
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            await answers.close()

    async def _take(self, stream: RecordStream, message: FlightMessage) -> Answer | None:
        header = message_header(message.header)
        if header.body_length != len(message.body):
            raise ArrowError(f"{header.body_length} bytes are declared, {len(message.body)} came")
        if header.kind == DICTIONARY:
            if header.compressed:
                raise ArrowError(_COMPRESSED)
            stream.add_dictionary(header, message)
            return None
        if header.kind != RECORDS:
            raise ArrowError("a second schema in one stream")
        if header.compressed:
            return self._reject(header.rows, "compressed", _COMPRESSED, message)
        if not 0 <= header.rows <= self._limits.max_rows:
            why = f"more than {self._limits.max_rows} rows in a batch (receivers.records.max_rows)"
            return self._reject(header.rows, "too_large", why, message)
        nbytes = len(message.body) + stream.dictionary_bytes
        if not self._queue.fits(nbytes):
            why = f"a batch of {nbytes} bytes is more than pipeline.queue_size; send smaller ones"
            return self._reject(header.rows, "too_large", why, message)
        rows = stream.read(message)
        try:
            await self._validate(stream, rows, nbytes)
        except pa.ArrowInvalid as error:
            return self._reject(rows.num_rows, "invalid", f"invalid Arrow data: {error}", message)
        return self._offer(Records(RECEIVER, stream.identity, stream.layout, rows, time.time_ns(), nbytes))

    async def _validate(self, stream: RecordStream, rows: pa.RecordBatch, nbytes: int) -> None:
        if nbytes >= _THREAD_BYTES and Kind.CATEGORICAL in stream.layout.kinds:
            await asyncio.to_thread(rows.validate, full=True)
        else:
            rows.validate(full=True)

    def _offer(self, batch: Records) -> Answer:
        if batch.items and not self._queue.offer(batch):
            self._count_rejected(batch.items, "queue_full")
            return Answer(0, batch.items, "the agent's queue is full")
        self._telemetry.add("received", batch.items, receiver=RECEIVER, signal=Signal.RECORDS)
        return Answer(batch.items, 0)

    def _reject(self, rows: int, reason: str, why: str, message: FlightMessage) -> Answer:
        # A row takes a bit at least: a count beyond that is a lie, and must not enter the counters.
        plausible = rows if 0 < rows <= 8 * len(message.body) else 1
        self._count_rejected(plausible, reason)
        return Answer(0, plausible, why)

    def _count_rejected(self, items: int, reason: str) -> None:
        labels = {"receiver": RECEIVER, "signal": str(Signal.RECORDS)}
        self._telemetry.add("received", items, **labels)
        self._telemetry.add("rejected", items, reason=reason, **labels)


_COMPRESSED = "compressed Arrow buffers are not taken; use gRPC's own compression"


class _Answers:
    """Writes answers beside the reading of batches, so that a client that reads none is served too."""

    def __init__(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        self._context = context
        self._waiting: deque[bytes] = deque(maxlen=_MAX_WAITING_ANSWERS)
        self._writer: asyncio.Task[None] | None = None

    def put(self, answer: bytes) -> None:
        """Queue an answer; the oldest gives way when too many wait."""
        self._waiting.append(answer)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())

    async def close(self) -> None:
        """Write what waits, for as long as a client that reads would need."""
        if self._writer is not None:
            await asyncio.wait({self._writer}, timeout=_FLUSH_S)
            self._writer.cancel()
            self._writer = None

    async def _write(self) -> None:
        while self._waiting:
            await self._context.write(self._waiting.popleft())
