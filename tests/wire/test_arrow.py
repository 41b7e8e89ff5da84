"""The reader of Flight and Arrow framing against protobuf's own codec, pyarrow and hostile headers."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from grpc_tools import protoc
from hypothesis import example, given
from hypothesis import strategies as st

from tidegauge.wire.arrow import (
    DICTIONARY,
    RECORDS,
    SCHEMA,
    ArrowError,
    FlightMessage,
    check_schema,
    encapsulate,
    flight_message,
    message_header,
    put_result,
)

PROTO = Path(__file__).parents[2] / "proto"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The message classes of proto/flight.proto."""
    out = tmp_path_factory.mktemp("proto") / "flight.bin"
    arguments = ["protoc", f"-I{PROTO}", f"--descriptor_set_out={out}", str(PROTO / "flight.proto")]
    assert protoc.main(arguments) == 0
    files = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    names = ("FlightData", "FlightDescriptor", "PutResult")
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"arrow.flight.protocol.{name}"))
        for name in names
    }


short = st.binary(max_size=300)


@given(
    path=st.none() | st.lists(st.text(max_size=200), max_size=4),
    cmd=short,
    header=short,
    body=short,
    metadata=short,
)
def test_a_message_is_split_as_protobuf_wrote_it(
    compiled: dict[str, Any],
    path: list[str] | None,
    cmd: bytes,
    header: bytes,
    body: bytes,
    metadata: bytes,
) -> None:
    message = compiled["FlightData"](data_header=header, data_body=body, app_metadata=metadata)
    if path is not None:
        message.flight_descriptor.CopyFrom(compiled["FlightDescriptor"](type=1, cmd=cmd, path=path))
    found = flight_message(message.SerializeToString())
    assert found == (None if path is None else tuple(path), header, body)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def delimited(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


field = st.one_of(
    st.builds(delimited, st.sampled_from([1, 2, 3, 4, 1000]), short),
    st.builds(
        delimited, st.just(1), st.builds(delimited, st.just(3), st.text(max_size=9).map(str.encode) | short)
    ),
    st.builds(lambda n, v: varint(n << 3) + varint(v), st.integers(0, 1001), st.integers(0, 2**64 - 1)),
    st.builds(lambda n, v: varint(n << 3 | 1) + v, st.integers(1, 1001), st.binary(min_size=7, max_size=8)),
    st.builds(lambda n, v: varint(n << 3 | 5) + v, st.integers(1, 1001), st.binary(min_size=3, max_size=4)),
    st.just(varint(7 << 3 | 3) + varint(5 << 3) + b"\x01" + varint(7 << 3 | 4)),
    st.binary(max_size=5),
)


@example(raw=delimited(1, delimited(3, b"a")) * 2, cut=0)  # two descriptors are merged
@given(raw=st.lists(field, max_size=6).map(b"".join), cut=st.integers(0, 20))
def test_any_bytes_mean_what_protobuf_says(compiled: dict[str, Any], raw: bytes, cut: int) -> None:
    raw = raw[: len(raw) - cut] if cut < len(raw) else raw
    try:
        message = compiled["FlightData"].FromString(raw)
    except DecodeError:
        with pytest.raises(ArrowError):
            flight_message(raw)
        return
    path = tuple(message.flight_descriptor.path) if message.HasField("flight_descriptor") else None
    assert flight_message(raw) == (path, message.data_header, message.data_body)


@given(text=st.binary(max_size=300) | st.just(bytes(20_000)))
def test_protobuf_reads_an_answer(compiled: dict[str, Any], text: bytes) -> None:
    assert compiled["PutResult"].FromString(put_result(text)).app_metadata == text


def written(batches: list[pa.RecordBatch], **options: Any) -> Iterator[FlightMessage]:
    """What a stream writer makes of batches."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    for message in pa.ipc.MessageReader.open_stream(sink.getvalue()):
        yield FlightMessage(None, memoryview(message.metadata), memoryview(message.body or b""))


def colours(*texts: str) -> pa.RecordBatch:
    return pa.record_batch(
        {"colour": pa.array(texts).dictionary_encode(), "size": pa.array(range(len(texts)))}
    )


def test_headers_of_a_real_stream() -> None:
    batches = [colours("red"), colours("red", "blue"), colours("green")]
    found = [message_header(message) for message in written(batches, emit_dictionary_deltas=True)]
    assert [one.kind for one in found] == [
        SCHEMA,
        DICTIONARY,
        RECORDS,
        DICTIONARY,
        RECORDS,
        DICTIONARY,
        RECORDS,
    ]
    assert [one.rows for one in found if one.kind == RECORDS] == [1, 2, 1]
    assert [one.delta for one in found if one.kind == DICTIONARY] == [False, True, False]
    assert not any(one.compressed for one in found)


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_compression_is_seen(codec: str) -> None:
    _, dictionary, records = (message_header(one) for one in written([colours("a")], compression=codec))
    assert dictionary.compressed
    assert records.compressed


def test_encapsulated_messages_are_a_stream() -> None:
    batches = [colours("red", "blue"), colours("green")]
    raw = b"".join(encapsulate(message.header, message.body) for message in written(batches))
    read = list(pa.ipc.open_stream(raw))
    assert [one.to_pylist() for one in read] == [one.to_pylist() for one in batches]


class Raw(NamedTuple):
    """A vector of numbers or structs: what it says it holds, and its bytes."""

    count: int
    octets: bytes


Node = dict[int, Any] | list[Any] | bytes | Raw
"""A table by slot, a vector of tables, a string, a vector of numbers. A scalar is (format, value)."""


def build(root: Node) -> bytes:
    """A FlatBuffer. A node that is met twice is written once, and its users point to one place."""
    out, placed, links = bytearray(4), {}, [(0, root)]
    for node in in_order(root):
        placed[id(node)] = place(out, node, links)
    for at, node in links:
        struct.pack_into("<I", out, at, placed[id(node)] - at)
    return bytes(out)


def in_order(root: Node) -> list[Node]:
    """Each node once, users first, for offsets only lead forward."""
    met: set[int] = set()
    found: list[Node] = []

    def visit(node: Node) -> None:
        if id(node) in met:
            return
        met.add(id(node))
        children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        for child in children:
            if isinstance(child, Raw) or not isinstance(child, tuple):
                visit(child)
        found.append(node)

    visit(root)
    return found[::-1]


def place(out: bytearray, node: Node, links: list[tuple[int, Node]]) -> int:
    out.extend(bytes(-len(out) % 8))
    if isinstance(node, bytes):
        out.extend(struct.pack("<I", len(node)) + node + b"\0")
        return len(out) - len(node) - 5
    if isinstance(node, Raw):
        out.extend(bytes(4) + struct.pack("<I", node.count) + node.octets)
        return len(out) - len(node.octets) - 4
    if isinstance(node, list):
        at = len(out)
        out.extend(struct.pack("<I", len(node)) + bytes(4 * len(node)))
        links.extend((at + 4 + 4 * index, one) for index, one in enumerate(node))
        return at
    slots = max(node, default=-1) + 1
    vtable, size = len(out), 4 + 2 * slots
    out.extend(bytes(size + -size % 8))
    at = len(out)
    out.extend(struct.pack("<i", at - vtable) + bytes(4))
    for slot, value in node.items():
        struct.pack_into("<H", out, vtable + 4 + 2 * slot, len(out) - at)
        if isinstance(value, tuple) and not isinstance(value, Raw):
            out.extend(struct.pack("<" + value[0], value[1]).ljust(8, b"\0"))
        else:
            links.append((len(out), value))
            out.extend(bytes(8))
    struct.pack_into("<HH", out, vtable, size, len(out) - at)
    return at


def message_of(kind: int, header: Node, body_length: int = 0, metadata: Node | None = None) -> memoryview:
    table = {0: ("h", 4), 1: ("B", kind), 2: header, 3: ("q", body_length)}
    return memoryview(build(table if metadata is None else table | {4: metadata}))


def column(
    name: bytes, kind: int = 2, parameters: Node | None = None, children: Node = b"", metadata: Node = b""
) -> Node:
    """A field of a schema; of type int64 unless told otherwise."""
    parameters = {0: ("i", 64), 1: ("B", 1)} if parameters is None else parameters
    table = {0: name, 1: ("B", 1), 2: ("B", kind), 3: parameters, 5: children, 6: metadata}
    return {slot: value for slot, value in table.items() if value != b""}


def batch_of(rows: int, nodes: list[tuple[int, int]], buffers: list[tuple[int, int]]) -> Node:
    vectors = (
        Raw(len(pairs), b"".join(struct.pack("<qq", *pair) for pair in pairs)) for pairs in (nodes, buffers)
    )
    return {0: ("q", rows), **dict(zip((1, 2), vectors, strict=True))}


def test_the_builder_builds_what_pyarrow_reads() -> None:
    inner = column(b"leaf")
    wide = message_of(
        SCHEMA, {1: [column(b"s", 13, {}, [inner, inner]), column(b"x")], 2: [{0: b"k", 1: b"v"}]}
    )
    schema = pa.ipc.read_schema(pa.py_buffer(encapsulate(wide, memoryview(b""))))
    assert schema.field("s").type == pa.struct([("leaf", pa.int64()), ("leaf", pa.int64())])
    assert schema.metadata == {b"k": b"v"}
    narrow = message_of(SCHEMA, {1: [column(b"x")]})
    batch = message_of(RECORDS, batch_of(2, [(2, 0)], [(0, 0), (0, 16)]), 16)
    raw = encapsulate(narrow, memoryview(b"")) + encapsulate(batch, memoryview(struct.pack("<qq", 5, 7)))
    assert pa.ipc.open_stream(raw).read_all().to_pydict() == {"x": [5, 7]}


def refused(message: FlightMessage, words: str) -> None:
    with pytest.raises(ArrowError, match=words):
        message_header(message)


def test_a_body_of_another_length_is_refused() -> None:
    schema, records = written([pa.record_batch({"x": [1.0]})])
    refused(records._replace(body=records.body[:-1]), "is declared")
    refused(records._replace(body=memoryview(bytes(16))), "is declared")
    # A reader would take what follows a schema for the next message, unchecked.
    refused(schema._replace(body=memoryview(encapsulate(records.header, records.body))), "is declared")


def test_metadata_v4_is_refused_for_it_can_hide_compression() -> None:
    batch = pa.record_batch({"x": [1.0]})
    for message in written([batch], metadata_version=pa.ipc.MetadataVersion.V4):
        refused(message, "V5")


@pytest.mark.parametrize("kind", [0, 4, 5, 255])
def test_other_messages_are_refused(kind: int) -> None:
    refused(FlightMessage(None, message_of(kind, {}), memoryview(b"")), "no place")


def test_headers_without_what_they_must_have() -> None:
    nothing = memoryview(b"")
    refused(FlightMessage(None, message_of(DICTIONARY, {}), nothing), "without values")
    refused(FlightMessage(None, memoryview(build({0: ("h", 4), 1: ("B", 3)})), nothing), "no place")
    refused(FlightMessage(None, nothing, nothing), "not an Arrow message header")


@given(st.binary(max_size=200), st.binary(max_size=20))
def test_random_headers_are_refused_or_read(header: bytes, body: bytes) -> None:
    message = FlightMessage(None, memoryview(header), memoryview(body))
    for read in (lambda: message_header(message), lambda: check_schema(message.header, 2**16)):
        try:
            read()
        except ArrowError:
            continue


@given(st.data())
def test_changed_headers_are_refused_or_read(draw: st.DataObject) -> None:
    messages = list(written([colours("red", "blue")]))
    message = draw.draw(st.sampled_from(messages))
    header = bytearray(message.header)
    for _ in range(draw.draw(st.integers(1, 4))):
        at = draw.draw(st.integers(0, len(header) - 4))
        struct.pack_into(
            "<i", header, at, draw.draw(st.integers(-300, 300) | st.integers(-(2**31), 2**31 - 1))
        )
    for read in (
        lambda: message_header(message._replace(header=memoryview(header))),
        lambda: check_schema(memoryview(header), 2**16),
    ):
        try:
            read()
        except ArrowError:
            continue


@pytest.mark.parametrize(
    "buffers",
    [
        [(0, 0), (0, 17)],  # past the end
        [(0, 8), (0, 16)],  # one inside the other
        [(0, -8), (0, 16)],
        [(0, 2**63 - 1), (0, 2**63 - 1), (0, 2)],  # a sum that wraps around to 0
    ],
)
def test_buffers_that_share_or_leave_the_body_are_refused(buffers: list[tuple[int, int]]) -> None:
    header = message_of(RECORDS, batch_of(2, [(2, 0)], buffers), 16)
    refused(FlightMessage(None, header, memoryview(bytes(16))), "reach outside")


def test_a_vector_of_buffers_that_leaves_the_header_is_refused() -> None:
    batch = {0: ("q", 2), 2: Raw(2**30, bytes(16))}
    header = message_of(RECORDS, batch, 16)
    refused(FlightMessage(None, header, memoryview(bytes(16))), "not an Arrow message header")


LARGE = b"v" * 2**18


def shared_schemas() -> dict[str, memoryview]:
    """Schemas of 256 KiB that read as 20 MiB and more, for all their offsets lead to one place."""
    one, entry = column(b"x"), {0: b"k", 1: LARGE}
    zoned = column(b"x", 10, {0: ("h", 1), 1: LARGE})
    inner = column(b"leaf")
    for _ in range(4):
        inner = column(b"s", 13, {}, children=[inner] * 40)
    return {
        "columns": message_of(SCHEMA, {1: [one] * 65_000}),
        "names": message_of(SCHEMA, {1: [column(LARGE)] * 100}),
        "metadata": message_of(SCHEMA, {1: [one], 2: [entry] * 100}),
        "column metadata": message_of(SCHEMA, {1: [column(b"x", metadata=[entry] * 100)]}),
        "time zones": message_of(SCHEMA, {1: [zoned] * 100}),
        "nested columns": message_of(SCHEMA, {1: [inner]}),
    }


@pytest.mark.parametrize(
    "case", ["columns", "names", "metadata", "column metadata", "time zones", "nested columns"]
)
def test_a_schema_that_reads_as_more_than_it_is_is_refused(case: str) -> None:
    header = shared_schemas()[case]
    with pytest.raises(ArrowError, match="too large once read"):
        check_schema(header, 2**22)


def test_a_message_s_own_metadata_is_bounded() -> None:
    entry = {0: b"k", 1: LARGE}
    header = message_of(SCHEMA, {1: [column(b"x")]}, metadata=[entry] * 100)
    refused(FlightMessage(None, header, memoryview(b"")), "too large once read")


def test_a_wide_schema_with_metadata_passes() -> None:
    fields = [pa.field(f"feature_{n}", pa.float64(), metadata={"role": "feature"}) for n in range(2000)]
    schema = pa.schema(fields, metadata={"pandas": "x" * 200_000})
    message = next(written([pa.record_batch([pa.array([], pa.float64())] * 2000, schema=schema)]))
    check_schema(message.header, 2**22)
