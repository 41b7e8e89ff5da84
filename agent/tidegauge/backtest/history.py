"""Rows of the past in the order of their event time, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidegauge.layout import Role
from tidegauge.stats.value_counts import ValueCounts

SORT_BYTES = 32 << 20
"""About how much is sorted in memory at a time; with its copies that takes four times as much."""

MOST_RUNS = 256
"""Temporary files open at once."""

_NS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_YEAR_NS = 365 * 86_400 * 10**9

Times = npt.NDArray[np.int64]
Read = Callable[[Sequence[str] | None], Iterator[pa.RecordBatch]]
"""Gives all rows, of all columns or of those named, each time it is called."""


class HistoryError(Exception):
    """Why rows cannot be put in order, and what to do about it."""


class Survey(NamedTuple):
    """What the timestamps told: rows with one and without, the first and the last, and their order."""

    rows: int
    untimed: int
    first_ns: int
    last_ns: int
    is_ordered: bool
    quantiles: ValueCounts


@dataclass(frozen=True)
class Clock:
    """The column with the event time, and the unit of whole numbers in it (s, ms, us or ns).

    Where no column is named it is the one with the role `timestamp`.
    """

    column: str | None = None
    unit: str | None = None

    def find(self, schema: pa.Schema) -> str:
        """The column's name.

        Raises:
            HistoryError: where there is none.
        """
        told = [field.name for field in schema if (field.metadata or {}).get(b"role") == b"timestamp"]
        found = self.column or (told[0] if told else str(Role.TIMESTAMP))
        if found not in schema.names:
            raise HistoryError(
                f"no column is called {found!r}; name the one with the event time with --timestamp COLUMN: "
                f"there are {', '.join(schema.names)}"
            )
        return found

    def times(self, rows: pa.RecordBatch) -> tuple[Times, npt.NDArray[np.bool_]]:
        """Unix nanoseconds, int64[rows], and which rows have them, bool[rows].

        Raises:
            HistoryError: for a column that is no time.
        """
        name = self.find(rows.schema)
        column: Any = rows.column(name)
        kind = column.type
        try:
            if pa.types.is_floating(kind):
                seconds = column.to_numpy(zero_copy_only=False)
                known = np.isfinite(seconds)
                scale = _NS[self.unit or "s"]
                return (np.where(known, seconds, 0.0) * scale).astype(np.int64), known
            if pa.types.is_integer(kind):
                whole = pc.multiply_checked(pc.cast(column, pa.int64()), _NS[self.unit or "ns"])
            else:
                # Dates, timestamps in any unit or zone, and ISO 8601 text.
                whole = pc.cast(pc.cast(column, pa.timestamp("ns", getattr(kind, "tz", None))), pa.int64())
        except pa.ArrowException as error:
            raise HistoryError(
                f"column {name!r} of type {kind} is no event time ({str(error).splitlines()[0]}); it takes "
                "timestamps, dates, ISO 8601 text, Unix seconds as fractions, or whole numbers with "
                "--timestamp-unit"
            ) from error
        known = whole.is_valid().to_numpy(zero_copy_only=False)
        return whole.fill_null(0).to_numpy(zero_copy_only=False), known


class History:
    """All rows that `read` gives, as the agent would have received them, in order of event time.

    Ties keep the order in which they are read. Rows without a time are left out.
    """

    def __init__(self, read: Read, clock: Clock, ignore: Sequence[str] = ()) -> None:
        self._read = read
        self._clock = clock
        self._ignore = frozenset(ignore)

    def survey(self, columns_of: pa.Schema) -> Survey:
        """Read the timestamps alone: those of `columns_of`'s column, which the other files have too.

        Raises:
            HistoryError: where there are none, or whole numbers look to be of another unit.
        """
        name = self._clock.find(columns_of)
        rows = untimed = 0
        first, last, is_ordered = 2**63 - 1, -(2**63), True
        counted = ValueCounts()
        for batch in self._read([name]):
            times, known = self._clock.times(batch)
            times = times[known]
            untimed += len(known) - len(times)
            if not len(times):
                continue
            is_ordered = is_ordered and int(times[0]) >= last and bool((np.diff(times) >= 0).all())
            rows += len(times)
            first, last = min(first, int(times.min())), max(last, int(times.max()))
            counted.update(times.astype(np.float64))
        if not rows:
            raise HistoryError(f"no row has an event time in column {name!r}")
        if self._clock.unit is None and pa.types.is_integer(columns_of.field(name).type) and last < _YEAR_NS:
            raise HistoryError(
                f"column {name!r} read as nanoseconds is all of 1970; say what it is with "
                "--timestamp-unit s, ms, us or ns"
            )
        return Survey(rows, untimed, first, last, is_ordered, counted)

    def batches(self, survey: Survey) -> Iterator[tuple[pa.RecordBatch, Times]]:
        """The rows with their times, int64[rows] Unix nanoseconds, ascending."""
        for rows, times in self._timed() if survey.is_ordered else self._sorted(survey):
            if len(times):
                yield rows, times

    def _timed(self) -> Iterator[tuple[pa.RecordBatch, Times]]:
        for rows in self._read(None):
            times, known = self._clock.times(rows)
            told = self._received(rows, times)
            yield (told, times) if known.all() else (told.filter(pa.array(known)), times[known])

    def _received(self, rows: pa.RecordBatch, times: Times) -> pa.RecordBatch:
        """With one column of the role timestamp, as int64 nanoseconds, and none that is to be ignored."""
        name = self._clock.find(rows.schema)
        kept: list[tuple[pa.Field[Any], Any]] = []
        for field, column in zip(rows.schema, rows.columns, strict=True):
            if field.name == name:
                timed = pa.field(name, pa.int64(), metadata={"role": str(Role.TIMESTAMP)})
                kept.append((timed, pa.array(times)))
            elif field.name not in self._ignore and field.name != Role.TIMESTAMP:
                kept.append((field, column))
        return pa.RecordBatch.from_arrays(
            [column for _, column in kept], schema=pa.schema([field for field, _ in kept])
        )

    def _sorted(self, survey: Survey) -> Iterator[tuple[pa.RecordBatch, Times]]:
        """Distribute the rows over files by their time, then sort one file after the other."""
        with TemporaryDirectory(prefix="tidegauge-") as folder, ExitStack() as stack:
            bounds: Times | None = None
            runs: list[Any] = []
            for rows, times in self._timed():
                if bounds is None:
                    bounds = _bounds(survey, rows.nbytes / max(len(times), 1))
                    paths = (Path(folder, str(number)) for number in range(len(bounds) + 1))
                    runs = [stack.enter_context(path.open("w+b")) for path in paths]
                places = np.searchsorted(bounds, times, side="right")
                for place in np.unique(places).tolist():
                    mine = rows.filter(pa.array(places == place))
                    # A stream for each piece: files may differ in their schemas.
                    with pa.ipc.new_stream(runs[place], mine.schema) as stream:
                        stream.write_batch(mine)
            for run in runs:
                yield from self._in_order(run)

    def _in_order(self, run: Any) -> Iterator[tuple[pa.RecordBatch, Times]]:
        end = run.tell()
        run.seek(0)
        pieces = []
        while run.tell() < end:
            pieces.append(pa.ipc.open_stream(run).read_all())
        if not pieces:
            return
        whole: Any = pa.concat_tables(pieces, promote_options="permissive").combine_chunks()
        del pieces
        name = self._clock.find(whole.schema)
        times = whole.column(name).to_numpy()
        order = np.argsort(times, kind="stable")
        done = 0
        for rows in whole.take(pa.array(order)).to_batches(max_chunksize=65_536):
            yield rows, times[order[done : done + rows.num_rows]]
            done += rows.num_rows


def _bounds(survey: Survey, row_bytes: float) -> Times:
    """Times that part the rows into runs of about SORT_BYTES, ascending."""
    runs = min(int(survey.rows * row_bytes / SORT_BYTES) + 1, MOST_RUNS)
    counted = survey.quantiles.sorted()
    reached = np.searchsorted(np.cumsum(counted.counts), np.arange(1, runs) * survey.rows / runs)
    return np.unique(counted.upper[reached].astype(np.int64))
