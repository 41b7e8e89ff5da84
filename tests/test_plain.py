"""Batches left as they came are those that Arrow reads, and nothing outside of their bytes."""

from __future__ import annotations

import struct

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tidegauge.layout import layout_of
from tidegauge.plain import Plain, bit_widths, plain
from tidegauge.processors.drift.counts import Counts, Plan, Tables
from tidegauge.reference import ReferenceBuilder
from tidegauge.stats.spots import LENGTH, VALIDITY, VALUES
from tidegauge.wire.arrow import ArrowError, FlightMessage, message_header

TYPES = {
    "a": pa.float64(),
    "b": pa.float32(),
    "c": pa.int64(),
    "d": pa.int32(),
    "e": pa.int8(),
    "f": pa.bool_(),
    "g": pa.timestamp("ms"),
    "h": pa.uint16(),
}


def message(rows, shift=0):
    """A batch's message, its body `shift` bytes off where it would be aligned."""
    raw = rows.serialize().to_pybytes()
    (size,) = struct.unpack_from("<i", raw, 4)
    whole = bytes(shift) + raw[8 + size :]
    return FlightMessage(None, memoryview(raw[8 : 8 + size]), memoryview(whole)[shift:])


def left(sent, schema):
    header = message_header(sent)
    return plain(sent.body, schema, bit_widths(schema), header.rows, header.nodes, header.buffers)


@st.composite
def batches(draw):
    rows = draw(st.integers(0, 70))
    random = np.random.default_rng(draw(st.integers(0, 999)))
    columns = {}
    for name in draw(st.sets(st.sampled_from(sorted(TYPES)), min_size=1)):
        values = random.integers(0, 2 if name == "f" else 100, rows).tolist()
        missing = random.random(rows) < draw(st.sampled_from([0, 0.5, 1]))
        cells = [None if gone else value for gone, value in zip(missing, values, strict=True)]
        columns[name] = pa.array(cells, pa.int64()).cast(TYPES[name])
    batch = pa.RecordBatch.from_pydict(columns)
    return batch.slice(draw(st.integers(0, rows)))


@given(batches(), st.integers(0, 7))
def test_rows_are_those_that_were_sent(sent, shift):
    found = left(message(sent, shift), sent.schema)
    assert isinstance(found, Plain)
    assert found.num_rows == sent.num_rows
    assert found.rows.equals(sent)
    found.rows.validate(full=True)
    for index in range(sent.num_columns):
        assert found.column(index).equals(sent.column(index))


REFERENCE = pa.record_batch({"a": np.arange(100.0), "b": np.arange(100.0), "c": range(100), "d": range(100)})


@given(batches(), st.integers(0, 7))
def test_what_is_folded_is_what_arrow_has(sent, shift):
    assume("g" not in sent.schema.names)  # times are no feature
    builder = ReferenceBuilder(bins=8, max_categories=10)
    builder.update(REFERENCE, layout_of(REFERENCE.schema))
    tables = Tables(builder.build("m", "1", "file"))
    plan = Plan(layout_of(sent.schema), sent.schema, tables)
    one, other = Counts(tables), Counts(tables)
    plan.fold([plan.prepare(sent, one)] * 2, one)
    content = left(message(sent, shift), sent.schema)
    plan.fold([plan.prepare(content, other)] * 2, other)
    for name, numbers in vars(one).items():
        assert np.array_equal(numbers, vars(other)[name]), name


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.list_(pa.float32(), 4),
        pa.decimal128(5),
        pa.null(),
    ],
)
def test_other_columns_than_numbers_are_left_to_arrow(kind):
    assert bit_widths(pa.schema({"x": pa.float64(), "y": kind})) is None


@settings(max_examples=300)
@given(st.integers(0, 2**32), st.integers(0, 3), st.binary(min_size=1, max_size=8))
def test_a_header_that_lies_reads_nothing_outside_of_the_body(place, shift, lie):
    """Any bytes of the header replaced: refused, or within the body, and what Arrow makes of it too."""
    rows = pa.record_batch({"a": [1.5, None, 3.0], "e": pa.array([1, 2, 3], pa.int8())})
    honest = message(rows, shift)
    header = bytearray(honest.header)
    begin = place % len(header)
    header[begin : begin + len(lie)] = lie[: len(header) - begin]
    sent = FlightMessage(None, memoryview(bytes(header)), honest.body)
    try:
        found = left(sent, rows.schema)
    except ArrowError:
        return
    if found is None:
        return
    base = pa.py_buffer(sent.body).address
    for spot, width in zip(found.spots.tolist(), bit_widths(rows.schema).tolist(), strict=True):
        assert base <= spot[VALUES] <= base + len(sent.body) - spot[LENGTH] * width // 8
        assert spot[VALIDITY] == 0 or base <= spot[VALIDITY] < base + len(sent.body)
        assert spot[LENGTH] == found.num_rows
    found.rows.validate(full=True)


@pytest.mark.parametrize(
    ("nodes", "buffers", "rows"),
    [
        ([4, 0], [0, 0, 0, 24], 3),  # a length that is not the batch's
        ([3, 4], [0, 8, 8, 24], 3),  # more nulls than rows
        ([3, 0], [0, 0, 0, 23], 3),  # values too short
        ([3, 0], [0, 0, 16, 24], 3),  # beyond the body
        ([3, 0], [0, 0, 2**64 - 8, 24], 3),  # before it, by wrapping around
        ([3, 1], [0, 0, 0, 24], 3),  # nulls without bits
        ([2**61, 0], [0, 0, 0, 32], 2**61),  # bytes that wrap around to none
        ([3, 0], [0, 0], 3),  # a buffer too few
        ([3, 0, 3, 0], [0, 0, 0, 24], 3),  # a node too many
        ([3, 0], [0, 0, 0, 24], -1),
    ],
)
def test_what_contradicts_itself_is_refused(nodes, buffers, rows):
    schema = pa.schema({"a": pa.float64()})
    given_ = (np.array(part, np.uint64) for part in (nodes, buffers))
    assert plain(memoryview(bytes(32)), schema, bit_widths(schema), rows, *given_) is None
