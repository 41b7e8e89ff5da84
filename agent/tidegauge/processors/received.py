"""Keeps the metrics that senders push over OTLP, as Prometheus has them: cumulative, by name and labels."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tidegauge import config
from tidegauge.batch import Batch, Points
from tidegauge.identity import OVERFLOW
from tidegauge.metric import Attributes, Kind, Metric, Number, Point
from tidegauge.processors.accumulation import UNKNOWN, fold
from tidegauge.processors.distributions import Scratch
from tidegauge.processors.labelling import Places, Target, is_too_large
from tidegauge.processors.readout import make_exemplars, read_point
from tidegauge.processors.series import TAKEN_BY_OVERFLOW, Reason, Store, refusal
from tidegauge.processors.series_table import KEYS_PER_SERIES
from tidegauge.wire.metrics import POINT, PointKind, move
from tidegauge.wire.points import EXEMPLAR, read_exemplars
from tidegauge.wire.protobuf import view

log = logging.getLogger(__name__)

_JOINED_BYTES = 2**20
_EXEMPLARS_AT_ONCE = 64
_MOST_EXEMPLARS = 32  # of one point; OpenTelemetry's SDKs send one for each bucket, 16 by default
_MOST_NAME = 255  # characters, as OpenTelemetry limits the names of instruments
_MOST_TEXT = 1024
_NANOSECONDS = 1_000_000_000


@dataclass(slots=True)
class _Family:
    """The series of one metric. Of metrics with one name the first decides what it is."""

    name: str
    kind: Kind
    unit: str
    description: str
    rows: dict[Attributes, int] = field(default_factory=dict)


class Received:
    """The processor of pushed metrics. The metrics that it gives are `received`.

    Labels of a series are the point's attributes, those of its scope, and the resource's `job` and
    `instance`; what else the resource says is on `target_info`. Series are bounded by `max_series`:
    what comes later is added up in one series of its metric that is marked as overflow, as far as it
    can be. A series that nobody wrote to for `stale_after` is forgotten.
    """

    def __init__(self, settings: config.ReceivedMetrics, start_ns: int | None = None) -> None:
        self._settings = settings
        self._max_keys = KEYS_PER_SERIES * settings.max_series
        self._stale_after_ns = round(settings.stale_after * _NANOSECONDS)
        self._start_ns = time.time_ns() if start_ns is None else start_ns
        self._now_ns = self._swept_ns = self._since_ns = self._start_ns
        self._store = Store()
        self._scratch = Scratch.empty()
        self._families: dict[str, _Family] = {}
        self._owners: dict[int, tuple[_Family, Attributes]] = {}
        self._own_series = 0
        self._points: dict[int, Point] = {}
        self._exemplars: dict[int, npt.NDArray[np.void]] = {}
        self._targets: dict[Attributes, Attributes] = {}
        self._targets_of: dict[int, Attributes] = {}
        self._conflicts: set[str] = set()
        self._known: dict[int, _Family | Reason] = {}  # by the keys of families, for as long as a fold
        self._overflowed = 0

    def update(self, *batches: Batch) -> Mapping[str, int]:
        """Fold batches of metrics. Returns the data points left out, by reason."""
        tally = np.zeros(len(Reason) + 1, np.int64)
        for raw, columns in _joined([batch for batch in batches if isinstance(batch, Points)]):
            self._fold(raw, columns, tally)
        self._overflowed += int(tally[TAKEN_BY_OVERFLOW] + tally[Reason.OVERFLOW])
        return {reason.name.lower(): int(tally[reason]) for reason in Reason if tally[reason]}

    def collect(self, now_ns: int) -> tuple[Metric, ...]:
        """The pushed metrics by name, `target_info` for each of their targets, and what overflowed."""
        self._now_ns = now_ns
        self._read_touched()
        self._expire()
        self._sweep()
        received = [
            Metric(
                family.name,
                family.kind,
                family.unit,
                family.description,
                tuple(self._points[row] for row in family.rows.values() if row in self._points),
                received=True,
            )
            for family in self._families.values()
        ]
        # First, so that no sender's own metric takes its name.
        return (*self._target_info(), *(metric for metric in received if metric.points), *self._own())

    def _fold(self, raw: bytes, columns: npt.NDArray[np.void], tally: npt.NDArray[np.int64]) -> None:
        places, buf = Places(raw), view(raw)
        self._known.clear()
        rows = np.empty(len(columns), np.int32)
        done = 0
        while done < len(columns):
            full = self._store.keys >= self._max_keys
            no_more_keys = self._store.keys >= self._max_keys + self._settings.max_metrics
            arrays = self._store.state, self._scratch, tally, rows
            done, cells = fold(buf, columns, done, full, no_more_keys, self._since_ns, *arrays)
            if done < len(columns):
                point = columns[done]
                if cells == UNKNOWN:
                    self._register(raw, places, point, full)
                else:
                    self._give_room(point, int(cells))
        self._keep_exemplars(buf, columns, rows)

    def _give_room(self, point: np.void, cells: int) -> None:
        row = self._store.row_of(point["key"])
        if row < 0:
            row = self._store.row_of(point["family"])
        if point["kind"] == PointKind.EXPONENTIAL_HISTOGRAM:
            self._store.give_exponential(row)
        else:
            self._store.give_cells(row, cells)

    def _register(self, raw: bytes, places: Places, point: np.void, full: bool) -> None:
        """Lead the point's key, or its family's where the table is full, to a series or to a refusal."""
        try:
            family = self._family(raw, point)
            if isinstance(family, Reason):
                row = refusal(family)
            elif full:
                row = self._row(family, OVERFLOW)
            else:
                row = self._series(family, places.labels(point), places.target(point))
        except ValueError:
            row = refusal(Reason.INVALID)
        self._store.insert(point["family"] if full else point["key"], row)

    def _family(self, raw: bytes, point: np.void) -> _Family | Reason:
        key = int(point["family"])
        if key not in self._known:
            name, unit, description = (_text(raw, point, part) for part in ("name", "unit", "description"))
            if point["kind"] == PointKind.SUM and not point["is_monotonic"] and unit == "1":
                unit = ""  # a number of things: only of a gauge proper does the Collector make a ratio
            self._known[key] = self._find_family(name, _kind(point), unit, description)
        return self._known[key]

    def _find_family(self, name: str, kind: Kind, unit: str, description: str) -> _Family | Reason:
        found = self._families.get(name)
        if found is None:
            if not name or len(name) > _MOST_NAME or len(unit) > _MOST_NAME:
                return Reason.INVALID
            if len(self._families) >= self._settings.max_metrics:
                return Reason.METRIC_LIMIT
            found = self._families[name] = _Family(name, kind, unit, description)
        if (found.kind, found.unit) == (kind, unit):
            return found
        if name not in self._conflicts and len(self._conflicts) < self._settings.max_metrics:
            self._conflicts.add(name)
            log.warning(
                "metric %s comes as a %s in %r and as a %s in %r: only the first is kept",
                name,
                found.kind.value,
                found.unit,
                kind.value,
                unit,
            )
        return Reason.NAME_CONFLICT

    def _series(self, family: _Family, labels: Attributes, target: Target) -> int:
        key = tuple(sorted(labels))
        if key not in family.rows and (self._own_series >= self._settings.max_series or is_too_large(labels)):
            key = OVERFLOW
        row = self._row(family, key)
        if target.labels and target.info and key != OVERFLOW:
            self._targets[target.labels] = target.info
            self._targets_of[row] = target.labels
        return row

    def _row(self, family: _Family, key: Attributes) -> int:
        if key not in family.rows:
            family.rows[key] = row = self._store.open(is_overflow=key == OVERFLOW)
            self._store.series[row]["seen_ns"] = self._now_ns
            self._owners[row] = (family, key)
            self._own_series += key != OVERFLOW
        return family.rows[key]

    def _keep_exemplars(
        self, buf: npt.NDArray[np.uint8], columns: npt.NDArray[np.void], rows: npt.NDArray[np.int32]
    ) -> None:
        """Keep each series' exemplars of its latest point that has any."""
        places = np.flatnonzero(columns["has_exemplars"] & (rows >= 0))
        out = np.zeros((_EXEMPLARS_AT_ONCE, _MOST_EXEMPLARS), EXEMPLAR)
        sizes = np.zeros(_EXEMPLARS_AT_ONCE, np.int64)
        for begin in range(0, len(places), _EXEMPLARS_AT_ONCE):
            some = places[begin : begin + _EXEMPLARS_AT_ONCE]
            read_exemplars(buf, columns, some, out, sizes)
            for at, (row, size) in enumerate(zip(rows[some].tolist(), sizes.tolist(), strict=False)):
                if size > 0 and self._owners[row][0].kind is not Kind.GAUGE:
                    self._exemplars[row] = out[at, :size].copy()

    def _read_touched(self) -> None:
        state = self._store.state
        touched = np.flatnonzero(state.series["is_touched"])
        state.series["seen_ns"][touched] = self._now_ns
        state.series["is_touched"][touched] = False
        for row in touched.tolist():
            family, labels = self._owners[row]
            if state.series[row]["is_shown"]:
                found = make_exemplars(self._exemplars.get(row))
                self._points[row] = read_point(state, row, family.kind, labels, found)
            else:
                self._points.pop(row, None)
                self._exemplars.pop(row, None)

    def _expire(self) -> None:
        series = self._store.series
        stale = np.flatnonzero(
            series["is_alive"] & (self._now_ns - series["seen_ns"] > self._stale_after_ns)
        ).tolist()
        if not stale:
            return
        for row in stale:
            family, labels = self._owners.pop(row)
            del family.rows[labels]
            if not family.rows:
                del self._families[family.name]
                self._conflicts.discard(family.name)
            self._own_series -= labels != OVERFLOW
            self._points.pop(row, None)
            self._exemplars.pop(row, None)
            self._targets_of.pop(row, None)
        self._store.close(stale)
        used = set(self._targets_of.values())
        self._targets = {labels: info for labels, info in self._targets.items() if labels in used}

    def _sweep(self) -> None:
        """Forget keys that are out of use, such as those of a process that came back as another one."""
        if self._now_ns - self._swept_ns >= self._stale_after_ns:
            self._swept_ns = self._now_ns
            if self._store.sweep():
                self._since_ns = self._now_ns

    def _target_info(self) -> Iterator[Metric]:
        points = tuple(Number((*labels, *info), 1.0) for labels, info in self._targets.items())
        if points:
            yield Metric(
                "target_info",
                Kind.GAUGE,
                "",
                "What else is known of a sender; always 1.",
                points,
                received=True,
            )

    def _own(self) -> tuple[Metric, ...]:
        return (
            Metric(
                "tidegauge.metrics.series",
                Kind.GAUGE,
                "{series}",
                "Series of pushed metrics, overflow series aside.",
                (Number((), float(self._own_series)),),
            ),
            Metric(
                "tidegauge.metrics.overflow",
                Kind.COUNTER,
                "{point}",
                "Data points of series beyond metrics.max_series, added up in overflow series or dropped.",
                (Number((), float(self._overflowed)),),
                self._start_ns,
            ),
        )


def _text(raw: bytes, point: np.void, part: str) -> str:
    """A text of the point's metric, cut after 1024 bytes."""
    begin, length = int(point[f"{part}_offset"]), int(point[f"{part}_length"])
    return raw[begin : begin + min(length, _MOST_TEXT)].decode(errors="ignore")


def _kind(point: np.void) -> Kind:
    match point["kind"]:
        case PointKind.SUM:
            return Kind.COUNTER if point["is_monotonic"] else Kind.GAUGE
        case PointKind.HISTOGRAM:
            return Kind.HISTOGRAM
        case PointKind.EXPONENTIAL_HISTOGRAM:
            return Kind.EXPONENTIAL_HISTOGRAM
        case PointKind.SUMMARY:
            return Kind.SUMMARY
        case _:
            return Kind.GAUGE


def _joined(batches: list[Points]) -> Iterator[tuple[bytes, npt.NDArray[np.void]]]:
    """The batches' bytes and columns, small ones joined: one kernel call instead of many."""
    some: list[Points] = []
    size = 0
    for batch in batches:
        if some and size + len(batch.raw) > _JOINED_BYTES:
            yield _join(some)
            some, size = [], 0
        some.append(batch)
        size += len(batch.raw)
    if some:
        yield _join(some)


def _join(batches: list[Points]) -> tuple[bytes, npt.NDArray[np.void]]:
    if len(batches) == 1:
        return batches[0].raw, batches[0].columns
    # As bytes, for numpy copies records field by field.
    columns = np.concatenate([batch.columns.view(np.uint8) for batch in batches]).view(POINT)
    row = shift = 0
    for batch in batches:
        move(columns[row : row + len(batch.columns)], shift)
        row += len(batch.columns)
        shift += len(batch.raw)
    return b"".join(batch.raw for batch in batches), columns
