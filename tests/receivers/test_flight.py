"""Flight's DoPut over the real gRPC server: what a client may send, and how it is told what it may not."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest

from tidegauge.identity import Identity
from tidegauge.layout import Role

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
def test_every_type_comes_as_it_was_sent(agent: Any, arrow: Any, rows: slice, times: pa.DataType) -> None:
    sent = pa.record_batch(every_column() | {"timestamp": pa.array(range(40), times)})[rows]
    assert agent.put([sent, sent]) == [arrow.accepted(len(sent))] * 2
    found = agent.folded(2 * len(sent))
    assert all(batch.rows.equals(sent) for batch in found)
    assert len(found) == (2 if len(sent) else 0)


def test_floats_may_be_anything(agent: Any) -> None:
    agent.put([pa.record_batch({"x": [np.nan, np.inf, -np.inf, -0.0, 5e-324, None]})])
    (batch,) = agent.folded(6)
    assert str(batch.rows.column(0).to_pylist()) == "[nan, inf, -inf, -0.0, 5e-324, None]"


@pytest.fixture
def dictionaries(arrow: Any) -> list[pa.RecordBatch]:
    """Batches of one column, and what becomes of its dictionary."""
    return [
        arrow.coded(["red", "blue"], 0, 1, None),
        arrow.coded(["red", "blue"], 1, 1),
        arrow.coded(["red", "blue", "green"], 2, 0),  # grown: a delta, where the sender makes them
        arrow.coded(["black", None], 0, 1),  # another one
        arrow.coded(["black", None], 0),
        arrow.coded([], None, None),
        arrow.coded(["white"], 0),
    ]


@pytest.mark.parametrize("deltas", [False, True])
def test_dictionaries_that_change_grow_and_hold_nulls(
    agent: Any, arrow: Any, dictionaries: list[pa.RecordBatch], deltas: bool
) -> None:
    answers = agent.put(dictionaries, emit_dictionary_deltas=deltas)
    assert answers == [arrow.accepted(len(batch)) for batch in dictionaries]
    found = agent.folded(sum(map(len, dictionaries)))
    assert [batch.rows.to_pylist() for batch in found] == [batch.to_pylist() for batch in dictionaries]


def test_deltas_were_sent(arrow: Any, dictionaries: list[pa.RecordBatch]) -> None:
    kinds = [len(arrow.parts(dictionaries, emit_dictionary_deltas=deltas)[3][1]) for deltas in (False, True)]
    assert kinds[0] == kinds[1]
    with_deltas, without = (
        sum(len(body) for _, body in arrow.parts(dictionaries, emit_dictionary_deltas=deltas))
        for deltas in (True, False)
    )
    assert with_deltas < without


def test_identity_stage_and_source_come_from_path_and_metadata(agent: Any, arrow: Any) -> None:
    plain = arrow.numbers(1)
    told = plain.replace_schema_metadata({"stage": "canary", "data_source": "kafka:ü", "other": "x"})
    agent.put([plain])
    agent.put([told], ("records", "fraud", ""))
    first, second = agent.folded(2)
    assert first.identity == Identity("fraud", "2.1")
    assert second.identity == Identity("fraud", "", "canary", "kafka:ü")
    assert first.receiver == second.receiver == "flight"
    assert 0 < first.received_ns <= second.received_ns


def test_roles_come_from_metadata_and_reserved_names(agent: Any) -> None:
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


def test_a_client_that_opens_a_stream_per_batch_has_one_layout(agent: Any, arrow: Any) -> None:
    for _ in range(3):
        agent.put([arrow.numbers(2)])
    agent.put([arrow.numbers(2, columns=2)])
    layouts = {id(batch.layout) for batch in agent.folded(8)}
    assert len(layouts) == 2


def test_metadata_on_batches_and_empty_messages_do_no_harm(agent: Any, arrow: Any) -> None:
    schema, batch = arrow.stream([arrow.numbers(3)])
    alone = b"\x1a\x04ping"  # app_metadata, and nothing else
    outcome = agent.call([schema, alone, b"", batch + alone, alone])
    assert outcome == (grpc.StatusCode.OK, "", [arrow.accepted(3)])
    assert agent.call([]) == (grpc.StatusCode.OK, "", [])


# Streams that cannot be served


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
def test_schemas_that_cannot_be_served(agent: Any, arrow: Any, schema: pa.Schema, words: str) -> None:
    empty = pa.record_batch([pa.array([], kind) for kind in schema.types], schema=schema)
    agent.undecodable(words, arrow.stream([empty])[:1])


def test_a_stock_client_reads_the_hint(agent: Any) -> None:
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
def test_paths_that_name_no_model(agent: Any, arrow: Any, path: tuple[str, ...]) -> None:
    agent.undecodable('["records", MODEL, VERSION]', arrow.framed(arrow.parts([arrow.numbers(1)]), path))


@pytest.mark.parametrize("path", [("records", "m" * 257, "1"), ("records", "m", "\x1b[2J")])
def test_names_are_printable_and_short(agent: Any, arrow: Any, path: tuple[str, ...]) -> None:
    agent.undecodable(
        "must be printable and of at most 256 characters", arrow.framed(arrow.parts([arrow.numbers(1)]), path)
    )


def test_column_names_that_are_not_utf8(agent: Any, arrow: Any) -> None:
    ((schema, _), *_) = arrow.parts([pa.record_batch({"colour": [1]})])
    agent.undecodable(
        "the schema cannot be read",
        [arrow.flight_data(schema.replace(b"colour", b"col\xffur"), path=arrow.PATH)],
    )


def test_an_error_of_any_length_reaches_the_client(agent: Any, arrow: Any) -> None:
    schema = field("x", pa.float64(), "r" * 100_000)
    empty = pa.record_batch([[]], schema=schema)
    assert len(agent.undecodable("has the role", arrow.stream([empty])[:1]).details) == 500


def test_labels_are_not_taken_yet(agent: Any, arrow: Any) -> None:
    before = agent.rejected("undecodable")
    with pytest.raises(NotImplementedError, match="labels are not taken yet"):
        agent.put([arrow.numbers(1)], ("labels", "fraud", "2.1"))
    assert agent.rejected("undecodable") == before + 1
    agent.is_well()


def test_what_comes_before_or_after_the_schema(agent: Any, arrow: Any) -> None:
    schema, batch = arrow.stream([arrow.numbers(3)])
    agent.undecodable("the first message must be a schema", [batch])
    agent.undecodable("a second schema", [schema, batch, schema])
    agent.undecodable("not an Arrow message header", [b""])
    agent.undecodable("not a FlightData message", [schema, b"\xff"])


def test_dictionaries_that_are_missing_or_belong_to_no_column(agent: Any, arrow: Any) -> None:
    schema, dictionary, batch = arrow.stream([arrow.coded(["red"], 0)])
    agent.undecodable("cannot be read", [schema, batch])
    plain, values = arrow.stream([arrow.numbers(1)])
    agent.undecodable("cannot be read", [plain, dictionary, values])
