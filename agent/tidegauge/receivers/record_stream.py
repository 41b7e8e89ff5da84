"""One stream of record batches: its schema, its dictionaries, and what it may hold."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from tidegauge.config import RecordLimits
from tidegauge.identity import Identity
from tidegauge.layout import LayoutError, layout_of
from tidegauge.wire.arrow import SCHEMA, ArrowError, FlightMessage, MessageHeader, encapsulate, message_header

_MAX_HEADER_BYTES = 4 * 2**20
"""A schema of 2000 columns with metadata takes about 400 KiB."""


class RecordStream:
    """Reads the messages of one `DoPut` in order.

    Raises ArrowError (or LayoutError) from the constructor for a stream that cannot be served.
    """

    def __init__(self, first: FlightMessage, limits: RecordLimits) -> None:
        self._limits = limits
        header = message_header(first.header)
        if header.kind != SCHEMA or len(first.header) > _MAX_HEADER_BYTES:
            raise ArrowError("the first message must be a schema, of at most 4 MiB")
        self._source = _Source(encapsulate(first.header, first.body))
        source: Any = self._source
        try:
            self._reader = pa.ipc.open_stream(pa.PythonFile(source, mode="r"))
        except (pa.ArrowException, OSError) as error:
            raise ArrowError(f"the schema cannot be read: {error}") from error
        schema = self._reader.schema
        self._check(schema)
        self.layout = layout_of(schema)
        self.identity = _identity(first.path, schema, limits)
        self._dictionaries: dict[int, int] = {}

    @property
    def dictionary_bytes(self) -> int:
        """Bytes of the dictionaries that are held for batches to come."""
        return sum(self._dictionaries.values())

    def add_dictionary(self, header: MessageHeader, message: FlightMessage) -> None:
        """Keep a dictionary for the batches that follow.

        Raises:
            ArrowError: where the stream's dictionaries pass `max_dictionary_size`.
        """
        before = self._dictionaries.get(header.dictionary, 0) if header.delta else 0
        self._dictionaries[header.dictionary] = before + len(message.body)
        if self.dictionary_bytes > self._limits.max_dictionary_size:
            raise ArrowError(
                f"the stream's dictionaries take more than {self._limits.max_dictionary_size} bytes "
                "(receivers.records.max_dictionary_size); send plain strings, or a new stream now and then"
            )
        self._source.push(encapsulate(message.header, message.body))

    def read(self, message: FlightMessage) -> pa.RecordBatch:
        """The record batch of a message, not yet validated; its buffers are those of the message.

        Raises:
            ArrowError: for one that contradicts the schema or itself; the stream cannot go on.
        """
        self._source.push(encapsulate(message.header, message.body))
        try:
            return self._reader.read_next_batch()
        except (pa.ArrowException, OSError, StopIteration, MemoryError) as error:
            raise ArrowError(f"the record batch cannot be read: {error}") from error

    def _check(self, schema: pa.Schema) -> None:
        limits = self._limits
        if len(schema) > limits.max_columns:
            raise LayoutError(
                f"{len(schema)} columns are more than {limits.max_columns} (receivers.records.max_columns)"
            )
        longest = max(schema.names, key=len, default="")
        if len(longest) > limits.max_name_length:
            raise LayoutError(
                f"column {longest[:20]!r}... has a name of {len(longest)} characters, more than "
                f"{limits.max_name_length} (receivers.records.max_name_length)"
            )


def _identity(path: tuple[str, ...] | None, schema: pa.Schema, limits: RecordLimits) -> Identity:
    wanted = 'the descriptor must be the path ["records", MODEL, VERSION]'
    if path is None or len(path) != 3 or path[0] != "records" or not path[1]:
        raise ArrowError(f"{wanted}, not {list(path) if path is not None else 'missing'}")
    metadata = schema.metadata or {}
    try:
        stage, source = (metadata.get(key, b"").decode() for key in (b"stage", b"data_source"))
    except UnicodeDecodeError:
        raise ArrowError("the schema's stage and data_source must be UTF-8") from None
    identity = Identity(path[1], path[2], stage, source)
    for name, value in identity._asdict().items():
        if len(value) > limits.max_name_length or not (value.isprintable() or not value):
            raise ArrowError(
                f"{name} must be printable and of at most {limits.max_name_length} characters "
                "(receivers.records.max_name_length)"
            )
    return identity


class _Source:
    """A file of which pyarrow's stream reader reads no further than what has been pushed.

    `read_buffer` hands out slices of the pushed bytes, so that a batch is not copied.
    """

    closed = False

    def __init__(self, first: bytes) -> None:
        self._pushed = [pa.py_buffer(first)]
        self._position = 0

    def push(self, message: bytes) -> None:
        self._pushed.append(pa.py_buffer(message))

    def read_buffer(self, size: int) -> pa.Buffer:
        while self._pushed and self._position == self._pushed[0].size:
            del self._pushed[0]
            self._position = 0
        if not self._pushed:
            return pa.py_buffer(b"")
        # The reader asks for prefix, header and body apart, never across messages.
        part = self._pushed[0].slice(self._position, min(size, self._pushed[0].size - self._position))
        self._position += part.size
        return part

    def read(self, size: int) -> bytes:
        return self.read_buffer(size).to_pybytes()

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True
