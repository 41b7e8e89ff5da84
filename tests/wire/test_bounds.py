"""No reader looks outside of its message: run as plain Python, where every index is checked."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numba
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from tidegauge.config import IdentityAttributes, Timings
from tidegauge.stats.spots import OFFSET, VALIDITY, VALUES
from tidegauge.wire import attributes, counts, numbers, protobuf, schema, traces
from tidegauge.wire.arrow import flight_message, message_header

KEYS = attributes.Keys.of(IdentityAttributes(), Timings())
METRICS = schema.Schema(ExportMetricsServiceRequest.DESCRIPTOR)
READERS = ("protobuf", "schema", "marks", "attributes", "spans", "counts", "traces", "numbers")


class Checked:
    """An array of numbers that takes no index from its end and none behind it."""

    def __init__(self, content: Any) -> None:
        self._content = content
        self.size = len(content)
        self.ctypes = SimpleNamespace(data=0)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self.size:
            raise AssertionError(f"index {index} into {self.size} elements")
        return int(self._content[index])


def words() -> ModuleType:
    """The module of that name in Python, a byte at a time."""
    module = ModuleType("tidegauge.wire.words")
    mask = 2**64 - 1

    def load(buf: Checked, pos: int) -> np.uint64:
        return np.uint64(sum(buf[int(pos) + index] << 8 * index for index in range(8)))

    def swap(value: np.uint64) -> np.uint64:
        return np.uint64(int.from_bytes(int(value).to_bytes(8, "little"), "big"))

    def fold(one: np.uint64, other: np.uint64) -> np.uint64:
        product = int(one) * int(other)
        return np.uint64((product ^ product >> 64) & mask)

    module.__dict__.update(load=load, swap=swap, fold=fold)
    return module


@pytest.fixture(scope="module")
def plain() -> Iterator[SimpleNamespace]:
    """The readers' modules once more, not compiled."""
    names = [f"tidegauge.wire.{name}" for name in (*READERS, "words")]
    compiled = {name: sys.modules.pop(name) for name in names}
    sys.modules["tidegauge.wire.words"] = words()
    numba.config.DISABLE_JIT = True
    try:
        modules = {name: importlib.import_module(f"tidegauge.wire.{name}") for name in READERS}
    finally:
        numba.config.DISABLE_JIT = False
        sys.modules.update(compiled)
        for name, module in compiled.items():
            setattr(sys.modules["tidegauge.wire"], name.rpartition(".")[2], module)
    for module, constant in (("traces", "_SCOPE_TEXT"), ("traces", "_SCOPE_ENDS"), ("marks", "_NAMES")):
        setattr(modules[module], constant, Checked(getattr(modules[module], constant)))
    with np.errstate(over="ignore"):
        yield SimpleNamespace(**modules)


def records(count: int, kind: Any) -> Any:
    return np.zeros(count, kind).view(np.recarray)


def shown(*tables: Any) -> list[list[str]]:
    """Every value but what pads the rows, so that NaN equals NaN."""
    return [[str(table[name].tolist()) for name in table.dtype.names] for table in tables]


def plain_scan(plain: SimpleNamespace, raw: bytes) -> Any:
    """As `traces.scan`, or the error's number."""
    spans = plain.counts._leaves(Checked(raw), False)
    if spans < 0:
        return int(spans)
    keys = (Checked(KEYS.text), KEYS.attributes.view(np.recarray), Checked(KEYS.by_length), KEYS.seed)
    found = (records(traces._SLOTS, attributes.FOUND), records(traces._SLOTS, attributes.FOUND))
    columns, marks = records(spans, traces.SPAN), records(len(raw), traces.MARK)
    count, marked = plain.traces._request(
        Checked(raw), Checked(traces._SCHEMA), *keys, *found, columns, marks
    )
    return shown(columns, marks[:marked]) if count >= 0 else int(count)


def compiled_scan(raw: bytes) -> Any:
    try:
        scanned = traces.scan(raw, counts.count_records(raw), KEYS)
    except ValueError as error:
        return next(number for number, reason in protobuf.ERRORS.items() if reason == str(error))
    return shown(*scanned)


def broken(whole: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Requests cut anywhere, with a few bytes changed."""
    changes = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=3)

    def mutate(raw: bytes, changes: list[tuple[int, int]], cut: int) -> bytes:
        mutated = bytearray(raw)
        for place, byte in changes:
            mutated[place % len(raw)] = byte
        return bytes(mutated[: len(raw) - cut % len(raw)])

    cut = st.one_of(st.just(0), st.integers(0, 10**6))
    return st.builds(mutate, whole.filter(bool), changes, cut)


def test_the_scanner_reads_inside_of_the_request_and_compiled_it_reads_the_same(
    plain: SimpleNamespace, wire: SimpleNamespace
) -> None:
    @settings(max_examples=150, deadline=None)
    @given(st.one_of(broken(wire.traces), st.binary(max_size=40)))
    def check(raw: bytes) -> None:
        assert plain_scan(plain, raw) == compiled_scan(raw)

    check()


def test_counts_and_validation_read_inside_of_the_request(
    plain: SimpleNamespace, wire: SimpleNamespace
) -> None:
    @settings(max_examples=150, deadline=None)
    @given(st.one_of(broken(wire.metrics), st.binary(max_size=40)))
    def check(raw: bytes) -> None:
        assert plain.counts._leaves(Checked(raw), True) == counts._leaves(protobuf.view(raw), True)
        ours = plain.schema._validate_root(Checked(raw), Checked(METRICS.table))
        assert ours == schema._validate_root(protobuf.view(raw), METRICS.table)

    check()


def test_decimals_read_inside_of_their_text(plain: SimpleNamespace) -> None:
    compiled = sys.modules["tidegauge.wire.marks"].__dict__["decimal"]

    @settings(max_examples=300, deadline=None)
    @given(st.text("0123456789.eE+-mnuµs ", max_size=10).map(str.encode))
    def check(raw: bytes) -> None:
        found = plain.marks.decimal(Checked(raw), 0, len(raw))
        assert np.array_equal(found, compiled(protobuf.view(raw), 0, len(raw)), equal_nan=True)

    check()


ROWS = pa.record_batch({"a": [1.5, None, 3.0], "b": pa.array([1, 2, 3], pa.int8())})
_SERIALIZED = ROWS.serialize().to_pybytes()
_HEAD = 8 + int.from_bytes(_SERIALIZED[4:8], "little")


def test_a_batch_of_numbers_is_found_inside_of_its_message(
    plain: SimpleNamespace, wire: SimpleNamespace
) -> None:
    message = wire.message(2, _SERIALIZED[8:_HEAD]) + wire.message(1000, _SERIALIZED[_HEAD:])
    widths = np.array([64, 8])

    @settings(max_examples=300, deadline=None)
    @given(st.one_of(broken(st.just(message)), st.binary(max_size=40)))
    @example(message)
    def check(raw: bytes) -> None:
        ours, its = np.zeros((2, 2, 4), np.int64)
        rows = numbers.find_numbers(np.frombuffer(raw, np.uint8), widths, ours)
        assert rows == plain.numbers.find_numbers(Checked(raw), widths, its)
        assert rows == 3 or raw != message
        if rows >= 0:
            assert (ours[:, OFFSET:] == its[:, OFFSET:]).all()
            assert (its[:, VALUES] + (rows * widths + 7) // 8 <= len(raw)).all()
            assert (its[:, VALIDITY] + (rows + 7) // 8 <= len(raw)).all()
            assert message_header(flight_message(raw)).rows == rows

    check()


def test_an_index_outside_is_noticed(plain: SimpleNamespace) -> None:
    for index in (-1, 3):
        with pytest.raises(AssertionError, match="into 3 elements"):
            Checked(b"abc")[index]
    with pytest.raises(AssertionError, match="index 8 into 8"):
        plain.protobuf.word(Checked(bytes(8)), 1)
