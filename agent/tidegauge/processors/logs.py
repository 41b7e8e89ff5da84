"""Counts log records, by identity and severity."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
from numba import njit, types

from tidegauge import config
from tidegauge.batch import Batch, Logs
from tidegauge.identity import OVERFLOW, UNKNOWN_MODEL
from tidegauge.metric import Attributes, Kind, Metric, Number
from tidegauge.stats.keyed import ENTRIES_T, doubled, find, free, insert
from tidegauge.wire.logs import SEVERITIES
from tidegauge.wire.traces import identity

_OVERFLOW_SERIES = 0
_KEYS_PER_SERIES = 4
"""Room for spellings of one identity (a version sent as text and as a number) and for keys that overflow."""


class LogRecords:
    """The processor of `model.log.records`.

    Series are bounded by `max_series`; records of later ones are counted in one that is marked as overflow.
    """

    def __init__(self, settings: config.Logs, start_ns: int | None = None) -> None:
        self._max_series = settings.max_series
        self._max_keys = _KEYS_PER_SERIES * settings.max_series
        self._start_ns = time.time_ns() if start_ns is None else start_ns
        self._series: dict[Attributes, int] = {OVERFLOW: _OVERFLOW_SERIES}
        self._counts = np.zeros(16, np.int64)
        self._table = free(64)
        self._keys = 0

    def update(self, *batches: Batch) -> Mapping[str, int]:
        """Count the records of logs batches."""
        logs = [batch for batch in batches if isinstance(batch, Logs)]
        if not logs:
            return {}
        keys = np.concatenate([batch.columns["key"] for batch in logs])
        ends = np.cumsum([batch.items for batch in logs])
        done = 0
        while done < len(keys):
            full = self._keys >= self._max_keys
            done = int(_count(keys, done, full, self._table, self._counts))
            if done < len(keys):
                place = int(np.searchsorted(ends, done, "right"))
                batch = logs[place]
                self._register(batch.raw, batch.columns[done - int(ends[place])])  # from the batch's end
        return {}

    def collect(self, now_ns: int) -> tuple[Metric, ...]:
        """The counters, cumulative since the processor's start."""
        points = tuple(
            Number(key, float(self._counts[series]))
            for key, series in self._series.items()
            if self._counts[series]
        )
        description = "Log records received, by severity."
        records = Metric("model.log.records", Kind.COUNTER, "{record}", description, points, self._start_ns)
        return (records,)

    def _register(self, raw: bytes, log: np.void) -> None:
        """Give the record's key a series: a new one, one that its attributes have already, or overflow."""
        who = identity(raw, log)
        key = who._replace(model=who.model or UNKNOWN_MODEL).attributes(severity=SEVERITIES[log["severity"]])
        if key not in self._series and len(self._series) <= self._max_series:
            self._series[key] = len(self._series)
            if len(self._series) > len(self._counts):
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._keys += 1
        if 2 * self._keys > len(self._table):
            self._table = doubled(self._table)
        insert(self._table, log["key"], self._series.get(key, _OVERFLOW_SERIES))


@njit(
    types.int64(types.uint64[::1], types.int64, types.boolean, ENTRIES_T, types.int64[::1]),
    cache=True,
    nogil=True,
    _nrt=False,
)
def _count(keys, begin, full, table, counts):  # type: ignore[no-untyped-def]
    """Count keys from `begin` on, up to the first unknown one, and return its place.

    Where the table is `full`, unknown keys go to the overflow series.
    """
    for place in range(begin, keys.size):
        series = table[find(table, keys[place])].series
        if series < 0:
            if not full:
                return place
            series = _OVERFLOW_SERIES
        counts[series] += 1
    return keys.size
