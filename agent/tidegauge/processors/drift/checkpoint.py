"""The drift processor's state as Arrow, and back.

Arrow IPC and not Parquet: nobody queries it, every value must come back to the last bit, and pages and
statistics would be made only to be thrown away. An identity is a stream of one row, and so are its sections,
so that one which cannot be used costs no other; compressed with zstd, which halves it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidegauge.identity import Identity
from tidegauge.processors.drift import columns
from tidegauge.processors.drift.adaptive import ScoresState
from tidegauge.processors.drift.alarms import AlarmState, Recent
from tidegauge.processors.drift.changes import Found, Key
from tidegauge.processors.drift.counts import Counts, Tables
from tidegauge.processors.drift.panes import PaneState
from tidegauge.processors.drift.past import SUMMARIES, Before, Hour, PastState
from tidegauge.processors.drift.repeats import RepeatsState
from tidegauge.processors.drift.rows import RowsState
from tidegauge.processors.drift.sections import (
    KIND,
    Columns,
    Row,
    Section,
    TablesOf,
    owner,
    owner_columns,
    section,
    told,
)
from tidegauge.processors.drift.slices import SegmentState
from tidegauge.processors.drift.stream import StreamState
from tidegauge.processors.drift.unseen import UnseenState
from tidegauge.processors.drift.window import WindowState
from tidegauge.statefile import StateError

_WINDOW, _FIRST_ROWS = b"window", b"first_rows"
_FRAME_BYTES = 4 << 20
"""First rows that go into a frame: it is made in memory."""

_DETECTOR = pa.struct(
    [
        *((name, pa.string()) for name in Key._fields),
        ("time_ns", pa.int64()),
        ("state", pa.list_(pa.float64())),
    ]
)


class IdentityState(NamedTuple):
    """All that is kept of one identity. `start_ns` and `sums`, by output, are of its lifetime; `rows`,
    `unseen`, `segments` and `ids` are written as sections."""

    identity: Identity
    tables: Tables
    start_ns: int
    sums: dict[str, float]
    window: WindowState
    alarms: AlarmState
    stream: StreamState
    changes: dict[Key, Found]
    past: PastState | None = None
    scores: ScoresState | None = None
    rows: RowsState | None = None
    unseen: UnseenState | None = None
    segments: tuple[SegmentState, ...] = ()
    ids: RepeatsState | None = None

    def frames(self) -> Iterator[bytes]:
        """It as bytes: first what tells of itself whether the sections can be used."""
        yield _identity_frame(self)
        rows = self.rows if self.rows is not None and self.rows.panes else None
        unseen = self.unseen if self.unseen is not None and self.unseen.summaries else None
        for part in (rows, unseen, *self.segments, self.ids):
            if part is not None:
                yield Section(self.identity, self.tables, part).frame()


class FirstRows(NamedTuple):
    """The rows of a model that are to become its reference, as they came."""

    model: str
    version: str
    batches: tuple[pa.RecordBatch, ...]


class DriftState(NamedTuple):
    """All that a restart would lose. Immutable: it may be written on another thread than it was taken on.

    Two with equal stamps are equal.
    """

    stamp: Hashable
    identities: tuple[IdentityState, ...]
    first_rows: tuple[FirstRows, ...]

    def frames(self) -> Iterator[bytes]:
        """It as bytes, made one after the other."""
        for one in self.identities:
            yield from one.frames()
        for held in self.first_rows:
            yield from _first_rows_frames(held)


def decode(frame: bytes, tables_of: TablesOf) -> IdentityState | Section | FirstRows:
    """What a frame of `DriftState.frames` holds.

    Raises:
        StateError: for what does not belong to the present reference, or to this version of the agent.
    """
    try:
        with pa.ipc.open_stream(frame) as stream:
            metadata = stream.schema.metadata or {}
            batches = tuple(stream)
        kind = metadata[KIND]
        if kind == _FIRST_ROWS:
            return FirstRows(metadata[b"model"].decode(), metadata[b"version"].decode(), batches)
        row = {name: batches[0].column(name)[0] for name in batches[0].schema.names}
        if kind == _WINDOW:
            return _identity_state(row, tables_of)
        found = section(kind, row, tables_of)
    except (pa.ArrowException, LookupError, ValueError, TypeError, AttributeError) as error:
        raise StateError(f"a part of it cannot be understood: {error}") from error
    if found is None:
        raise StateError("a part of it is of a kind that is not known")
    return found


def _identity_frame(state: IdentityState) -> bytes:
    window, alarms = state.window, state.alarms
    levels, numbers = zip(*window.panes.held, strict=True)
    empty = Counts(state.tables).arrays()
    panes = columns.lists([pane.arrays() for pane in window.panes.held.values()], empty)
    recent = columns.lists(
        [one._asdict() for one in alarms.recent], {name: empty[name] for name in Recent._fields}
    )
    found: Columns = {
        **owner_columns(state.identity, state.tables),
        "start_ns": pa.array([state.start_ns]),
        "sums": pa.array([list(state.sums.items())], pa.map_(pa.string(), pa.float64())),
        "widths_ns": pa.array([list(window.panes.widths_ns)]),
        "watermark_ns": pa.array([window.watermark_ns], pa.int64()),
        "arrived_ns": pa.array([window.arrived_ns]),
        "next_pane": pa.array([window.next_pane], pa.int64()),
        "first_ns": pa.array([state.stream.first_ns]),
        "last_ns": pa.array([state.stream.last_ns]),
        "pauses": pa.array([list(state.stream.pauses)], pa.list_(pa.int64())),
        "schemas": pa.array([list(state.stream.schemas)], pa.list_(pa.int64())),
        "changes": pa.array([[_detector(*one) for one in state.changes.items()]], pa.list_(_DETECTOR)),
        "log_r": pa.array([alarms.log_r]),
        "alarming": pa.array([alarms.alarming.tolist()], pa.list_(pa.bool_())),
        "panes": columns.together({"level": pa.array(levels), "number": pa.array(numbers), **panes}),
        "recent": columns.together(recent),
        **_past_columns(state.past, state.tables),
        **_score_columns(state.scores),
    }
    return columns.one_row(found, {KIND: _WINDOW})


def _identity_state(row: Row, tables_of: TablesOf) -> IdentityState:
    identity, tables = owner(row, tables_of)
    log_r = row["log_r"].values.to_numpy()
    alarming = np.array(row["alarming"].as_py(), bool)
    if len(log_r) != len(tables.profiles) or len(alarming) != len(log_r):
        raise StateError(f"{told(identity)} has another number of columns")
    empty, table = Counts(tables).arrays(), row["panes"].values
    places = zip(table.field("level").to_pylist(), table.field("number").to_pylist(), strict=True)
    panes = (Counts.of(arrays) for arrays in columns.arrays(table, empty))
    recent = columns.arrays(row["recent"].values, {name: empty[name] for name in Recent._fields})
    return IdentityState(
        identity,
        tables,
        row["start_ns"].as_py(),
        dict(row["sums"].as_py()),
        WindowState(
            PaneState(tuple(row["widths_ns"].as_py()), dict(zip(places, panes, strict=True))),
            row["watermark_ns"].as_py(),
            row["arrived_ns"].as_py(),
            row["next_pane"].as_py(),
        ),
        AlarmState(log_r.copy(), alarming, tuple(Recent(**arrays) for arrays in recent)),
        _stream(row),
        _changes(row["changes"].values),
        _past(row, tables),
        _scores(row, len(tables.profiles)),
    )


def _stream(row: Row) -> StreamState:
    schemas = row["schemas"].as_py() if "schemas" in row else ()  # of a version without
    return StreamState(
        row["first_ns"].as_py(), row["last_ns"].as_py(), tuple(row["pauses"].as_py()), tuple(schemas)
    )


def _detector(key: Key, found: Found) -> dict[str, Any]:
    return {**key._asdict(), "time_ns": found.time_ns, "state": found.state}


def _changes(detectors: Any) -> dict[Key, Found]:
    return {
        Key(*(one[name].as_py() for name in Key._fields)): Found(
            one["state"].values.to_numpy().copy(), one["time_ns"].as_py()
        )
        for one in detectors
    }


def _hour_like(tables: Tables) -> dict[str, npt.NDArray[Any]]:
    empty = Counts(tables)
    return Hour(
        empty.counts.astype(np.uint32),
        empty.categories.astype(np.uint32),
        np.zeros((len(tables.profiles), len(SUMMARIES)), np.float32),
    )._asdict()


def _past_columns(past: PastState | None, tables: Tables) -> Columns:
    """None where nothing asks for it."""
    if past is None:
        return {}
    hours = columns.lists([hour._asdict() for hour in past.hours.values()], _hour_like(tables))
    empty = Counts(tables).arrays()
    return {
        "hours": columns.together({"hour": pa.array(list(past.hours), pa.int64()), **hours}),
        "open_hour": pa.array([past.open], pa.int64()),
        "open_rows": columns.together(columns.lists([past.rows.arrays()], empty)),
        "deviations": pa.array([past.deviations.ravel()], pa.list_(pa.float64())),
        "fixed": columns.together(
            columns.lists([past.fixed._asdict()], {name: empty[name] for name in Before._fields})
        ),
    }


def _past(row: Row, tables: Tables) -> PastState | None:
    if "hours" not in row:
        return None
    table, empty = row["hours"].values, Counts(tables).arrays()
    hours = (Hour(**arrays) for arrays in columns.arrays(table, _hour_like(tables)))
    [rows] = columns.arrays(row["open_rows"].values, empty)
    [fixed] = columns.arrays(row["fixed"].values, {name: empty[name] for name in Before._fields})
    return PastState(
        dict(zip(table.field("hour").to_pylist(), hours, strict=True)),
        row["open_hour"].as_py(),
        Counts.of(rows),
        Before(**fixed),
        row["deviations"].values.to_numpy().reshape(-1, len(SUMMARIES)),
    )


def _score_columns(scores: ScoresState | None) -> Columns:
    if scores is None:
        return {}
    return {
        "scores": pa.array([scores.scores.ravel()], pa.list_(pa.float32())),
        "scores_window": pa.array([scores.number], pa.int64()),
    }


def _scores(row: Row, width: int) -> ScoresState | None:
    if "scores" not in row:
        return None
    held = row["scores"].values.to_numpy(zero_copy_only=False).reshape(-1, width)
    return ScoresState(held, row["scores_window"].as_py())


def _first_rows_frames(held: FirstRows) -> Iterator[bytes]:
    """A frame for each run of batches of one schema that fits."""
    metadata = {KIND: _FIRST_ROWS, b"model": held.model.encode(), b"version": held.version.encode()}
    for _, run in groupby(held.batches, lambda batch: batch.schema.serialize().to_pybytes()):
        batches: list[pa.RecordBatch] = []
        for batch in run:
            if batches and sum(one.nbytes for one in batches) > _FRAME_BYTES:
                yield columns.stream(batches)
                batches = []
            batches.append(batch.replace_schema_metadata(metadata))
        yield columns.stream(batches)
