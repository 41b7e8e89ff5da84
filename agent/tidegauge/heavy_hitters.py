"""The most frequent texts of a stream, in bounded memory: a Misra-Gries summary that adds up.

J. Misra and D. Gries, Finding Repeated Elements, Science of Computer Programming 2, 1982; merged as P. K.
Agarwal and others, Mergeable Summaries, PODS 2012: counts are added, and where more than `capacity` texts
have one, that of the largest that finds no place is taken off all of them.

Of n rows, however they are split, ordered and merged: a text's count is never more than its rows, and less by
at most `error`, which is at most n / (capacity + 1). So each text with more rows than that is there. Up to
`capacity` distinct texts all is exact.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Texts = Any  # pa.Array of string; the stubs make it generic in a type that is not known here

_PARTS = 32
"""Updates that wait at most, for the work of a merge to be shared among them: each takes half a KB."""


class Ranked(NamedTuple):
    """Texts and their counts, the largest first, and of equal ones the least text."""

    texts: tuple[str, ...]
    counts: npt.NDArray[np.int64]


_Counted = tuple[Texts, npt.NDArray[np.int64]]
"""Texts and the rows of each."""


class Summary(NamedTuple):
    """A summary as it was at one moment, which nobody changes any more: rows counted, what was taken off
    every count, texts with their counts, and more of them that wait to be merged."""

    rows: int
    taken: int
    kept: _Counted
    pending: tuple[_Counted, ...]


class HeavyHitters:
    """Counts texts. Holds `capacity` of them, and `waiting` (or as many) that are to be merged."""

    def __init__(self, capacity: int, *, waiting: int | None = None) -> None:
        if capacity < 1:
            raise ValueError(f"a summary of {capacity} texts tells nothing")
        self._capacity = capacity
        self._most_waiting = capacity if waiting is None else waiting
        self._kept: _Counted = (pa.array([], pa.string()), np.zeros(0, np.int64))
        self._pending: list[_Counted] = []
        self._waiting = 0
        self._taken = 0
        self.rows = 0
        """Rows counted."""

    def update(
        self, texts: Texts, counts: npt.NDArray[np.int64], *, rows: int | None = None, taken: int = 0
    ) -> None:
        """Count `texts[i]`, string[n] without nulls, for `counts[i]` rows, int64[n] >= 0.

        They may be a summary of the same capacity themselves: of so many `rows`, and counts that are too
        small by `taken` at most.
        """
        self.rows += int(counts.sum()) if rows is None else rows
        self._taken += taken
        self._pending.append((texts, counts))
        self._waiting += len(texts)
        if self._waiting > self._most_waiting or len(self._pending) >= _PARTS:
            self._settle()

    def merge(self, other: HeavyHitters) -> None:
        """Add what another summary of the same capacity has counted."""
        other._settle()
        self.update(*other._kept, rows=other.rows, taken=other._taken)

    def capture(self) -> Summary:
        """All of it, without a copy: what it holds is replaced and never changed."""
        return Summary(self.rows, self._taken, self._kept, tuple(self._pending))

    def restore(self, state: Summary) -> None:
        """Go on from there."""
        self.rows, self._taken, self._kept, pending = state
        self._pending = [*pending]
        self._waiting = sum(len(texts) for texts, _ in pending)

    @property
    def error(self) -> int:
        """What a count may be too small by at most: 0 where all are exact."""
        self._settle()
        return self._taken

    def ranked(self) -> Ranked:
        """All texts held."""
        self._settle()
        texts, counts = self._kept[0].to_pylist(), self._kept[1]
        order = sorted(range(len(texts)), key=lambda place: (-counts[place], texts[place]))
        return Ranked(tuple(texts[place] for place in order), counts[np.array(order, np.int64)])

    def _settle(self) -> None:
        if not self._pending:
            return
        parts = [self._kept, *self._pending]
        self._pending, self._waiting = [], 0
        encoded: Any = pa.chunked_array([texts for texts, _ in parts], pa.string()).combine_chunks()
        encoded = encoded.dictionary_encode()
        texts = encoded.dictionary
        counts = np.zeros(len(texts), np.int64)
        np.add.at(counts, encoded.indices.to_numpy(), np.concatenate([counts for _, counts in parts]))
        taken = 0
        if len(counts) > self._capacity:
            taken = int(np.partition(counts, -self._capacity - 1)[-self._capacity - 1])
            self._taken += taken
        left = counts - taken
        stays = left > 0
        self._kept = texts.filter(pa.array(stays)), left[stays]
