"""What a message may say of its columns, and what is left to Arrow's own reader."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tidegauge.wire.numbers import NOT_FOUND, find_numbers

ROWS = pa.record_batch({"a": [1.0, 2.0, 3.0]})
NODES, BUFFERS = [3, 0], [0, 0, 0, 24]


def parts(rows: pa.RecordBatch, **options: Any) -> tuple[bytes, bytes]:
    """The header and the body of a batch's message."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(rows)
    reader = pa.ipc.MessageReader.open_stream(sink.getvalue())
    reader.read_next_message()
    found = reader.read_next_message()
    return found.metadata.to_pybytes(), found.body.to_pybytes()


def rows_in(raw: bytes, *widths: int) -> int:
    spots = np.empty((len(widths), 4), np.int64)
    return int(find_numbers(np.frombuffer(raw, np.uint8), np.array(widths), spots))


def altered(old: list[int], new: list[int]) -> tuple[bytes, bytes]:
    """ROWS' message with a vector of structs that says something else."""
    header, body = parts(ROWS)
    form = "<" + "q" * len(old)
    found = struct.pack(form, *old)
    assert header.count(found) == 1
    return header.replace(found, struct.pack(form, *new)), body + bytes(8)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (NODES, [4, 0]),  # a length that is not the batch's
        (NODES, [3, 4]),  # more nulls than rows
        (NODES, [3, -1]),
        (NODES, [3, 1]),  # nulls without bits
        (BUFFERS, [0, 8, 8, 24]),  # both together are more than the body
        (BUFFERS, [0, 0, 0, 23]),  # values too short
        (BUFFERS, [0, 0, 16, 24]),  # beyond the body
        (BUFFERS, [0, 0, -8, 24]),  # before it
        (BUFFERS, [-8, 8, 0, 24]),
        (BUFFERS, [0, 0, 0, 2**62]),
    ],
)
def test_what_contradicts_itself_is_not_found(wire: SimpleNamespace, old: list[int], new: list[int]) -> None:
    header, body = altered(old, new)
    assert rows_in(wire.message(2, header) + wire.message(1000, body[:24]), 64) == NOT_FOUND
    header, body = parts(ROWS)
    assert rows_in(wire.message(2, header) + wire.message(1000, body), 64) == 3


def test_what_arrow_has_to_read_is_not_found(wire: SimpleNamespace) -> None:
    def rows_of(rows: pa.RecordBatch, *widths: int, **options: Any) -> int:
        header, body = parts(rows, **options)
        return rows_in(wire.message(2, header) + wire.message(1000, body), *widths)

    assert rows_of(ROWS, 64) == 3
    assert rows_of(ROWS, 32) == 3  # longer than need be
    assert rows_of(pa.record_batch({"a": np.arange(100.0)}), 64, compression="lz4") == NOT_FOUND
    assert rows_of(ROWS, 64, metadata_version=pa.ipc.MetadataVersion.V4) == NOT_FOUND
    assert rows_of(ROWS, 64, 64) == NOT_FOUND  # a column too few
    assert rows_of(pa.record_batch({"a": ["x", "y", "z"]}), 64) == NOT_FOUND  # three buffers
    assert rows_of(ROWS.slice(0, 0), 64) == NOT_FOUND
    assert rows_in(b"", 64) == NOT_FOUND


def test_parts_come_in_any_order_beside_unknown_fields_but_once(wire: SimpleNamespace) -> None:
    header, body = (wire.message(number, part) for number, part in zip((2, 1000), parts(ROWS), strict=True))
    other = wire.message(3, b"of the application") + wire.number(77, 5)
    assert rows_in(body + other + header, 64) == 3
    assert rows_in(header + body + header, 64) == NOT_FOUND
    assert rows_in(header + body + body, 64) == NOT_FOUND
    assert rows_in(header, 64) == NOT_FOUND
    assert rows_in(body, 64) == NOT_FOUND
    assert rows_in(header + body[:-1], 64) == NOT_FOUND
