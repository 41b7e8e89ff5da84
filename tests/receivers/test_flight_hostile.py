"""Flight's DoPut against bytes that no fair client sends: one batch, or one stream, is lost at most."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidegauge import config
from tidegauge.receivers.record_stream import RecordStream
from tidegauge.units import Size
from tidegauge.wire.arrow import flight_message, message_header

# Hostile batches: one is refused, and the stream goes on, where it can


def patched(header: bytes, old: int, new: int) -> bytes:
    """A header with each 64-bit number `old` replaced."""
    raw = header.replace(struct.pack("<q", old), struct.pack("<q", new))
    assert raw != header
    return raw


def goes_on(
    agent: Any, schema: bytes, hostile: list[bytes], good: list[bytes], reason: str, words: str
) -> int:
    """A batch is refused in an answer, and the next one taken. Returns the rows said to be refused."""
    before, known = agent.totals(), agent.rejected(reason)
    outcome = agent.call([schema, *hostile, *good])
    assert outcome.code is grpc.StatusCode.OK
    refused, taken = outcome.answers
    assert refused["accepted_rows"] == 0
    assert words in refused["reason"]
    assert taken["rejected_rows"] == 0
    rows = int(refused["rejected_rows"])
    assert agent.rejected(reason) - known == rows
    more = [b - a for a, b in zip(before, agent.totals(), strict=True)]
    assert more == [rows + taken["accepted_rows"], taken["accepted_rows"], rows]
    agent.is_well()
    return rows


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_compressed_batches_are_refused_unread(agent: Any, arrow: Any, codec: str) -> None:
    bomb = pa.record_batch({"x": np.zeros(2**17)})
    schema, (header, body) = arrow.parts([bomb], compression=codec)
    huge = struct.pack("<q", 2**40) + body[8:]  # what an unaware reader would allocate
    _, good = arrow.stream([arrow.numbers(3)])
    before = pa.default_memory_pool().max_memory()
    first = arrow.flight_data(*schema, path=arrow.PATH)
    rows = goes_on(
        agent, first, [arrow.flight_data(header, huge)], [good], "compressed", "gRPC's own compression"
    )
    assert rows in (2**17, 1)  # as many as the bytes can hold, or one
    assert pa.default_memory_pool().max_memory() - before < 2**20


def test_compressed_dictionaries_end_the_stream(agent: Any, arrow: Any) -> None:
    agent.undecodable("compressed", arrow.stream([arrow.coded(["red"] * 50, 0)], compression="zstd"))


def test_compression_hidden_in_v4_metadata_ends_the_stream(agent: Any, arrow: Any) -> None:
    schema, _ = arrow.parts([arrow.numbers(1)])
    old = arrow.parts([arrow.numbers(1)], metadata_version=pa.ipc.MetadataVersion.V4)
    agent.undecodable("V5", arrow.framed([schema, old[1]]))


@pytest.mark.parametrize("rows", [2**40, 2**62, -1, 1_000_001])
def test_rows_beyond_the_limit_are_refused_unread(agent: Any, arrow: Any, rows: int) -> None:
    schema, (header, body), (_, _) = arrow.parts([arrow.numbers(5), arrow.numbers(3)])
    _, good = arrow.stream([arrow.numbers(3)])
    hostile = arrow.flight_data(patched(header, 5, rows), body)
    first = arrow.flight_data(*schema, path=arrow.PATH)
    assert goes_on(agent, first, [hostile], [good], "too_large", "(receivers.records.max_rows)") == 1


def test_rows_that_are_not_there_are_refused(agent: Any, arrow: Any) -> None:
    schema, (header, body) = arrow.parts([arrow.numbers(5)])
    _, good = arrow.stream([arrow.numbers(3)])
    hostile = arrow.flight_data(patched(header, 5, 999_999), body)
    rows = goes_on(
        agent, arrow.flight_data(*schema, path=arrow.PATH), [hostile], [good], "invalid", "invalid Arrow data"
    )
    assert rows == 1


def test_columns_of_unequal_length_end_the_stream(agent: Any, arrow: Any) -> None:
    schema, (header, body) = arrow.parts([arrow.numbers(5)])
    at = header.rindex(struct.pack("<q", 5))
    hostile = arrow.flight_data(header[:at] + struct.pack("<q", 4) + header[at + 8 :], body)
    agent.undecodable("Array length did not match", [arrow.flight_data(*schema, path=arrow.PATH), hostile])


def test_indices_outside_the_dictionary_are_refused(agent: Any, arrow: Any) -> None:
    (schema, dictionary, (header, body)) = arrow.parts([arrow.coded(["red", "blue"], 0, 1)])
    first, values, good = arrow.framed([schema, dictionary, (header, body)])
    for index in (2, 127, 255):
        hostile = arrow.flight_data(header, bytes([index]) + body[1:])
        goes_on(agent, first, [values, hostile], [good], "invalid", "invalid Arrow data")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_text_that_is_not_utf8_is_refused(agent: Any, arrow: Any, kind: pa.DataType) -> None:
    batch = pa.record_batch({"x": pa.array(["a text of some length, not inlined", "b"], kind)})
    schema, (header, body) = arrow.parts([batch])
    hostile = arrow.flight_data(header, body.replace(b"text", b"te\xfft"))
    first, good = arrow.framed([schema, (header, body)])
    goes_on(agent, first, [hostile], [good], "invalid", "UTF8")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
@pytest.mark.parametrize("offset", [1000, -1, 2**31 - 1])
def test_text_outside_its_buffer_is_refused(agent: Any, arrow: Any, kind: pa.DataType, offset: int) -> None:
    schema, (header, body) = arrow.parts([pa.record_batch({"x": pa.array(["ab", "cd"], kind)})])
    word = "<i" if kind == pa.string() else "<q"
    hostile = arrow.flight_data(header, body.replace(struct.pack(word, 4), struct.pack(word, offset)))
    first, good = arrow.framed([schema, (header, body)])
    goes_on(agent, first, [hostile], [good], "invalid", "invalid Arrow data")


def views(length: int, rows: int) -> pa.Array[Any]:
    """Views of which all but the nulls, every other one, show the same text of `length` bytes."""
    view = struct.pack("<i4sii", length, b"tttt", 0, 0)
    empty = struct.pack("<i4sii", 2**31 - 1, b"junk", -1, -1)  # a null's view may hold anything
    buffers = [b"\x55" * (rows // 8), (view + empty) * (rows // 2), b"t" * length]
    return pa.Array.from_buffers(pa.string_view(), rows, [pa.py_buffer(raw) for raw in buffers])


def coded_views(length: int, rows: int) -> pa.Array[Any]:
    return pa.DictionaryArray.from_arrays(pa.array([0, 1, 2], pa.int16()), views(length, rows))


@pytest.mark.parametrize("column", [views, coded_views])
def test_views_that_repeat_a_text_without_end_are_refused(
    agent: Any, arrow: Any, column: Callable[..., Any]
) -> None:
    schema, *hostile = arrow.stream([pa.record_batch({"x": column(2**16, 4096)})])
    assert sum(map(len, hostile)) < 2**18  # which spells out 128 MiB
    _, *good = arrow.stream([pa.record_batch({"x": column(100, 80)})])
    goes_on(agent, schema, hostile, good, "invalid", "repeat too much text")


def test_views_may_share_some_text(agent: Any, arrow: Any) -> None:
    assert agent.put([pa.record_batch({"x": views(1000, 8192)})]) == [arrow.accepted(8192)]


def test_bodies_that_contradict_their_headers_end_the_stream(agent: Any, arrow: Any) -> None:
    schema, (header, body) = arrow.parts([arrow.numbers(5)])
    first = arrow.flight_data(*schema, path=arrow.PATH)
    for other in (b"", body[:-1], body + bytes(8)):
        agent.undecodable("is declared", [first, arrow.flight_data(header, other)])
    agent.undecodable(
        "is declared", [arrow.flight_data(schema[0], arrow.flight_data(header, body), arrow.PATH), first]
    )


def test_buffers_that_share_bytes_end_the_stream(agent: Any, arrow: Any) -> None:
    schema, (header, body) = arrow.parts([arrow.numbers(5, columns=2)])
    shared = arrow.flight_data(patched(header, 40, 80), body)
    agent.undecodable("share parts of it", [arrow.flight_data(*schema, path=arrow.PATH), shared])


def test_dictionaries_have_a_limit_that_growth_counts_against(agent_type: Any, arrow: Any) -> None:
    batches = [arrow.coded([f"{'x' * 1000} {n}" for n in range(size)], 0) for size in range(1, 100)]
    with agent_type(max_dictionary_size=Size("16KiB")) as agent:
        outcome = agent.call(arrow.stream(batches, emit_dictionary_deltas=True))
        assert outcome.code is grpc.StatusCode.INVALID_ARGUMENT
        assert "(receivers.records.max_dictionary_size); send plain strings" in outcome.details
        assert 5 < agent.totals()[1] < 16
        agent.is_well()
        # Replacing a dictionary frees what it took.
        replaced = [arrow.coded([f"{'x' * 1000} {n}"], 0) for n in range(40)]
        assert agent.put(replaced) == [arrow.accepted(1)] * 40


def test_dictionaries_without_a_batch_do_not_pile_up(arrow: Any) -> None:
    schema, dictionary, batch = arrow.stream([arrow.coded(["x" * 10_000], 0)])
    limits = config.RecordLimits(max_dictionary_size=Size("64KiB"))
    reader = RecordStream(flight_message(schema), limits)
    message = flight_message(dictionary)
    header = message_header(message)
    tracemalloc.start()
    for _ in range(2000):
        reader.add_dictionary(header, message)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 2**17
    assert reader.read(flight_message(batch)).to_pylist() == [{"colour": "x" * 10_000}]


# Bytes that nobody wrote


PIECES = 3


@pytest.fixture(scope="module")
def mixed(arrow: Any) -> list[bytes]:
    """A schema, a dictionary and a batch, which belong together."""
    columns = {"x": [1.0, None], "c": pa.array(["a", "long enough text"]).dictionary_encode()}
    messages: list[bytes] = arrow.stream([pa.record_batch(columns)])
    assert len(messages) == PIECES
    return messages


def survives(agent: Any, channel: grpc.Channel, messages: list[bytes]) -> None:
    """The call ends with a plain status, and every row of it is counted once."""
    before = agent.totals()
    outcome = agent.call_on(channel, messages)
    received, taken, rejected = (b - a for a, b in zip(before, agent.totals(), strict=True))
    assert outcome.code in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT), outcome
    assert taken == sum(answer["accepted_rows"] for answer in outcome.answers)
    told = sum(answer["rejected_rows"] for answer in outcome.answers)
    assert rejected == told + (outcome.code is grpc.StatusCode.INVALID_ARGUMENT)
    assert received == taken + rejected


@pytest.fixture(scope="module")
def channel(module_agent: Any) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(module_agent.address) as channel:
        yield channel


def test_a_stream_cut_anywhere(agent: Any, channel: grpc.Channel, mixed: list[bytes]) -> None:
    for number, message in enumerate(mixed):
        for cut in range(len(message)):
            survives(agent, channel, [*mixed[:number], message[:cut]])
    agent.is_well()


FEW = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FEW
@given(messages=st.lists(st.binary(max_size=100) | st.sampled_from(range(PIECES)), max_size=5))
def test_random_messages(
    agent: Any, channel: grpc.Channel, mixed: list[bytes], messages: list[bytes | int]
) -> None:
    survives(agent, channel, [mixed[one] if isinstance(one, int) else one for one in messages])


@FEW
@given(
    number=st.integers(0, PIECES - 1),
    changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(1, 255)), min_size=1, max_size=4),
)
def test_flipped_bytes(
    agent: Any, channel: grpc.Channel, mixed: list[bytes], number: int, changes: list[tuple[int, int]]
) -> None:
    message = bytearray(mixed[number])
    for at, flip in changes:
        message[at % len(message)] ^= flip
    survives(agent, channel, [*mixed[:number], bytes(message), *mixed[number + 1 :]])


def test_after_all_that_the_agent_is_well(agent: Any) -> None:
    agent.is_well()
