"""What of an identity is written in a frame of its own: a part that cannot be used costs no other."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from tidegauge.heavy_hitters import Summary
from tidegauge.identity import Identity
from tidegauge.processors.drift import columns
from tidegauge.processors.drift.counts import Counts, Tables
from tidegauge.processors.drift.panes import PaneState
from tidegauge.processors.drift.repeats import RepeatsState
from tidegauge.processors.drift.rows import PaneRows, RowsState
from tidegauge.processors.drift.slices import SegmentState, Slice, SliceState
from tidegauge.processors.drift.unseen import UnseenState
from tidegauge.statefile import StateError

KIND = b"tidegauge.state"
"""The key of what a frame holds, in its metadata."""

_ROWS, _UNSEEN, _SEGMENT, _IDS = b"rows", b"unseen", b"segment", b"ids"

T = TypeVar("T")

TablesOf = Callable[[Identity], Tables | None]
"""Gives an identity's present reference."""

Columns = dict[str, Any]  # of pa.Array, which is generic in the stubs only
Row = Mapping[str, Any]

Part = RowsState | UnseenState | SegmentState | RepeatsState


class Section(NamedTuple):
    """A part of what is kept of one identity."""

    identity: Identity
    tables: Tables
    part: Part

    def frame(self) -> bytes:
        """It as bytes."""
        match self.part:
            case RowsState():
                kind, its = _ROWS, _rows_columns(self.part)
            case UnseenState():
                kind, its = _UNSEEN, _unseen_columns(self.part)
            case SegmentState():
                kind, its = _SEGMENT, _segment_columns(self.part, self.tables)
            case RepeatsState():
                kind, its = _IDS, _ids_columns(self.part)
        return columns.one_row({**owner_columns(self.identity, self.tables), **its}, {KIND: kind})


def section(kind: bytes, row: Row, tables_of: TablesOf) -> Section | None:
    """What `Section.frame` has written as a row of that kind; None for a kind that is none of its.

    Raises:
        StateError: for what does not belong to the present reference.
    """
    read = _READERS.get(kind)
    if read is None:
        return None
    identity, tables = owner(row, tables_of)
    return Section(identity, tables, read(row, tables))


def owner_columns(identity: Identity, tables: Tables) -> Columns:
    """Whose a row is, and compared with which reference."""
    whose = {key: pa.array([value]) for key, value in identity._asdict().items()}
    return {**whose, "reference": pa.array([tables.fingerprint])}


def owner(row: Row, tables_of: TablesOf) -> tuple[Identity, Tables]:
    """Whose a row is, and its present reference.

    Raises:
        StateError: where that is none, or another one than that of the row.
    """
    identity = Identity(*(row[name].as_py() for name in Identity._fields))
    who, tables = told(identity), tables_of(identity)
    if tables is None:
        raise StateError(f"{who} has no reference now")
    if row["reference"].as_py() != tables.fingerprint:
        raise StateError(f"{who} has another reference now")
    return identity, tables


def told(identity: Identity) -> str:
    """An identity in a message."""
    return " ".join(filter(None, identity))


def _rows_columns(state: RowsState) -> Columns:
    """Values column by column, in which categories and numbers of few values repeat."""
    panes = state.panes.values()
    chunks = [chunk for pane in panes for chunk in (pane.joined, *pane.waiting)]
    values = np.concatenate([rows for rows, _ in chunks])
    about: Columns = {
        "number": pa.array(list(state.panes), pa.int64()),
        "below": pa.array([pane.below for pane in panes], pa.float64()),
        "chunks": pa.array(
            [[len(its) for _, its in (pane.joined, *pane.waiting)] for pane in panes], pa.list_(pa.int64())
        ),
    }
    return {
        "width_ns": pa.array([state.width_ns]),
        "most": pa.array([state.most]),
        "random": pa.array([json.dumps(state.random)]),
        "panes": columns.together(about),
        "priorities": columns.alone(np.concatenate([priorities for _, priorities in chunks])),
        "values": columns.alone(np.ascontiguousarray(values.T)),
    }


def _rows(row: Row, tables: Tables) -> RowsState:
    priorities = row["priorities"].values.to_numpy().copy()
    shape = (len(tables.profiles), len(priorities))
    values = row["values"].values.to_numpy()
    if values.dtype != np.float32 or values.size != shape[0] * shape[1]:
        raise StateError("its sample of rows is of another version of the agent")
    rows = np.ascontiguousarray(values.reshape(shape).T)
    panes: dict[int, PaneRows] = {}
    end = 0
    for pane in row["panes"].as_py():
        cuts = [*accumulate(pane["chunks"], initial=end)]
        joined, *waiting = [(rows[begin:over], priorities[begin:over]) for begin, over in pairwise(cuts)]
        panes[pane["number"]] = PaneRows(pane["below"], joined, tuple(waiting))
        end = cuts[-1]
    random = json.loads(_plain(row, "random", str))
    return RowsState(_plain(row, "width_ns", int), _plain(row, "most", int), panes, random)


def _unseen_columns(state: UnseenState) -> Columns:
    held = state.summaries.values()
    chunks = [chunk for one in held for chunk in (one.kept, *one.pending)]
    about: Columns = {
        "part": pa.array([number for number, _ in state.summaries], pa.int64()),
        "column": pa.array([column for _, column in state.summaries], pa.int64()),
        "rows": pa.array([one.rows for one in held], pa.int64()),
        "taken": pa.array([one.taken for one in held], pa.int64()),
        "chunks": pa.array(
            [[len(its) for _, its in (one.kept, *one.pending)] for one in held], pa.list_(pa.int64())
        ),
    }
    texts: Any = pa.chunked_array([texts for texts, _ in chunks], pa.string()).combine_chunks()
    counts = pa.array(np.concatenate([counts for _, counts in chunks]))
    return {
        "width_ns": pa.array([state.width_ns]),
        "summaries": columns.together(about),
        "counted": columns.together({"text": texts, "rows": counts}),
    }


def _unseen(row: Row, tables: Tables) -> UnseenState:
    table = row["counted"].values
    texts, counts = table.field("text"), table.field("rows").to_numpy()
    summaries: dict[tuple[int, int], Summary] = {}
    end = 0
    for one in row["summaries"].as_py():
        if not 0 <= one["column"] < len(tables.categorical):
            raise StateError("its unseen categories are of another version of the agent")
        cuts = [*accumulate(one["chunks"], initial=end)]
        kept, *pending = [
            (texts.slice(begin, over - begin), counts[begin:over]) for begin, over in pairwise(cuts)
        ]
        summaries[one["part"], one["column"]] = Summary(one["rows"], one["taken"], kept, tuple(pending))
        end = cuts[-1]
    return UnseenState(_plain(row, "width_ns", int), summaries)


def _segment_columns(state: SegmentState, tables: Tables) -> Columns:
    held = [
        (place, *key, pane) for place, one in enumerate(state.slices) for key, pane in one.panes.held.items()
    ]
    slices: Columns = {
        "text": pa.array([one.text for one in state.slices], pa.string()),
        "value": pa.array([one.slice.value for one in state.slices], pa.string()),
        "is_other": pa.array([one.slice.is_other for one in state.slices], pa.bool_()),
        "widths_ns": pa.array([list(one.panes.widths_ns) for one in state.slices], pa.list_(pa.int64())),
    }
    places = {
        name: pa.array([one[index] for one in held], pa.int64())
        for index, name in enumerate(("slice", "level", "number"))
    }
    panes = columns.lists([pane.arrays() for *_, pane in held], Counts(tables, vectors=False).arrays())
    return {
        "name": pa.array([state.name]),
        "slices": columns.together(slices),
        "panes": columns.together({**places, **panes}),
    }


def _segment(row: Row, tables: Tables) -> SegmentState:
    slices, table = row["slices"].as_py(), row["panes"].values
    held: list[dict[tuple[int, int], Counts]] = [{} for _ in slices]
    places = (table.field(key).to_pylist() for key in ("slice", "level", "number"))
    panes = columns.arrays(table, Counts(tables, vectors=False).arrays())
    for place, level, number, arrays in zip(*places, panes, strict=True):
        held[place][level, number] = Counts.of(arrays)
    name = _plain(row, "name", str)
    return SegmentState(
        name,
        tuple(
            SliceState(
                Slice(name, one["value"], one["is_other"]),
                one["text"],
                PaneState(tuple(one["widths_ns"]), mine),
            )
            for one, mine in zip(slices, held, strict=True)
        ),
    )


def _ids_columns(state: RepeatsState) -> Columns:
    return {
        "tags": columns.alone(state.tags),
        "oldest": columns.alone(state.oldest),
        "seed": pa.array([state.seed], pa.uint64()),
    }


def _ids(row: Row, _tables: Tables) -> RepeatsState:
    tags, oldest = (row[name].values.to_numpy().copy() for name in ("tags", "oldest"))
    if tags.dtype != np.uint32 or oldest.dtype != np.uint8:
        raise StateError("its prediction ids are of another version of the agent")
    return RepeatsState(tags.reshape(len(oldest), -1), oldest, _plain(row, "seed", int))


def _plain(row: Row, name: str, kind: type[T]) -> T:
    value = row[name].as_py()
    if not isinstance(value, kind):
        raise StateError(f"its {name} is of another version of the agent")
    return value


_READERS: Mapping[bytes, Callable[[Row, Tables], Part]] = {
    _ROWS: _rows,
    _UNSEEN: _unseen,
    _SEGMENT: _segment,
    _IDS: _ids,
}
