"""Where the sums of embedding columns lie in a pane's counts, and how a batch's vectors get there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidegauge.profile import Embedding
from tidegauge.stats.embedding import frequencies
from tidegauge.stats.fourier import FREQUENCIES

_ROWS, _MISSING, _HEAD = 0, 1, 2


class Sums(NamedTuple):
    """What was folded of an embedding: see `Frequencies.fold`. `missing` are nulls, NaNs and infinities."""

    rows: int
    missing: int
    moments: npt.NDArray[np.float64]
    waves: npt.NDArray[np.float64]


class Frame:
    """The place of one embedding column's sums in a flat array, float64, from `begin` to `end`."""

    def __init__(self, embedding: Embedding, begin: int) -> None:
        self.embedding = embedding
        mean = embedding.summary.mean
        self.width = len(mean)
        self._center = mean.astype(np.float32)
        self._frequencies = frequencies(self.width)
        self._begin = begin
        self._waves = begin + _HEAD + 2 * self.width
        self.end = self._waves + 2 * FREQUENCIES

    @property
    def about(self) -> tuple[str, str, float, bytes]:
        """Whose vectors are summed, and about what: sums of equal ones add up, others do not."""
        its = self.embedding
        return its.name, its.role.value, its.summary.bandwidth, self._center.tobytes()

    def fold(self, column: Any, sums: npt.NDArray[np.float64]) -> None:
        """Add a batch's column, a fixed-size list of this width."""
        rows = len(column)
        if column.null_count:
            column = column.drop_null()
        # A slice of the values, and no copy where they are float32 already.
        values = pc.cast(column.flatten(), pa.float32(), safe=False).to_numpy(zero_copy_only=False)
        its = self.read(sums)
        vectors = np.ascontiguousarray(values.reshape(len(column), self.width))
        bandwidth = self.embedding.summary.bandwidth
        folded = self._frequencies.fold(vectors, self._center, bandwidth, its.moments, its.waves)
        sums[self._begin + _ROWS] += folded
        self.miss(rows - folded, sums)

    def miss(self, rows: int, sums: npt.NDArray[np.float64]) -> None:
        """Count rows without a vector."""
        sums[self._begin + _MISSING] += rows

    def read(self, sums: npt.NDArray[np.float64]) -> Sums:
        """Its part of the sums, as views."""
        moments = sums[self._begin + _HEAD : self._waves].reshape(2, self.width)
        waves = sums[self._waves : self.end].reshape(2, FREQUENCIES)
        rows, missing = sums[self._begin : self._begin + _HEAD].tolist()
        return Sums(int(rows), int(missing), moments, waves)


def frames(embeddings: Sequence[Embedding]) -> tuple[Frame, ...]:
    """Places for all of them, one after the other."""
    found: list[Frame] = []
    for embedding in embeddings:
        found.append(Frame(embedding, found[-1].end if found else 0))
    return tuple(found)
