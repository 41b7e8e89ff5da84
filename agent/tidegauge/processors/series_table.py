"""From keys to series: a bounded hash table that kernels read."""

from __future__ import annotations

from numba import types

from tidegauge.identity import OVERFLOW
from tidegauge.metric import Attributes
from tidegauge.stats.kernel import INLINE, kernel
from tidegauge.stats.keyed import ENTRIES_T, doubled, free, insert, slot_of

OVERFLOW_SERIES = 0

KEYS_PER_SERIES = 4
"""Room for spellings of one series (a version sent as text and as a number) and for keys that overflow."""


class SeriesTable:
    """Numbers series by their attributes, from 1 on, and remembers the number for each key.

    At most `max_series` are numbered; what comes later is of series 0, which is marked as overflow. Keys,
    which are hashes, are bounded too, KEYS_PER_SERIES for each series where `max_keys` does not say: past
    that the table is `full`, and keys that it has not are overflow.
    """

    def __init__(self, max_series: int, max_keys: int = 0) -> None:
        self.max_series = max_series
        self._max_keys = max_keys or KEYS_PER_SERIES * max_series
        self._numbers: dict[Attributes, int] = {OVERFLOW: OVERFLOW_SERIES}
        self._keys = 0
        self.entries = free(64)
        self.attributes: list[Attributes] = [OVERFLOW]

    @property
    def full(self) -> bool:
        """Whether no more keys are taken."""
        return self._keys >= self._max_keys

    def register(self, key: int, attributes: Attributes) -> None:
        """Give a key that is not there its series: a new one, the one of these attributes, or overflow."""
        if attributes not in self._numbers and len(self._numbers) <= self.max_series:
            self._numbers[attributes] = len(self.attributes)
            self.attributes.append(attributes)
        self._keys += 1
        if 2 * self._keys > len(self.entries):
            self.entries = doubled(self.entries)
        insert(self.entries, key, self._numbers.get(attributes, OVERFLOW_SERIES))


@kernel(types.int64(ENTRIES_T, types.boolean, types.uint64), **INLINE)
def find(entries, full, key):  # type: ignore[no-untyped-def]
    """The series of a key. Where it is unknown: -1, or overflow where the table is full."""
    series = entries[slot_of(entries, key)].series
    return OVERFLOW_SERIES if full and series < 0 else series
