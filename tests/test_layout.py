"""Roles and kinds of columns, and what a schema that cannot be served is told."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from tidegauge.layout import MAX_COMPONENTS, Kind, LayoutError, Role, layout_of, storage_type

NUMBERS = [
    *(pa.float64(), pa.float32(), pa.float16()),
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64()),
    *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
]
TEXTS = [pa.string(), pa.large_string(), pa.string_view()]
CATEGORIES = [
    *TEXTS,
    pa.bool_(),
    *(pa.dictionary(pa.int32(), text) for text in TEXTS),
    pa.dictionary(pa.uint8(), pa.int64()),
]
EMBEDDINGS = [pa.list_(pa.float32(), 4), pa.list_(pa.float64(), 1), pa.list_(pa.float16(), 768)]
TIMES = [
    *(pa.timestamp(unit) for unit in ("s", "ms", "us", "ns")),
    pa.timestamp("us", "UTC"),
    pa.int64(),
    pa.float64(),
]
NO_FEATURES = [
    pa.null(),
    pa.binary(),
    pa.date32(),
    pa.timestamp("s"),
    pa.decimal128(9, 2),
    pa.uuid(),
    pa.bool8(),
]
NESTED = [
    pa.list_(pa.float64()),
    pa.list_(pa.int64(), 4),
    pa.list_(pa.float64(), 0),
    pa.list_view(pa.float64()),
    pa.struct([("a", pa.float64())]),
    pa.map_(pa.string(), pa.float64()),
    pa.sparse_union([pa.field("a", pa.float64())]),
    pa.run_end_encoded(pa.int32(), pa.float64()),
    pa.dictionary(pa.int8(), pa.list_(pa.string_view())),
    pa.fixed_shape_tensor(pa.float32(), [2]),
]


def column(name: str, kind: pa.DataType, role: str | None = None) -> pa.Field[Any]:
    return pa.field(name, kind, metadata=None if role is None else {"role": role})


def refused(words: str, *columns: pa.Field[Any]) -> None:
    with pytest.raises(LayoutError, match=words):
        layout_of(pa.schema(columns))


def test_vectors_are_bounded_unless_they_are_ignored() -> None:
    most = column("x", pa.list_(pa.float32(), MAX_COMPONENTS))
    assert layout_of(pa.schema([most])).kinds == (Kind.EMBEDDING,)
    refused("has vectors of 8193 components", column("x", pa.list_(pa.float32(), 8_193)))
    layout_of(pa.schema([most.with_name("y"), column("x", pa.list_(pa.float32(), 8_193), "ignore")]))


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [(NUMBERS, Kind.NUMERIC), (CATEGORIES, Kind.CATEGORICAL), (EMBEDDINGS, Kind.EMBEDDING)],
)
@pytest.mark.parametrize("role", ["feature", "prediction"])
def test_types_of_features_and_predictions(kinds: list[pa.DataType], expected: Kind, role: str) -> None:
    for kind in kinds:
        layout = layout_of(pa.schema([column("x", kind, role)]))
        assert layout.names == ("x",)
        assert layout.roles == (Role(role),)
        assert layout.kinds == (expected,)


@pytest.mark.parametrize("role", ["feature", "prediction", "score"])
def test_other_types_are_refused_with_a_way_out(role: str) -> None:
    for kind in NO_FEATURES:
        refused(
            f"'x' has the type .* cannot be a {role}; send numbers.*or set .*role=ignore",
            column("x", kind, role),
        )


def test_scores_are_numbers() -> None:
    for kind in NUMBERS:
        assert layout_of(pa.schema([column("x", kind, "score")])).kinds == (Kind.NUMERIC,)
    for kind in CATEGORIES + EMBEDDINGS:
        refused("'x' has the role score but the type .*; send numbers", column("x", kind, "score"))


def test_times_are_timestamps_int64_or_float64() -> None:
    for kind in TIMES:
        layout = layout_of(pa.schema([column("x", pa.int8()), column("when", kind, "timestamp")]))
        assert layout.kinds == (Kind.NUMERIC, Kind.TIMESTAMP)
    for kind in (pa.string(), pa.int32(), pa.float32(), pa.date64(), pa.bool_(), pa.null()):
        refused(
            "'when' has the role timestamp but .*; send an Arrow timestamp", column("when", kind, "timestamp")
        )


@pytest.mark.parametrize("role", ["ignore", "prediction_id", "label", "segment"])
def test_columns_that_are_not_folded_may_have_any_flat_type(role: str) -> None:
    for kind in NUMBERS + CATEGORIES + EMBEDDINGS + NO_FEATURES:
        assert (
            layout_of(pa.schema([column("x", pa.int8()), column("other", kind, role)])).kinds[1] is Kind.NONE
        )


@pytest.mark.parametrize("role", [None, "ignore", "timestamp", "label", "score"])
def test_nested_types_have_no_place(role: str | None) -> None:
    for kind in NESTED:
        refused(
            "'other' has the nested type .* as a column", column("x", pa.int8()), column("other", kind, role)
        )


def test_a_reserved_name_is_a_role_unless_the_metadata_says_otherwise() -> None:
    names = [
        "prediction",
        "score",
        "label",
        "timestamp",
        "prediction_id",
        "segment",
        "ignore",
        "feature",
        "Score",
    ]
    layout = layout_of(pa.schema([column(name, pa.int64()) for name in names]))
    assert layout.roles == (*(Role(name) for name in names[:7]), Role.FEATURE, Role.FEATURE)
    assert (
        layout_of(pa.schema([column(name, pa.int64(), "feature") for name in names])).roles
        == (Role.FEATURE,) * 9
    )


def test_index_finds_the_first_column_of_a_role() -> None:
    layout = layout_of(pa.schema([column(name, pa.int64()) for name in ("a", "b", "timestamp")]))
    assert layout.index(Role.FEATURE) == 0
    assert layout.index(Role.TIMESTAMP) == 2
    assert layout.index(Role.LABEL) is None


@pytest.mark.parametrize("role", ["Feature", "target", "", "\N{SNOWMAN}"])
def test_an_unknown_role_is_answered_with_the_known_ones(role: str) -> None:
    refused("'x' has the role .* known roles: feature, prediction, score", column("x", pa.int8(), role))


def test_a_role_that_is_not_text() -> None:
    refused("known roles", pa.field("x", pa.int8(), metadata={b"role": b"\xff"}))


def test_names_are_unique() -> None:
    refused("'x' appears 2 times", column("x", pa.int8()), column("y", pa.int8()), column("x", pa.int8()))
    refused("'' appears 2000 times", *[column("", pa.int8())] * 2000)


@pytest.mark.parametrize("role", ["timestamp", "prediction_id"])
def test_roles_of_one_column(role: str) -> None:
    twice = [column(name, pa.int64(), role) for name in ("a", "b")]
    refused(f"more than one column has the role {role}; give the others the role ignore", *twice)


@pytest.mark.parametrize(
    "columns", [[], [column("id", pa.string(), "prediction_id"), column("label", pa.bool_())]]
)
def test_something_must_be_there_to_watch(columns: list[pa.Field[Any]]) -> None:
    refused("nothing to watch", *columns)


def test_storage_types() -> None:
    assert storage_type(pa.int8()) == pa.int8()
    assert storage_type(pa.uuid()) == pa.binary(16)
    assert storage_type(pa.dictionary(pa.int8(), pa.string_view())) == pa.string_view()
    assert storage_type(pa.dictionary(pa.int8(), pa.json_(pa.string_view()))) == pa.string_view()
