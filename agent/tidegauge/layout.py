"""What the columns of a schema are for, told once per schema and not once per batch."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

MAX_COMPONENTS = 8_192
"""Of an embedding. A pane takes 16 bytes a component, and a reference 40 for each that it is made from."""


class Role(enum.StrEnum):
    """What a column of a record batch is for (public contract, `role` field metadata)."""

    FEATURE = "feature"
    PREDICTION = "prediction"
    SCORE = "score"
    LABEL = "label"
    TIMESTAMP = "timestamp"
    PREDICTION_ID = "prediction_id"
    SEGMENT = "segment"
    IGNORE = "ignore"


class Kind(enum.StrEnum):
    """How a column is folded."""

    NUMERIC = "numeric"
    CATEGORICAL = "categorical"
    EMBEDDING = "embedding"
    TIMESTAMP = "timestamp"
    NONE = "none"


FOLDED = (Role.FEATURE, Role.PREDICTION, Role.SCORE)
"""Roles whose columns get statistics."""

_RESERVED = {role.value: role for role in Role if role is not Role.FEATURE}


class LayoutError(ValueError):
    """A schema that cannot be served, and how to mend it."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Layout:
    """Names, roles and kinds of a schema's columns, in order. Compared by identity."""

    names: tuple[str, ...]
    roles: tuple[Role, ...]
    kinds: tuple[Kind, ...]

    def index(self, role: Role) -> int | None:
        """The first column with a role."""
        return self.roles.index(role) if role in self.roles else None


def layout_of(schema: pa.Schema) -> Layout:
    """Read the roles and kinds of a schema's columns.

    A column's role is its field metadata `role`, else its name where that is a reserved one, else
    `feature`.

    Raises:
        LayoutError: for an unknown role, two columns of one name, two timestamps or prediction ids, a
            type that the role cannot have, a nested type, or nothing to watch.
    """
    names = tuple(schema.names)
    for name, times in Counter(names).items():
        if times > 1:
            raise LayoutError(f"column {name!r} appears {times} times; give each column its own name")
    roles = tuple(_role(field) for field in schema)
    kinds = tuple(_kind(field, role) for field, role in zip(schema, roles, strict=True))
    for role in (Role.TIMESTAMP, Role.PREDICTION_ID):
        if roles.count(role) > 1:
            raise LayoutError(f"more than one column has the role {role}; give the others the role ignore")
    # It also bounds the rows that bytes can claim: each takes a bit of such a column at least.
    if not any(role in FOLDED for role in roles):
        raise LayoutError("no column is a feature, a prediction or a score; there is nothing to watch")
    return Layout(names, roles, kinds)


def storage_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values proper: behind extensions, and in dictionaries."""
    while isinstance(kind, pa.BaseExtensionType) or pa.types.is_dictionary(kind):
        kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind.value_type
    return kind


def _role(field: pa.Field[Any]) -> Role:
    given = (field.metadata or {}).get(b"role")
    if given is None:
        return _RESERVED.get(field.name, Role.FEATURE)
    try:
        return Role(given.decode())
    except ValueError:
        known = ", ".join(role.value for role in Role)
        raise LayoutError(f"column {field.name!r} has the role {given!r}; known roles: {known}") from None


def _kind(field: pa.Field[Any], role: Role) -> Kind:
    kind = field.type
    if storage_type(kind).num_fields and not _is_embedding(kind):
        raise LayoutError(
            f"column {field.name!r} has the nested type {kind}; send each part as a column, or floats of an "
            "embedding as a FixedSizeList, or leave it out"
        )
    if role in (Role.IGNORE, Role.PREDICTION_ID, Role.LABEL, Role.SEGMENT):
        return Kind.NONE
    if role is Role.TIMESTAMP:
        if pa.types.is_timestamp(kind) or pa.types.is_int64(kind) or pa.types.is_float64(kind):
            return Kind.TIMESTAMP
        raise LayoutError(
            f"column {field.name!r} has the role timestamp but the type {kind}; "
            "send an Arrow timestamp, int64 Unix nanoseconds or float64 Unix seconds"
        )
    for matches, found in _KINDS:
        if matches(kind):
            if found is Kind.EMBEDDING and kind.list_size > MAX_COMPONENTS:
                raise LayoutError(
                    f"column {field.name!r} has vectors of {kind.list_size} components, more than "
                    f"{MAX_COMPONENTS}; send fewer, or set the field metadata role=ignore"
                )
            if role is Role.SCORE and found is not Kind.NUMERIC:
                raise LayoutError(
                    f"column {field.name!r} has the role score but the type {kind}; send numbers"
                )
            return found
    raise LayoutError(
        f"column {field.name!r} has the type {kind}, which cannot be a {role}; send numbers, booleans, "
        "strings or dictionaries of strings, or set the field metadata role=ignore"
    )


def _is_category(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type) or pa.types.is_integer(kind.value_type)
    return _is_text(kind) or pa.types.is_boolean(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _is_embedding(kind: pa.DataType) -> bool:
    return pa.types.is_fixed_size_list(kind) and kind.list_size > 0 and pa.types.is_floating(kind.value_type)


_KINDS: tuple[tuple[Callable[[pa.DataType], bool], Kind], ...] = (
    (_is_number, Kind.NUMERIC),
    (_is_category, Kind.CATEGORICAL),
    (_is_embedding, Kind.EMBEDDING),
)
