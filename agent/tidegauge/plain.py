"""Record batches of numbers, left as they came: to fold one nobody needs it as Arrow's objects.

To make 50 columns of a message, and to take them apart again, costs more than to fold 100 rows of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidegauge.stats.spots import VALIDITY, VALUES

_WIDTHS = (1, 8, 16, 32, 64)


class Plain:
    """A record batch whose columns are all of a fixed width, and where their values lie in its message.

    `spots` is int64[columns, 4] (`stats.spots`), in `raw`. What is asked for as Arrow's is copied: the
    values need not be aligned.
    """

    __slots__ = ("_raw", "_rows", "num_rows", "schema", "spots")

    def __init__(self, raw: bytes, schema: pa.Schema, num_rows: int, spots: npt.NDArray[np.int64]) -> None:
        self._raw = raw
        self._rows: pa.RecordBatch | None = None
        self.schema = schema
        self.num_rows = num_rows
        self.spots = spots

    def column(self, index: int) -> pa.Array[Any]:
        """One column."""
        kind: Any = self.schema.field(index).type
        width = kind.bit_width
        spot = self.spots[index]
        validity = self._part(int(spot[VALIDITY]), self.num_rows) if spot[VALIDITY] else None
        values = self._part(int(spot[VALUES]), width * self.num_rows)
        return pa.Array.from_buffers(kind, self.num_rows, [validity, values])

    @property
    def rows(self) -> pa.RecordBatch:
        """All columns; made once."""
        if self._rows is None:
            columns = [self.column(index) for index in range(len(self.spots))]
            self._rows = pa.RecordBatch.from_arrays(columns, schema=self.schema)
        return self._rows

    def _part(self, address: int, bits: int) -> pa.Buffer:
        whole = pa.py_buffer(self._raw)
        return pa.py_buffer(whole.slice(address - whole.address, (bits + 7) // 8).to_pybytes())


def bit_widths(schema: pa.Schema) -> npt.NDArray[np.int64] | None:
    """Bits of a value of each column, int64[columns]; None for a schema with other columns than numbers."""
    if not all(pa.types.is_primitive(kind) and kind.bit_width in _WIDTHS for kind in schema.types):
        return None
    return np.array([kind.bit_width for kind in schema.types], np.int64)
