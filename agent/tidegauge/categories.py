"""Categorical columns as counts of text: strings, booleans, integers and dictionaries of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

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


def count(column: Column, known: Column) -> tuple[npt.NDArray[np.int64], int]:
    """Rows per known category, those of no known one last, and the number of nulls.

    Args:
        column: the batch's column.
        known: string[k], the reference's categories.

    Returns:
        int64[k + 1] counts and the nulls; they add up to the column's length.
    """
    texts, counts, missing = distinct(column)
    found: Column = pc.index_in(texts, value_set=known)
    codes = found.fill_null(len(known)).to_numpy(zero_copy_only=False)
    totals = np.zeros(len(known) + 1, np.int64)
    np.add.at(totals, codes, counts)
    return totals, missing


def texts(column: Column) -> Column:
    """The values as text: string[rows]."""
    if pa.types.is_dictionary(column.type):
        return pc.cast(column.dictionary, pa.string()).take(column.indices)
    return pc.cast(column, pa.string())


def codes(texts: Column, known: Column) -> npt.NDArray[np.float32]:
    """The place of each text among the k known ones, k for others, NaN for nulls: float32[rows]."""
    found: Column = pc.index_in(texts, value_set=known)
    places = found.fill_null(len(known)).to_numpy(zero_copy_only=False).astype(np.float32)
    return np.where(texts.is_valid().to_numpy(zero_copy_only=False), places, np.float32(np.nan))
