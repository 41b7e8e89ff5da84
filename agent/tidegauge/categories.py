"""Categorical columns as counts of text: strings, booleans, integers and dictionaries of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidegauge.layout import storage_type

Column = Any  # pa.Array; the stubs make it generic in a type that is not known here


def distinct(column: Column) -> tuple[Column, npt.NDArray[np.int64], int]:
    """The distinct values as text, how often each occurs, and the number of nulls.

    Values of a dictionary that no row uses come with a count of 0; a value that a dictionary holds
    twice comes twice.
    """
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    texts = pc.cast(column.dictionary, pa.string())
    indices = column.indices.drop_null().to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
    counts = np.bincount(indices, minlength=len(texts))
    missing = column.indices.null_count
    if texts.null_count:
        valid = texts.is_valid().to_numpy(zero_copy_only=False)
        missing += int(counts[~valid].sum())
        texts, counts = texts.drop_null(), counts[valid]
    return texts, counts, missing


def has_views(schema: pa.Schema) -> bool:
    """Whether any column is to be spelled out."""
    return any(not pa.types.is_dictionary(kind) and storage_type(kind) in _PLAIN for kind in schema.types)


def spelled_out(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The rows with plain strings in place of views, which Arrow cannot take or filter."""
    for index, kind in enumerate(rows.schema.types):
        behind = storage_type(kind)
        if pa.types.is_dictionary(kind) or behind not in _PLAIN:
            continue
        field = rows.schema.field(index).with_type(_PLAIN[behind])
        column: Column = pc.cast(stored(rows.column(index)), field.type)
        rows = rows.set_column(index, field, column)
    return rows


_PLAIN: dict[pa.DataType, pa.DataType] = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}


def stored(column: Column) -> Column:
    """The array behind extension types."""
    while isinstance(column, pa.ExtensionArray):
        column = column.storage
    return column


def texts(column: Column) -> Column:
    """The values as text: string[rows]."""
    if pa.types.is_dictionary(column.type):
        return pc.cast(column.dictionary, pa.string()).take(column.indices)
    return pc.cast(column, pa.string())


def numbered(texts: Column, known: Column) -> npt.NDArray[np.float32]:
    """The place of each text among the k known ones, k for others, NaN for nulls: float32[rows]."""
    found: Column = pc.index_in(texts, value_set=known)
    places: npt.NDArray[np.float32] = found.to_numpy(zero_copy_only=False).astype(np.float32)  # nulls are NaN
    if found.null_count > texts.null_count:
        others = np.isnan(places)
        if texts.null_count:
            others &= texts.is_valid().to_numpy(zero_copy_only=False)
        places[others] = len(known)
    return places
