"""Arrays of numbers as columns of Arrow, and back to the last bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidegauge.statefile import StateError

_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")


def lists(
    rows: Sequence[Mapping[str, npt.NDArray[Any]]], like: Mapping[str, npt.NDArray[Any]]
) -> dict[str, pa.Array[Any]]:
    """The arrays of rows, a list for each."""
    found: dict[str, pa.Array[Any]] = {}
    for name, array in like.items():
        values: pa.Array[Any] = pa.array(np.array([row[name] for row in rows], array.dtype).ravel())
        found[name] = pa.LargeListArray.from_arrays(_ends(np.arange(len(rows) + 1) * array.size), values)
    return found


def arrays(table: Any, like: Mapping[str, npt.NDArray[Any]]) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """What `lists` was given, in arrays of their own.

    Raises:
        StateError: where they are of another type or number than those of `like`.
    """
    parts: dict[str, npt.NDArray[Any]] = {}
    for name, array in like.items():
        values = table.field(name).flatten().to_numpy()
        if values.dtype != array.dtype or len(values) != len(table) * array.size:
            raise StateError("its counts are of another version of the agent")
        parts[name] = values.reshape(len(table), *array.shape)
    for index in range(len(table)):
        yield {name: values[index].copy() for name, values in parts.items()}


def together(columns: Mapping[str, pa.Array[Any]]) -> pa.Array[Any]:
    """One list of all rows of a table."""
    rows = pa.StructArray.from_arrays(list(columns.values()), list(columns))
    return pa.LargeListArray.from_arrays(_ends(np.array([0, len(rows)])), rows)


def alone(values: npt.NDArray[Any]) -> pa.Array[Any]:
    """One list of all numbers of an array."""
    return pa.LargeListArray.from_arrays(_ends(np.array([0, values.size])), pa.array(values.ravel()))


def one_row(columns: Mapping[str, pa.Array[Any]], metadata: dict[bytes, bytes]) -> bytes:
    """A stream of one row."""
    batch = pa.RecordBatch.from_arrays(list(columns.values()), list(columns))
    return stream([batch.replace_schema_metadata(metadata)])


def stream(batches: Sequence[pa.RecordBatch]) -> bytes:
    """Batches of one schema as bytes."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema, options=_OPTIONS) as its:
        for batch in batches:
            its.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _ends(ends: npt.NDArray[np.int64]) -> Any:
    return pa.array(ends, pa.int64())
