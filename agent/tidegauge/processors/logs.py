"""Counts log records, by identity and severity."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
from numba import types

from tidegauge import config
from tidegauge.batch import Batch, Logs
from tidegauge.metric import Kind, Metric, Number
from tidegauge.processors.series_table import SeriesTable, find
from tidegauge.stats.kernel import KERNEL, kernel
from tidegauge.stats.keyed import ENTRIES_T
from tidegauge.wire.logs import SEVERITIES
from tidegauge.wire.traces import identity


class LogRecords:
    """The processor of `model.log.records`.

    Series are bounded by `max_series`; records of later ones are counted in one that is marked as overflow.
    """

    def __init__(self, settings: config.Logs, start_ns: int | None = None) -> None:
        self._start_ns = time.time_ns() if start_ns is None else start_ns
        self._table = SeriesTable(settings.max_series)
        self._counts = np.zeros(16, np.int64)

    def update(self, *batches: Batch) -> Mapping[str, int]:
        """Count the records of logs batches."""
        logs = [batch for batch in batches if isinstance(batch, Logs)]
        if not logs:
            return {}
        keys = np.concatenate([batch.columns["key"] for batch in logs])
        ends = np.cumsum([batch.items for batch in logs])
        done = 0
        while done < len(keys):
            done = int(_count(keys, done, self._table.full, self._table.entries, self._counts))
            if done < len(keys):
                place = int(np.searchsorted(ends, done, "right"))
                batch = logs[place]
                self._register(batch.raw, batch.columns[done - int(ends[place])])  # from the batch's end
        return {}

    def collect(self, now_ns: int) -> tuple[Metric, ...]:
        """The counters, cumulative since the processor's start."""
        points = tuple(
            Number(attributes, float(count))
            for attributes, count in zip(self._table.attributes, self._counts.tolist(), strict=False)
            if count
        )
        description = "Log records received, by severity."
        records = Metric("model.log.records", Kind.COUNTER, "{record}", description, points, self._start_ns)
        return (records,)

    def _register(self, raw: bytes, log: np.void) -> None:
        severity = SEVERITIES[log["severity"]]
        self._table.register(log["key"], identity(raw, log).attributes(severity=severity))
        if len(self._table.attributes) > len(self._counts):
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])


@kernel(types.int64(types.uint64[::1], types.int64, types.boolean, ENTRIES_T, types.int64[::1]), **KERNEL)
def _count(keys, begin, full, table, counts):  # type: ignore[no-untyped-def]
    """Count keys from `begin` on, up to the first unknown one, and return its place.

    Where the table is `full`, unknown keys go to the overflow series.
    """
    for place in range(begin, keys.size):
        series = find(table, full, keys[place])
        if series < 0:
            return place
        counts[series] += 1
    return keys.size
