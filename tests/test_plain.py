"""Batches left as they came are those that Arrow reads, and nothing outside of their bytes."""

from __future__ import annotations

import struct

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tidegauge.layout import layout_of
from tidegauge.plain import Plain, bit_widths
from tidegauge.processors.drift.counts import Counts, Plan, Tables
from tidegauge.reference import ReferenceBuilder
from tidegauge.wire.numbers import find_numbers

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


def left(sent, schema, shift=0):
    """What is found in the batch's message, whose body begins after `shift` more bytes than need be."""
    raw = sent.serialize().to_pybytes()
    (size,) = struct.unpack_from("<i", raw, 4)
    head, body = raw[8 : 8 + size], raw[8 + size :]
    data = field(2, head) + bytes.fromhex("1800") * shift + field(1000, body)
    widths = bit_widths(schema)
    spots = np.empty((len(widths), 4), np.int64)
    rows = find_numbers(np.frombuffer(data, np.uint8), widths, spots)
    return Plain(data, schema, rows, spots)


def varint(value):
    low = value & 0x7F
    return bytes([low]) if value < 0x80 else bytes([low | 0x80]) + varint(value >> 7)


def field(number, payload):
    return varint(number << 3 | 2) + varint(len(payload)) + payload


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
    assume(sent.num_rows)  # a batch without rows is left to Arrow
    found = left(sent, sent.schema, shift)
    assert found.num_rows == sent.num_rows
    assert found.rows.equals(sent)
    found.rows.validate(full=True)
    for index in range(sent.num_columns):
        assert found.column(index).equals(sent.column(index))


REFERENCE = pa.record_batch({"a": np.arange(100.0), "b": np.arange(100.0), "c": range(100), "d": range(100)})


@given(batches(), st.integers(0, 7))
def test_what_is_folded_is_what_arrow_has(sent, shift):
    assume("g" not in sent.schema.names and sent.num_rows)  # times are no feature
    builder = ReferenceBuilder(bins=8, max_categories=10)
    builder.update(REFERENCE, layout_of(REFERENCE.schema))
    tables = Tables(builder.build("m", "1", "file"))
    plan = Plan(layout_of(sent.schema), sent.schema, tables)
    one, other = Counts(tables), Counts(tables)
    plan.fold([plan.prepare(sent, one)] * 2, one)
    content = left(sent, sent.schema, shift)
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
