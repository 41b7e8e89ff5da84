"""Categorical columns as counts of text: strings, booleans, integers and dictionaries of them."""

from __future__ import annotations

from typing import Any, NamedTuple

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


def spelled_out(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The rows with plain strings in place of views, which Arrow cannot take or filter."""
    for index, kind in enumerate(rows.schema.types):
        stored = storage_type(kind)
        if pa.types.is_dictionary(kind) or stored not in _PLAIN:
            continue
        column: Any = rows.column(index)
        while isinstance(column, pa.ExtensionArray):
            column = column.storage
        field = rows.schema.field(index).with_type(_PLAIN[stored])
        rows = rows.set_column(index, field, pc.cast(column, field.type))
    return rows


_PLAIN: dict[pa.DataType, pa.DataType] = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}


class Counted(NamedTuple):
    """Rows per known category, int64[k + 1], those of no known one last; nulls; and the unknown ones.

    `others` are texts with `other_counts` rows each. All rows but the nulls are in `totals`.
    """

    totals: npt.NDArray[np.int64]
    missing: int
    others: Column
    other_counts: npt.NDArray[np.int64]


def count(column: Column, known: Column) -> Counted:
    """Count a batch's column.

    Args:
        column: the batch's column.
        known: string[k], the reference's categories.
    """
    texts, counts, missing = distinct(column)
    found: Column = pc.index_in(texts, value_set=known)
    codes = found.fill_null(len(known)).to_numpy(zero_copy_only=False)
    totals = np.zeros(len(known) + 1, np.int64)
    np.add.at(totals, codes, counts)
    if not totals[-1]:
        return Counted(totals, missing, texts[:0], counts[:0])
    unknown = codes == len(known)
    return Counted(totals, missing, texts.filter(pa.array(unknown)), counts[unknown])


def codes(column: Column, known: Column) -> npt.NDArray[np.int64]:
    """The place of each row's category among the known ones, len(known) for none of them, and one more for
    a null: int64[rows]."""
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    texts = pc.cast(encoded.dictionary, pa.string())
    found: Column = pc.index_in(texts, value_set=known).fill_null(len(known))
    places = np.append(found.to_numpy(zero_copy_only=False), len(known) + 1).astype(np.int64)
    if texts.null_count:
        places[:-1][~texts.is_valid().to_numpy(zero_copy_only=False)] = len(known) + 1
    taken: npt.NDArray[np.int64] = places[indices(encoded)]
    return taken


def indices(encoded: Column) -> npt.NDArray[np.int64]:
    """Each row's place in the dictionary, and len(dictionary) for a null: int64[rows]."""
    # A null's place need not fit the type that the column has.
    whole: Column = pc.cast(encoded.indices, pa.int64())
    filled = whole.fill_null(len(encoded.dictionary)) if whole.null_count else whole
    found: npt.NDArray[np.int64] = filled.to_numpy(zero_copy_only=False)
    return found


def texts(column: Column) -> Column:
    """The values as text: string[rows]."""
    if pa.types.is_dictionary(column.type):
        return pc.cast(column.dictionary, pa.string()).take(column.indices)
    return pc.cast(column, pa.string())


def numbered(texts: Column, known: Column) -> npt.NDArray[np.float32]:
    """The place of each text among the k known ones, k for others, NaN for nulls: float32[rows]."""
    found: Column = pc.index_in(texts, value_set=known)
    places = found.fill_null(len(known)).to_numpy(zero_copy_only=False).astype(np.float32)
    return np.where(texts.is_valid().to_numpy(zero_copy_only=False), places, np.float32(np.nan))
