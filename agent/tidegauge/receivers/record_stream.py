"""One stream of record batches: its schema, its dictionaries, and what it may hold."""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidegauge.config import RecordLimits
from tidegauge.identity import Identity
from tidegauge.layout import Layout, LayoutError, layout_of, storage_type
from tidegauge.plain import Plain, bit_widths
from tidegauge.wire.arrow import (
    SCHEMA,
    ArrowError,
    FlightMessage,
    MessageHeader,
    check_schema,
    encapsulate,
    is_little_endian,
    message_header,
)
from tidegauge.wire.numbers import find_numbers

_BATCH_BYTES, _COLUMN_BYTES = 1024, 256
"""Memory of a batch and of each of its columns besides the values: 1.3 KiB was seen with one column,
7 KiB with 50. Batches of one row would pass the queue's limit a hundredfold without it."""

_CACHED_SCHEMA_BYTES = 2**16

_VIEW_INLINE = 12
"""A text of a view that is no longer lies in the view itself (columnar format, views)."""


class InvalidBatchError(ValueError):
    """A batch whose values contradict each other; the stream can go on."""


class RecordStream:
    """Reads the messages of one `DoPut` in order.

    Raises ArrowError (or LayoutError) from the constructor for a stream that cannot be served.
    """

    def __init__(self, first: FlightMessage, limits: RecordLimits) -> None:
        self._limits = limits
        if message_header(first).kind != SCHEMA:
            raise ArrowError("the first message must be a schema")
        small = len(first.header) <= _CACHED_SCHEMA_BYTES
        read = _read_schema if small else _read_schema.__wrapped__
        self._schema = read(bytes(first.header), limits)
        self.identity = _identity(first.path, self._schema.metadata, limits)
        self._source = _Source(encapsulate(first.header, first.body))
        source: Any = self._source
        self._reader = pa.ipc.open_stream(pa.PythonFile(source, mode="r"))
        self._dictionaries: dict[int, int] = {}
        self._unread: list[tuple[int, bytes]] = []

    @property
    def layout(self) -> Layout:
        return self._schema.layout

    @property
    def slow(self) -> bool:
        """Whether reading takes time that grows with the rows: text and indices are checked one by one."""
        return self._schema.slow

    @property
    def dictionary_bytes(self) -> int:
        """Bytes of the dictionaries that are held for batches to come."""
        return sum(self._dictionaries.values())

    def nbytes(self, message_bytes: int) -> int:
        """What a batch will keep alive. Dictionaries count in full for each batch that may use them."""
        return message_bytes + self.dictionary_bytes + _BATCH_BYTES + _COLUMN_BYTES * len(self.layout.names)

    def add_dictionary(self, header: MessageHeader, message: FlightMessage) -> None:
        """Keep a dictionary for the batches that follow.

        Raises:
            ArrowError: where the stream's dictionaries pass `max_dictionary_size`.
        """
        if not header.delta:
            # It replaces what came before, which may be many that no batch has made use of.
            self._unread = [(number, raw) for number, raw in self._unread if number != header.dictionary]
        before = self._dictionaries.get(header.dictionary, 0) if header.delta else 0
        size = len(message.header) + len(message.body) + _COLUMN_BYTES
        self._dictionaries[header.dictionary] = before + size
        if self.dictionary_bytes > self._limits.max_dictionary_size:
            raise ArrowError(
                f"the stream's dictionaries take more than {self._limits.max_dictionary_size} bytes "
                "(receivers.records.max_dictionary_size); send plain strings, or a new stream now and then"
            )
        self._unread.append((header.dictionary, encapsulate(message.header, message.body)))

    def plain(self, raw: bytes) -> Plain | None:
        """The batch of a message as it came, where the schema has numbers only.

        None for another schema, for a message that holds no batch, and for one that contradicts the schema
        or itself: `read` says what is wrong.
        """
        its = self._schema
        if its.widths is None or self._unread:
            return None
        spots = np.empty((len(its.widths), 4), np.int64)
        rows = find_numbers(np.frombuffer(raw, np.uint8), its.widths, spots)
        return Plain(raw, its.arrow, rows, spots) if rows >= 0 else None

    def read(self, message: FlightMessage) -> pa.RecordBatch:
        """The record batch of a message, validated in full; its buffers are those of the message.

        Raises:
            InvalidBatchError: for one with values out of bounds; the next may be better.
            ArrowError: for one that contradicts the schema or itself; the stream cannot go on.
        """
        for _, dictionary in self._unread:
            self._source.push(dictionary)
        self._unread.clear()
        self._source.push(encapsulate(message.header, message.body))
        try:
            rows = self._reader.read_next_batch()
        except StopIteration:
            raise ArrowError("the record batch cannot be read: dictionaries are missing") from None
        except (pa.ArrowException, OSError, MemoryError) as error:
            raise ArrowError(f"the record batch cannot be read: {error}") from error
        try:
            if self._schema.views:
                rows.validate()
                self._check_views(rows, len(message.body))
            rows.validate(full=True)
        except pa.ArrowException as error:
            raise InvalidBatchError(f"invalid Arrow data: {error}") from error
        return rows

    def _check_views(self, rows: pa.RecordBatch, body_bytes: int) -> None:
        """Views may share their text, so that a batch of 2 MiB spells out 64 GiB."""
        most = body_bytes + self.dictionary_bytes + self._limits.max_dictionary_size
        if sum(_view_text(rows.column(index)) for index in self._schema.views) > most:
            raise InvalidBatchError("string views repeat too much text; send dictionaries or plain strings")


class _Schema(NamedTuple):
    """What a stream needs of its schema.

    `views` are the columns that hold views, or a dictionary of them; `widths` are those that `find_numbers`
    takes.
    """

    layout: Layout
    metadata: dict[bytes, bytes]
    views: tuple[int, ...]
    slow: bool
    arrow: pa.Schema
    widths: npt.NDArray[np.int64] | None


@lru_cache(maxsize=64)
def _read_schema(header: bytes, limits: RecordLimits) -> _Schema:
    """Read a schema and its layout. Kept, for a client that opens a stream per batch sends it each time."""
    flatbuffer = memoryview(header)
    # An entry of metadata whose texts are shared takes 16 bytes, and counts as 256 and its texts.
    check_schema(flatbuffer, min(32 * len(header), 2**16 + 2**11 * limits.max_columns))
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(encapsulate(flatbuffer, flatbuffer[:0])))
        names = schema.names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ArrowError(f"the schema cannot be read: {error}") from error
    if len(names) > limits.max_columns:
        raise LayoutError(
            f"{len(names)} columns are more than {limits.max_columns} (receivers.records.max_columns)"
        )
    longest = max(names, key=len, default="")
    if len(longest) > limits.max_name_length:
        raise LayoutError(
            f"column {longest[:20]!r}... has a name of {len(longest)} characters, more than "
            f"{limits.max_name_length} (receivers.records.max_name_length)"
        )
    return _Schema(
        layout_of(schema),
        schema.metadata or {},
        tuple(index for index, kind in enumerate(schema.types) if _is_view(storage_type(kind))),
        not all(map(_is_fixed_width, schema.types)),
        schema,
        bit_widths(schema) if is_little_endian(flatbuffer) else None,
    )


def _identity(path: tuple[str, ...] | None, metadata: dict[bytes, bytes], limits: RecordLimits) -> Identity:
    wanted = 'the descriptor must be the path ["records", MODEL, VERSION]'
    if path is None or len(path) != 3 or path[0] != "records" or not path[1]:
        raise ArrowError(f"{wanted}, not {list(path) if path is not None else 'missing'}")
    try:
        stage, source = (metadata.get(key, b"").decode() for key in (b"stage", b"data_source"))
    except UnicodeDecodeError:
        raise ArrowError("the schema's stage and data_source must be UTF-8") from None
    identity = Identity(path[1], path[2], stage, source)
    for name, value in identity._asdict().items():
        if len(value) > limits.max_name_length or not value.isprintable():
            raise ArrowError(
                f"{name} must be printable and of at most {limits.max_name_length} characters "
                "(receivers.records.max_name_length)"
            )
    return identity


def _is_fixed_width(kind: pa.DataType) -> bool:
    return pa.types.is_primitive(kind) or pa.types.is_fixed_size_list(kind)


def _is_view(kind: pa.DataType) -> bool:
    return pa.types.is_string_view(kind) or pa.types.is_binary_view(kind)


def _view_text(column: Any) -> int:
    """Bytes of text that the views of a column, or of its dictionary, point to."""
    while isinstance(column, pa.ExtensionArray | pa.DictionaryArray):
        column = column.storage if isinstance(column, pa.ExtensionArray) else column.dictionary
    end = column.offset + len(column)
    views = column.buffers()[1]
    if views is None:
        return 0
    lengths = np.frombuffer(views, np.uint32, 4 * end)[::4][column.offset :]
    if column.null_count:
        lengths = lengths[column.is_valid().to_numpy(zero_copy_only=False)]
    return int(lengths[lengths > _VIEW_INLINE].sum(dtype=np.int64))


class _Source:
    """A file of which pyarrow's stream reader reads no further than what has been pushed.

    `read_buffer` hands out slices of the pushed bytes, so that a batch is not copied.
    """

    closed = False

    def __init__(self, first: bytes) -> None:
        self._pushed = deque([pa.py_buffer(first)])
        self._position = 0

    def push(self, message: bytes) -> None:
        self._pushed.append(pa.py_buffer(message))

    def read_buffer(self, size: int) -> pa.Buffer:
        if not self._pushed:
            return pa.py_buffer(b"")
        message = self._pushed[0]
        # The reader asks for prefix, header and body apart, never across messages.
        part = message.slice(self._position, min(size, message.size - self._position))
        self._position += part.size
        if self._position == message.size:
            self._pushed.popleft()
            self._position = 0
        return part

    def read(self, size: int) -> bytes:
        return self.read_buffer(size).to_pybytes()

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True
