"""The columns of a layout that are read as texts: each batch is looked up among known ones in one call."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidegauge.batch import Content
from tidegauge.categories import stored
from tidegauge.plain import Plain
from tidegauge.processors.drift.unseen import CAPACITY, Unknown
from tidegauge.wire import texts
from tidegauge.wire.known import Known
from tidegauge.wire.met import Met, Others
from tidegauge.wire.texts import BOOLEAN, LARGE_TEXT, TEXT

_array_address = ctypes.pythonapi.PyCapsule_GetPointer
_array_address.restype = ctypes.c_void_p
_array_address.argtypes = [ctypes.py_object, ctypes.c_char_p]

_KINDS: dict[pa.DataType, int] = {pa.string(): TEXT, pa.large_string(): LARGE_TEXT, pa.bool_(): BOOLEAN}

_OTHER_TYPES = "a batch has other types than its layout"

_ENCODED = 4
"""Bytes of an index where Arrow has made a dictionary."""

_LONGEST_DICTIONARY = 256
"""Room that is made before it is known what a batch's dictionaries need."""


class Counted(NamedTuple):
    """The texts of some columns of a batch, in the order of `Texts.columns`.

    `totals` int64[columns, most known + 1]: rows of each known text, and of all others after these.
    `missing` int64[columns]: nulls. `others`: what was met besides, where it is wanted. `places`: of each
    row's text among the known, int32[columns, rows], or int32[columns, 0] where nobody wants them.
    """

    totals: npt.NDArray[np.int64]
    missing: npt.NDArray[np.int64]
    others: Others
    places: npt.NDArray[np.int32]


class Texts:
    """Some columns of a layout. `columns` int64[n] are those of `Known` in which they are looked up."""

    def __init__(self, columns: Sequence[tuple[int, int]], schema: pa.Schema) -> None:
        """`columns` are pairs of a column of the schema, and of the known."""
        kinds = [schema.field(index).type for index, _ in columns]
        self._converted = [
            index for (index, _), kind in zip(columns, kinds, strict=True) if not _is_readable(kind)
        ]
        laid_out = [(*column, *_read_as(kind)) for column, kind in zip(columns, kinds, strict=True)]
        self._columns = np.array(laid_out, np.int64).reshape(len(laid_out), 4)
        self.columns = np.ascontiguousarray(self._columns[:, 1])

    def __len__(self) -> int:
        return len(self._columns)

    def count(self, content: Content, known: Known, *, others: bool = False, places: bool = False) -> Counted:
        """Look up a batch of the schema. Of what is not known the most frequent are told if `others` are
        wanted.

        Raises:
            TypeError: for a batch of another schema.
        """
        rows = self._readable(content)
        columns, most = len(self), known.most
        found = Counted(
            np.zeros((columns, most + 1), np.int64),
            np.zeros(columns, np.int64),
            Others.room(columns, CAPACITY if others else 0),
            np.empty((columns, rows.num_rows if places else 0), np.int32),
        )
        address, keeper = address_of(rows)
        room, needed = Met.room(), _LONGEST_DICTIONARY
        while needed > 0:
            mapped = np.empty(needed, np.int32)
            needed = texts.count(address, self._columns, known, room, mapped, *found)
        del keeper
        if needed < 0:
            raise TypeError(_OTHER_TYPES)
        return found

    def pick(
        self,
        content: Content,
        known: Known,
        rows: npt.NDArray[np.int64],
        first: int,
        found: npt.NDArray[np.float32],
    ) -> None:
        """Write the places of some rows' texts to `found`, float32[rows, ...], in the column `first` and
        those after it: the number of known ones for others, NaN for nulls."""
        address, keeper = address_of(self._readable(content))
        fits = texts.pick(address, self._columns, known, rows, first, found)
        del keeper
        if not fits:
            raise TypeError(_OTHER_TYPES)

    def others(self, known: Known, counted: Counted) -> Iterator[tuple[int, Unknown]]:
        """What was met in each column of the known that has any, and is none of them."""
        rows = counted.totals[np.arange(len(self)), known.sizes[self.columns]]
        if not rows.any():
            return
        heads, counts, offsets, octets = counted.others
        ends = np.cumsum(heads[:, 0]).tolist()
        for number in np.flatnonzero(rows).tolist():
            count, taken = heads[number].tolist()
            end = ends[number]
            # Copies: what waits to be merged must not hold the room of all columns.
            its = counts[end - count : end].copy()
            bounds = offsets[end - count : end + 1]
            mine = octets[bounds[0] : bounds[-1]].tobytes()
            named = pa.StringArray.from_buffers(count, pa.py_buffer(bounds - bounds[0]), pa.py_buffer(mine))
            yield int(self.columns[number]), Unknown(named, its, int(rows[number]), taken)

    def _readable(self, content: Content) -> pa.RecordBatch:
        rows = content.rows if isinstance(content, Plain) else content
        if not self._converted:
            return rows
        columns: list[Any] = rows.columns
        for index in self._converted:
            columns[index] = _converted(columns[index])
        return pa.RecordBatch.from_arrays(columns, names=rows.schema.names)


def address_of(rows: pa.RecordBatch) -> tuple[int, object]:
    """Where the `ArrowArray` struct of a batch is, and what keeps it there (Arrow C data interface)."""
    whole: Any = rows
    capsule = whole.__arrow_c_array__()[1]
    return _array_address(capsule, b"arrow_array"), capsule


def _is_readable(kind: Any) -> bool:
    return (kind.value_type if pa.types.is_dictionary(kind) else kind) in _KINDS


def _read_as(kind: Any) -> tuple[int, int]:
    """How the kernel reads a column that is `_converted`: its values, and the bytes of an index or 0."""
    while isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        return _KINDS.get(kind.value_type, TEXT), kind.index_type.bit_width // 8
    if kind in _KINDS:
        return _KINDS[kind], 0
    return TEXT, 0 if pa.types.is_string_view(kind) else _ENCODED


def _converted(column: Any) -> Any:
    """Dictionaries of other values, such as integers, as ones of text; views as texts; the rest as
    dictionaries of text."""
    column = stored(column)
    if _is_readable(column.type):
        return column
    if pa.types.is_string_view(column.type):
        return pc.cast(column, pa.string())
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    return pa.DictionaryArray.from_arrays(column.indices, pc.cast(column.dictionary, pa.string()))
