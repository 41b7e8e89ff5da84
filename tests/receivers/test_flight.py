"""Flight's DoPut over the real gRPC server: stock clients, and raw calls with hostile bytes."""

from __future__ import annotations

import asyncio
import gc
import json
import struct
import sys
import threading
import tracemalloc
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from typing import Any, NamedTuple, TypeVar

import grpc
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import flight

from tidegauge import config
from tidegauge.batch import Batch, Records
from tidegauge.identity import Identity
from tidegauge.layout import Role
from tidegauge.metric import Metric
from tidegauge.pipeline import Pipeline
from tidegauge.receivers.flight import FlightReceiver
from tidegauge.receivers.grpc_server import GrpcServer
from tidegauge.receivers.otlp import OtlpReceiver
from tidegauge.receivers.record_stream import RecordStream
from tidegauge.telemetry import Telemetry
from tidegauge.units import Size
from tidegauge.wire.arrow import DICTIONARY, flight_message, message_header

METHOD = "/arrow.flight.protocol.FlightService/DoPut"
PATH = ("records", "fraud", "2.1")

T = TypeVar("T")


class Sink:
    """A processor that keeps what it is given, and holds the worker while it is shut."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.batches: list[Records] = []
        self.keep = True

    def update(self, batch: Batch) -> Mapping[str, int]:
        self.open.wait(30)
        assert isinstance(batch, Records)
        if self.keep:
            self.batches.append(batch)
        return {}

    def collect(self, now_ns: int) -> tuple[Metric, ...]:
        return ()


class Outcome(NamedTuple):
    """What a raw call came to."""

    code: grpc.StatusCode
    details: str
    answers: list[dict[str, Any]]


class Agent:
    """A server, queue and sink on an event loop of their own, as a client in another process sees them."""

    def __init__(self, **settings: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.telemetry, self.sink = Telemetry(), Sink()
        self.errors: list[str] = []
        self._settings = settings
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._stack = AsyncExitStack()

    def on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    async def start(self) -> None:
        self.loop.set_exception_handler(lambda loop, context: self.errors.append(str(context)))
        queue_bytes = self._settings.pop("queue_bytes", 2**26)
        message = Size(self._settings.pop("max_message", "64MiB"))
        pipeline = Pipeline([self.sink], self.telemetry, queue_bytes=queue_bytes)
        receiver = FlightReceiver(pipeline, self.telemetry, config.RecordLimits(**self._settings))
        self.pipeline = await self._stack.enter_async_context(pipeline)
        self.server = GrpcServer(
            config.GrpcReceiver(endpoint="127.0.0.1:0", max_message_size=message),
            OtlpReceiver(pipeline, self.telemetry, config.IdentityAttributes()),
            (receiver.service(),),
            grace_s=0.3,
        )
        await self._stack.enter_async_context(self.server)
        self.address = f"127.0.0.1:{self.server.port}"

    def __enter__(self) -> Agent:
        self._thread.start()
        self.on_loop(self.start())
        self.sink.open.set()
        return self

    def __exit__(self, *failure: object) -> None:
        self.sink.open.set()
        self.on_loop(self._stack.aclose())
        gc.collect()  # when tasks tell of exceptions that nobody asked for
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
        assert not self.errors

    async def _totals(self) -> tuple[int, int, int]:
        total = self.telemetry.total
        received, accepted, rejected = (
            total(name, receiver="flight", signal="records") for name in ("received", "accepted", "rejected")
        )
        assert received == accepted + rejected
        return received, accepted, rejected

    def totals(self) -> tuple[int, int, int]:
        """Rows received, accepted and rejected, which must add up."""
        return self.on_loop(self._totals())

    def rejected(self, reason: str) -> int:
        return self.telemetry.total("rejected", receiver="flight", signal="records", reason=reason)

    def streams(self) -> int:
        """Calls that are still being served, and tasks of theirs."""

        async def count() -> int:
            names = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]  # type: ignore[union-attr]
            return sum("_rpc" in name or "_Answers" in name for name in names)

        return self.on_loop(count())

    def eventually(self, condition: Callable[[], bool]) -> None:
        for _ in range(4000):
            if condition():
                return
            self.on_loop(asyncio.sleep(0.005))
        raise AssertionError("it did not happen within 20 s")

    def folded(self, rows: int) -> list[Records]:
        """The batches, once that many rows have come."""
        self.eventually(lambda: sum(batch.items for batch in self.sink.batches) >= rows)
        return self.sink.batches

    @contextmanager
    def client(self) -> Iterator[flight.FlightClient]:
        with flight.connect(f"grpc://{self.address}") as client:
            yield client

    def put(
        self, batches: list[Any], path: tuple[str, ...] = PATH, schema: Any = None, **options: Any
    ) -> list[dict[str, Any]]:
        """Send batches in one stream as a stock client does; the answers."""
        with self.client() as client:
            call = flight.FlightCallOptions(timeout=20, write_options=pa.ipc.IpcWriteOptions(**options))
            descriptor = flight.FlightDescriptor.for_path(*path)
            writer, results = client.do_put(descriptor, schema or batches[0].schema, call)
            with writer:
                for batch in batches:
                    writer.write_batch(batch)
                writer.done_writing()
                answers = []
                while (answer := results.read()) is not None:  # type: ignore[attr-defined]
                    answers.append(json.loads(answer.to_pybytes()))
        return answers

    def call(self, messages: Iterable[bytes]) -> Outcome:
        """Send bytes as they are."""
        with grpc.insecure_channel(self.address) as channel:
            return raw_call(channel, messages)

    def is_well(self) -> None:
        """The agent serves another client, and none of the streams before has left anything."""
        self.eventually(lambda: self.streams() == 0)
        before = self.totals()
        assert self.put([numbers(3)]) == [accepted(3)]
        after = self.totals()
        assert [b - a for a, b in zip(before, after, strict=True)] == [3, 3, 0]


def raw_call(channel: grpc.Channel, messages: Iterable[bytes]) -> Outcome:
    call = channel.stream_stream(METHOD)(iter(messages), timeout=20)
    answers = []
    try:
        for raw in call:
            metadata = raw[2:] if raw[1] < 0x80 else raw[3:]
            answers.append(json.loads(metadata))
    except grpc.RpcError:
        assert call.code() is not grpc.StatusCode.OK
    return Outcome(call.code(), call.details(), answers)


def accepted(rows: int) -> dict[str, Any]:
    return {"accepted_rows": rows, "rejected_rows": 0, "reason": ""}


def numbers(rows: int, columns: int = 1) -> pa.RecordBatch:
    return pa.record_batch({f"x{number}": np.arange(rows, dtype=float) for number in range(columns)})


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def flight_data(header: bytes, body: bytes = b"", path: tuple[str, ...] = ()) -> bytes:
    """A serialized FlightData."""
    texts = b"".join(b"\x1a" + varint(len(text.encode())) + text.encode() for text in path)
    descriptor = b"\x0a" + varint(len(texts)) + texts if path else b""
    return descriptor + b"\x12" + varint(len(header)) + header + b"\xc2\x3e" + varint(len(body)) + body


def parts(batches: list[Any], **options: Any) -> list[tuple[bytes, bytes]]:
    """Headers and bodies of what a stream writer makes of batches."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return [
        (message.metadata.to_pybytes(), b"" if message.body is None else message.body.to_pybytes())
        for message in pa.ipc.MessageReader.open_stream(sink.getvalue())
    ]


def framed(messages: list[tuple[bytes, bytes]], path: tuple[str, ...] = PATH) -> list[bytes]:
    return [flight_data(*message, path=() if index else path) for index, message in enumerate(messages)]


def stream(batches: list[Any], **options: Any) -> list[bytes]:
    return framed(parts(batches, **options))


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    with Agent() as running:
        yield running


@pytest.fixture(autouse=True)
def forget(request: pytest.FixtureRequest) -> None:
    if "agent" in request.fixturenames:
        request.getfixturevalue("agent").sink.batches.clear()


# Columns that come as they were sent


def every_column() -> dict[str, Any]:
    """A column of each type of the contract, of 40 rows, the odd ones null where they can be."""
    holes = [number % 2 == 1 for number in range(40)]
    texts = np.array([f"text {number % 7}, perhaps a long one" for number in range(40)], object)
    columns: dict[str, Any] = {}
    for kind in (pa.float64(), pa.float32(), pa.float16(), pa.int8(), pa.int16(), pa.int32(), pa.int64()):
        columns[str(kind)] = pa.array(
            np.arange(40).astype(kind.to_pandas_dtype()), kind, mask=np.array(holes)
        )
    for kind in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()):
        columns[str(kind)] = pa.array(range(40), kind)
    columns["bool"] = pa.array([None if number % 3 == 0 else number % 2 == 0 for number in range(40)])
    for kind in (pa.string(), pa.large_string(), pa.string_view()):
        columns[str(kind)] = pa.array(texts, kind, mask=np.array(holes))
        coded = pa.array(texts).dictionary_encode()
        columns[f"dictionary {kind}"] = pa.DictionaryArray.from_arrays(
            coded.indices.cast(pa.uint16()), coded.dictionary.cast(kind)
        )
    columns["numbers"] = pa.array([number % 5 for number in range(40)]).dictionary_encode()
    for kind in (pa.float16(), pa.float32(), pa.float64()):
        values = pa.array(np.arange(80).astype(kind.to_pandas_dtype()), kind)
        columns[f"embedding {kind}"] = pa.FixedSizeListArray.from_arrays(values, 2)
    return columns


@pytest.mark.parametrize("rows", [slice(0, 40), slice(3, 29), slice(39, 40), slice(7, 7)])
@pytest.mark.parametrize(
    "times",
    [*(pa.timestamp(unit) for unit in ("s", "ms", "us", "ns")), pa.timestamp("us", "UTC"), pa.int64()],
)
def test_every_type_comes_as_it_was_sent(agent: Agent, rows: slice, times: pa.DataType) -> None:
    sent = pa.record_batch(every_column() | {"timestamp": pa.array(range(40), times)})[rows]
    assert agent.put([sent, sent]) == [accepted(len(sent))] * 2
    found = agent.folded(2 * len(sent))
    assert all(batch.rows.equals(sent) for batch in found)
    assert len(found) == (2 if len(sent) else 0)


def test_floats_may_be_anything(agent: Agent) -> None:
    agent.put([pa.record_batch({"x": [np.nan, np.inf, -np.inf, -0.0, 5e-324, None]})])
    (batch,) = agent.folded(6)
    assert str(batch.rows.column(0).to_pylist()) == "[nan, inf, -inf, -0.0, 5e-324, None]"


def coded(dictionary: list[str | None], *picks: int | None) -> pa.RecordBatch:
    indices = pa.array(picks, pa.int8())
    return pa.record_batch(
        {"colour": pa.DictionaryArray.from_arrays(indices, pa.array(dictionary, pa.string()))}
    )


DICTIONARIES = [
    coded(["red", "blue"], 0, 1, None),
    coded(["red", "blue"], 1, 1),
    coded(["red", "blue", "green"], 2, 0),  # grown: a delta, where the sender makes them
    coded(["black", None], 0, 1),  # another one
    coded(["black", None], 0),
    coded([], None, None),
    coded(["white"], 0),
]


@pytest.mark.parametrize("deltas", [False, True])
def test_dictionaries_that_change_grow_and_hold_nulls(agent: Agent, deltas: bool) -> None:
    answers = agent.put(DICTIONARIES, emit_dictionary_deltas=deltas)
    assert answers == [accepted(len(batch)) for batch in DICTIONARIES]
    found = agent.folded(sum(map(len, DICTIONARIES)))
    assert [batch.rows.to_pylist() for batch in found] == [batch.to_pylist() for batch in DICTIONARIES]


def test_deltas_were_sent() -> None:
    kinds = [len(parts(DICTIONARIES, emit_dictionary_deltas=deltas)[3][1]) for deltas in (False, True)]
    assert kinds[0] == kinds[1]
    with_deltas, without = (
        sum(len(body) for _, body in parts(DICTIONARIES, emit_dictionary_deltas=deltas))
        for deltas in (True, False)
    )
    assert with_deltas < without


def test_identity_stage_and_source_come_from_path_and_metadata(agent: Agent) -> None:
    plain = numbers(1)
    told = plain.replace_schema_metadata({"stage": "canary", "data_source": "kafka:ü", "other": "x"})
    agent.put([plain])
    agent.put([told], ("records", "fraud", ""))
    first, second = agent.folded(2)
    assert first.identity == Identity("fraud", "2.1")
    assert second.identity == Identity("fraud", "", "canary", "kafka:ü")
    assert first.receiver == second.receiver == "flight"
    assert 0 < first.received_ns <= second.received_ns


def test_roles_come_from_metadata_and_reserved_names(agent: Agent) -> None:
    fields = [
        pa.field("age", pa.float64()),
        pa.field("label", pa.int64(), metadata={"role": "feature"}),
        pa.field("out", pa.float64(), metadata={"role": "prediction"}),
        pa.field("score", pa.float64()),
        pa.field("prediction_id", pa.string()),
    ]
    agent.put([pa.record_batch([[1.0], [2], [3.0], [0.5], ["id"]], schema=pa.schema(fields))])
    (batch,) = agent.folded(1)
    assert batch.layout.roles == (Role.FEATURE, Role.FEATURE, Role.PREDICTION, Role.SCORE, Role.PREDICTION_ID)


def test_a_client_that_opens_a_stream_per_batch_has_one_layout(agent: Agent) -> None:
    for _ in range(3):
        agent.put([numbers(2)])
    agent.put([numbers(2, columns=2)])
    layouts = {id(batch.layout) for batch in agent.folded(8)}
    assert len(layouts) == 2


def test_metadata_on_batches_and_empty_messages_do_no_harm(agent: Agent) -> None:
    schema, batch = stream([numbers(3)])
    alone = b"\x1a\x04ping"  # app_metadata, and nothing else
    outcome = agent.call([schema, alone, b"", batch + alone, alone])
    assert outcome == (grpc.StatusCode.OK, "", [accepted(3)])
    assert agent.call([]) == (grpc.StatusCode.OK, "", [])


# Streams that cannot be served


def undecodable(agent: Agent, words: str, messages: Iterable[bytes]) -> Outcome:
    """The call fails in words that tell why, and counts as one item."""
    before, known = agent.totals(), agent.rejected("undecodable")
    outcome = agent.call(messages)
    assert outcome.code is grpc.StatusCode.INVALID_ARGUMENT
    assert words in outcome.details
    rows = sum(answer["accepted_rows"] for answer in outcome.answers)
    assert [b - a for a, b in zip(before, agent.totals(), strict=True)] == [rows + 1, rows, 1]
    assert agent.rejected("undecodable") == known + 1
    agent.is_well()
    return outcome


def field(name: str, kind: pa.DataType, role: str | None = None) -> pa.Schema:
    return pa.schema([pa.field(name, kind, metadata=None if role is None else {"role": role})])


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (field("x", pa.string(), "score"), "'x' has the role score but the type string; send numbers"),
        (
            field("timestamp", pa.string()),
            "send an Arrow timestamp, int64 Unix nanoseconds or float64 Unix seconds",
        ),
        (field("x", pa.date32()), "or set the field metadata role=ignore"),
        (field("x", pa.float64(), "target"), "known roles: feature, prediction"),
        (field("x", pa.list_(pa.float64())), "nested type"),
        (field("x", pa.struct([("a", pa.int8())]), "ignore"), "nested type"),
        (field("x", pa.uuid()), "cannot be a feature"),
        (field("x", pa.fixed_shape_tensor(pa.float32(), [2])), "nested type"),
        (field("id", pa.int64(), "prediction_id"), "nothing to watch"),
        (pa.schema([]), "nothing to watch"),
        (pa.schema([("x", pa.int8()), ("x", pa.int8())]), "'x' appears 2 times"),
        (pa.schema([(f"x{n}", pa.int8()) for n in range(2001)]), "(receivers.records.max_columns)"),
        (pa.schema([("n" * 257, pa.int8())]), "(receivers.records.max_name_length)"),
        (pa.schema([("x", pa.int8())], {"stage": "s" * 257}), "stage must be printable and of at most 256"),
        (pa.schema([("x", pa.int8())], {"data_source": "a\nb"}), "data_source must be printable"),
        (pa.schema([("x", pa.int8())], {b"stage": b"\xff"}), "must be UTF-8"),
        (pa.schema([("x", pa.int8())], {b"pandas": b"x" * 2**23}), "too large once read"),
    ],
)
def test_schemas_that_cannot_be_served(agent: Agent, schema: pa.Schema, words: str) -> None:
    empty = pa.record_batch([pa.array([], kind) for kind in schema.types], schema=schema)
    undecodable(agent, words, stream([empty])[:1])


def test_a_stock_client_reads_the_hint(agent: Agent) -> None:
    with pytest.raises(pa.ArrowInvalid, match="send numbers, booleans, strings or dictionaries of strings"):
        agent.put([pa.record_batch({"day": pa.array([1], pa.date32())})])


@pytest.mark.parametrize(
    "path",
    [
        (),
        ("records",),
        ("records", "m"),
        ("records", "", "1"),
        ("records", "m", "1", "x"),
        ("other", "m", "1"),
    ],
)
def test_paths_that_name_no_model(agent: Agent, path: tuple[str, ...]) -> None:
    undecodable(agent, '["records", MODEL, VERSION]', framed(parts([numbers(1)]), path))


@pytest.mark.parametrize("path", [("records", "m" * 257, "1"), ("records", "m", "\x1b[2J")])
def test_names_are_printable_and_short(agent: Agent, path: tuple[str, ...]) -> None:
    undecodable(agent, "must be printable and of at most 256 characters", framed(parts([numbers(1)]), path))


def test_column_names_that_are_not_utf8(agent: Agent) -> None:
    ((schema, _), *_) = parts([pa.record_batch({"colour": [1]})])
    undecodable(
        agent, "the schema cannot be read", [flight_data(schema.replace(b"colour", b"col\xffur"), path=PATH)]
    )


def test_an_error_of_any_length_reaches_the_client(agent: Agent) -> None:
    schema = field("x", pa.float64(), "r" * 100_000)
    empty = pa.record_batch([[]], schema=schema)
    assert len(undecodable(agent, "has the role", stream([empty])[:1]).details) == 500


def test_labels_are_not_taken_yet(agent: Agent) -> None:
    before = agent.rejected("undecodable")
    with pytest.raises(NotImplementedError, match="labels are not taken yet"):
        agent.put([numbers(1)], ("labels", "fraud", "2.1"))
    assert agent.rejected("undecodable") == before + 1
    agent.is_well()


def test_what_comes_before_or_after_the_schema(agent: Agent) -> None:
    schema, batch = stream([numbers(3)])
    undecodable(agent, "the first message must be a schema", [batch])
    undecodable(agent, "a second schema", [schema, batch, schema])
    undecodable(agent, "not an Arrow message header", [b""])
    undecodable(agent, "not a FlightData message", [schema, b"\xff"])


def test_dictionaries_that_are_missing_or_belong_to_no_column(agent: Agent) -> None:
    schema, dictionary, batch = stream([coded(["red"], 0)])
    undecodable(agent, "cannot be read", [schema, batch])
    plain, values = stream([numbers(1)])
    undecodable(agent, "cannot be read", [plain, dictionary, values])


# Hostile batches: one is refused, and the stream goes on, where it can


def patched(header: bytes, old: int, new: int) -> bytes:
    """A header with each 64-bit number `old` replaced."""
    raw = header.replace(struct.pack("<q", old), struct.pack("<q", new))
    assert raw != header
    return raw


def goes_on(
    agent: Agent, schema: bytes, hostile: list[bytes], good: list[bytes], reason: str, words: str
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
def test_compressed_batches_are_refused_unread(agent: Agent, codec: str) -> None:
    bomb = pa.record_batch({"x": np.zeros(2**17)})
    schema, (header, body) = parts([bomb], compression=codec)
    huge = struct.pack("<q", 2**40) + body[8:]  # what an unaware reader would allocate
    _, good = stream([numbers(3)])
    before = pa.default_memory_pool().max_memory()
    first = flight_data(*schema, path=PATH)
    rows = goes_on(agent, first, [flight_data(header, huge)], [good], "compressed", "gRPC's own compression")
    assert rows in (2**17, 1)  # as many as the bytes can hold, or one
    assert pa.default_memory_pool().max_memory() - before < 2**20


def test_compressed_dictionaries_end_the_stream(agent: Agent) -> None:
    undecodable(agent, "compressed", stream([coded(["red"] * 50, 0)], compression="zstd"))


def test_compression_hidden_in_v4_metadata_ends_the_stream(agent: Agent) -> None:
    schema, _ = parts([numbers(1)])
    old = parts([numbers(1)], metadata_version=pa.ipc.MetadataVersion.V4)
    undecodable(agent, "V5", framed([schema, old[1]]))


@pytest.mark.parametrize("rows", [2**40, 2**62, -1, 1_000_001])
def test_rows_beyond_the_limit_are_refused_unread(agent: Agent, rows: int) -> None:
    schema, (header, body), (_, _) = parts([numbers(5), numbers(3)])
    _, good = stream([numbers(3)])
    hostile = flight_data(patched(header, 5, rows), body)
    first = flight_data(*schema, path=PATH)
    assert goes_on(agent, first, [hostile], [good], "too_large", "(receivers.records.max_rows)") == 1


def test_rows_that_are_not_there_are_refused(agent: Agent) -> None:
    schema, (header, body) = parts([numbers(5)])
    _, good = stream([numbers(3)])
    hostile = flight_data(patched(header, 5, 999_999), body)
    rows = goes_on(agent, flight_data(*schema, path=PATH), [hostile], [good], "invalid", "invalid Arrow data")
    assert rows == 1


def test_columns_of_unequal_length_end_the_stream(agent: Agent) -> None:
    schema, (header, body) = parts([numbers(5)])
    at = header.rindex(struct.pack("<q", 5))
    hostile = flight_data(header[:at] + struct.pack("<q", 4) + header[at + 8 :], body)
    undecodable(agent, "Array length did not match", [flight_data(*schema, path=PATH), hostile])


def test_indices_outside_the_dictionary_are_refused(agent: Agent) -> None:
    (schema, dictionary, (header, body)) = parts([coded(["red", "blue"], 0, 1)])
    first, values, good = framed([schema, dictionary, (header, body)])
    for index in (2, 127, 255):
        hostile = flight_data(header, bytes([index]) + body[1:])
        goes_on(agent, first, [values, hostile], [good], "invalid", "invalid Arrow data")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_text_that_is_not_utf8_is_refused(agent: Agent, kind: pa.DataType) -> None:
    batch = pa.record_batch({"x": pa.array(["a text of some length, not inlined", "b"], kind)})
    schema, (header, body) = parts([batch])
    hostile = flight_data(header, body.replace(b"text", b"te\xfft"))
    first, good = framed([schema, (header, body)])
    goes_on(agent, first, [hostile], [good], "invalid", "UTF8")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
@pytest.mark.parametrize("offset", [1000, -1, 2**31 - 1])
def test_text_outside_its_buffer_is_refused(agent: Agent, kind: pa.DataType, offset: int) -> None:
    schema, (header, body) = parts([pa.record_batch({"x": pa.array(["ab", "cd"], kind)})])
    word = "<i" if kind == pa.string() else "<q"
    hostile = flight_data(header, body.replace(struct.pack(word, 4), struct.pack(word, offset)))
    first, good = framed([schema, (header, body)])
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
def test_views_that_repeat_a_text_without_end_are_refused(agent: Agent, column: Callable[..., Any]) -> None:
    schema, *hostile = stream([pa.record_batch({"x": column(2**16, 4096)})])
    assert sum(map(len, hostile)) < 2**18  # which spells out 128 MiB
    _, *good = stream([pa.record_batch({"x": column(100, 80)})])
    goes_on(agent, schema, hostile, good, "invalid", "repeat too much text")


def test_views_may_share_some_text(agent: Agent) -> None:
    assert agent.put([pa.record_batch({"x": views(1000, 8192)})]) == [accepted(8192)]


def test_bodies_that_contradict_their_headers_end_the_stream(agent: Agent) -> None:
    schema, (header, body) = parts([numbers(5)])
    first = flight_data(*schema, path=PATH)
    for other in (b"", body[:-1], body + bytes(8)):
        undecodable(agent, "is declared", [first, flight_data(header, other)])
    undecodable(agent, "is declared", [flight_data(schema[0], flight_data(header, body), PATH), first])


def test_buffers_that_share_bytes_end_the_stream(agent: Agent) -> None:
    schema, (header, body) = parts([numbers(5, columns=2)])
    shared = flight_data(patched(header, 40, 80), body)
    undecodable(agent, "share parts of it", [flight_data(*schema, path=PATH), shared])


def test_dictionaries_have_a_limit_that_growth_counts_against() -> None:
    batches = [coded([f"{'x' * 1000} {n}" for n in range(size)], 0) for size in range(1, 100)]
    with Agent(max_dictionary_size=Size("16KiB")) as agent:
        outcome = agent.call(stream(batches, emit_dictionary_deltas=True))
        assert outcome.code is grpc.StatusCode.INVALID_ARGUMENT
        assert "(receivers.records.max_dictionary_size); send plain strings" in outcome.details
        assert 5 < agent.totals()[1] < 16
        agent.is_well()
        # Replacing a dictionary frees what it took.
        replaced = [coded([f"{'x' * 1000} {n}"], 0) for n in range(40)]
        assert agent.put(replaced) == [accepted(1)] * 40


def test_dictionaries_without_a_batch_do_not_pile_up() -> None:
    schema, dictionary, batch = stream([coded(["x" * 10_000], 0)])
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


MIXED = stream(
    [pa.record_batch({"x": [1.0, None], "c": pa.array(["a", "long enough text"]).dictionary_encode()})]
)


def survives(agent: Agent, channel: grpc.Channel, messages: list[bytes]) -> None:
    """The call ends with a plain status, and every row of it is counted once."""
    before = agent.totals()
    outcome = raw_call(channel, messages)
    received, taken, rejected = (b - a for a, b in zip(before, agent.totals(), strict=True))
    assert outcome.code in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT), outcome
    assert taken == sum(answer["accepted_rows"] for answer in outcome.answers)
    told = sum(answer["rejected_rows"] for answer in outcome.answers)
    assert rejected == told + (outcome.code is grpc.StatusCode.INVALID_ARGUMENT)
    assert received == taken + rejected


@pytest.fixture(scope="module")
def channel(agent: Agent) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(agent.address) as channel:
        yield channel


def test_a_stream_cut_anywhere(agent: Agent, channel: grpc.Channel) -> None:
    for number, message in enumerate(MIXED):
        for cut in range(len(message)):
            survives(agent, channel, [*MIXED[:number], message[:cut]])
    agent.is_well()


FEW = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FEW
@given(messages=st.lists(st.binary(max_size=100) | st.sampled_from(MIXED), max_size=5))
def test_random_messages(agent: Agent, channel: grpc.Channel, messages: list[bytes]) -> None:
    survives(agent, channel, messages)


@FEW
@given(
    number=st.integers(0, len(MIXED) - 1),
    changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(1, 255)), min_size=1, max_size=4),
)
def test_flipped_bytes(
    agent: Agent, channel: grpc.Channel, number: int, changes: list[tuple[int, int]]
) -> None:
    message = bytearray(MIXED[number])
    for at, flip in changes:
        message[at % len(message)] ^= flip
    survives(agent, channel, [*MIXED[:number], bytes(message), *MIXED[number + 1 :]])


def test_after_all_that_the_agent_is_well(agent: Agent) -> None:
    agent.is_well()


# Loads


def test_a_message_above_the_server_s_limit_ends_the_stream_only() -> None:
    with Agent(max_message="1MiB") as agent:
        schema, batch = stream([numbers(3)])
        outcome = agent.call([schema, batch, flight_data(b"", bytes(2**21))])
        assert outcome.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert agent.totals() == (3, 3, 0)
        agent.is_well()
        with pytest.raises(pa.ArrowInvalid, match="larger than max"):
            agent.put([numbers(2**18)])
        agent.is_well()


def test_a_batch_larger_than_the_queue_is_told_so() -> None:
    with Agent(queue_bytes=100_000) as agent:
        large, small = agent.put([numbers(12_500), numbers(3)])
        assert large["rejected_rows"] == 12_500
        assert large["reason"].endswith("is more than pipeline.queue_size; send smaller ones")
        assert small == accepted(3)
        assert agent.totals() == (12_503, 3, 12_500)
        assert agent.rejected("too_large") == 12_500


def test_a_full_queue_rejects_and_never_blocks() -> None:
    batch = pa.record_batch({"x": np.arange(1000.0), "c": pa.array(["a"] * 1000).dictionary_encode()})
    with Agent(queue_bytes=100_000) as agent:
        agent.sink.open.clear()
        answers = agent.put([batch] * 50)
        fitting = agent.totals()[1] // 1000
        assert 3 < fitting < 9
        full = {"accepted_rows": 0, "rejected_rows": 1000, "reason": "the agent's queue is full"}
        assert answers == [accepted(1000)] * fitting + [full] * (50 - fitting)
        assert agent.totals() == (50_000, fitting * 1000, (50 - fitting) * 1000)
        assert agent.rejected("queue_full") == (50 - fitting) * 1000
        # What there is no room for is not even read, or it would be found invalid.
        schema, dictionary, (header, body) = parts([batch])
        hostile = framed([schema, dictionary, (header, b"\x7f" * len(body))])
        assert agent.call(hostile).answers == [full]
        agent.sink.open.set()
        agent.eventually(lambda: agent.pipeline.queue_bytes == 0)
        assert agent.call(hostile).answers[0]["reason"].startswith("invalid")
        agent.is_well()


def test_dictionaries_keep_up_while_the_queue_is_full() -> None:
    batches = [coded([f"{n} {'x' * 5000}"], *[0] * 100) for n in range(30)]
    with Agent(queue_bytes=20_000, max_dictionary_size=Size("32KiB")) as agent:
        agent.sink.open.clear()
        with agent.client() as client:
            writer, results = client.do_put(flight.FlightDescriptor.for_path(*PATH), batches[0].schema)
            answers = []
            with writer:
                for batch in batches:
                    writer.write_batch(batch)
                    answers.append(json.loads(results.read().to_pybytes()))  # type: ignore[attr-defined]
                agent.sink.open.set()
                agent.eventually(lambda: agent.pipeline.queue_bytes == 0)
                writer.write_batch(batches[3])
                answers.append(json.loads(results.read().to_pybytes()))  # type: ignore[attr-defined]
        assert {answer["reason"] for answer in answers[5:-1]} == {"the agent's queue is full"}
        assert answers[-1] == accepted(100)
        last = agent.sink.batches[-1].rows.column(0).to_pylist()
        assert last == batches[3].column(0).to_pylist()


def test_the_queue_counts_what_small_batches_really_hold() -> None:
    """A million batches of one row must not pass a limit of 64 MiB as 8 MB."""
    (schema, batch) = stream([numbers(1)])
    reader = RecordStream(flight_message(schema), config.RecordLimits())
    message = flight_message(batch)
    assert 1200 < reader.nbytes(message) < 2000


MANY = 3000


@pytest.mark.parametrize("window", [None, 65_535])
def test_a_client_that_never_reads_is_served(window: int | None) -> None:
    options = () if window is None else (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", window))
    messages = stream([numbers(3)] * MANY)
    with Agent() as agent:
        agent.sink.keep = False
        with grpc.insecure_channel(agent.address, options) as channel:
            call = channel.stream_stream(METHOD)(iter(messages), timeout=60)
            agent.eventually(lambda: agent.totals() == (3 * MANY, 3 * MANY, 0))
            # The call has an end for it, and the answers that the window and the agent had room for.
            answers = sum(1 for _ in call)
            assert call.code() is grpc.StatusCode.OK
            assert answers == MANY if window is None else 1024 < answers < MANY
        agent.is_well()


def test_a_stock_client_that_never_reads_is_served() -> None:
    with Agent() as agent, agent.client() as client:
        agent.sink.keep = False
        batch = numbers(3)
        writer, _ = client.do_put(flight.FlightDescriptor.for_path(*PATH), batch.schema)
        for _ in range(MANY):
            writer.write_batch(batch)
        writer.close()
        assert agent.totals() == (3 * MANY, 3 * MANY, 0)
        agent.is_well()


def test_a_client_that_vanishes_leaves_nothing_behind() -> None:
    messages = stream([numbers(3)] * 1500)
    options = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_535))
    vanished = threading.Event()

    def never_ends() -> Iterator[bytes]:
        yield from messages
        vanished.wait(20)

    with Agent() as agent:
        for times in range(1, 4):
            with grpc.insecure_channel(agent.address, options) as channel:
                call = channel.stream_stream(METHOD)(never_ends())
                agent.eventually(lambda times=times: agent.totals()[0] == 4500 * times)  # type: ignore[misc]
                assert agent.streams() > 0
            assert call.code() is grpc.StatusCode.CANCELLED
        vanished.set()
        agent.is_well()


def test_stopping_ends_an_idle_stream() -> None:
    schema, batch = stream([numbers(3)])
    more = threading.Event()

    def messages() -> Iterator[bytes]:
        yield schema
        yield batch
        more.wait(20)

    agent = Agent()
    with agent:
        channel = grpc.insecure_channel(agent.address)
        call = channel.stream_stream(METHOD)(messages())
        assert json.loads(next(call)[2:]) == accepted(3)
    # Leaving the block took the server's grace, or the test would hang.
    with pytest.raises(grpc.RpcError):
        next(call)
    assert call.code() is grpc.StatusCode.UNAVAILABLE
    more.set()
    channel.close()


def test_streams_beside_each_other_do_not_mix(agent: Agent) -> None:
    threads = []
    for number in range(6):
        batches = [coded([f"{number}"], *[0] * 10)] * 20
        threads.append(threading.Thread(target=agent.put, args=(batches, ("records", f"m{number}", ""))))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = agent.folded(1200)
    assert len(found) == 120
    for batch in found:
        assert set(batch.rows.column(0).to_pylist()) == {batch.identity.model[1:]}


@pytest.mark.parametrize("columns", [1, 50])
def test_large_batches_with_text_are_read_beside_the_loop(agent: Agent, columns: int) -> None:
    texts = pa.array([f"{number} {'x' * 30}" for number in range(40_000 // columns)])
    sent = pa.record_batch({f"x{number}": texts for number in range(columns)})
    assert sent.nbytes > 2**20
    assert agent.put([sent, sent]) == [accepted(len(sent))] * 2
    assert all(batch.rows.equals(sent) for batch in agent.folded(2 * len(sent)))


# Memory


def test_values_are_those_of_the_message_and_none_is_copied() -> None:
    schema, *batches = stream([numbers(5000, columns=3)] * 2)
    reader = RecordStream(flight_message(schema), config.RecordLimits())
    before = pa.total_allocated_bytes()
    rows = [reader.read(flight_message(batch)) for batch in batches]
    assert pa.total_allocated_bytes() == before
    addresses = [column.buffers()[1].address for column in rows[0].columns]
    assert all(address % 8 == 0 for address in addresses)
    # Side by side, as in the one body: 5000 doubles each, padded to 64 bytes.
    assert np.diff(addresses).tolist() == [40_000, 40_000]
    assert rows[1].equals(numbers(5000, columns=3))


def test_nothing_piles_up_over_ten_thousand_batches() -> None:
    schema, *messages = stream([coded(["red", "blue"], 0, 1), coded(["red", "green"], 1)])
    reader = RecordStream(flight_message(schema), config.RecordLimits())

    def some(times: int) -> None:
        for _ in range(times):
            for raw in messages:
                message = flight_message(raw)
                header = message_header(message)
                if header.kind == DICTIONARY:
                    reader.add_dictionary(header, message)
                else:
                    reader.read(message)

    some(1000)  # which fills the interpreter's own free lists
    gc.collect()
    blocks, arrow = sys.getallocatedblocks(), pa.total_allocated_bytes()
    some(5000)
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 100
    assert pa.total_allocated_bytes() - arrow < 2**14
