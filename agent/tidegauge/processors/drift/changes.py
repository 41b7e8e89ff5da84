"""Change points of a model's outputs, and of its errors where rows carry their labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidegauge.batch import Records
from tidegauge.config import Drift as Settings
from tidegauge.identity import Identity
from tidegauge.layout import Kind, Layout, Role, storage_type
from tidegauge.metric import Number
from tidegauge.processors.drift.report import Points
from tidegauge.processors.drift.window import event_times
from tidegauge.profile import Profile
from tidegauge.stats import adwin, error_rate, page_hinkley

Column = Any  # pa.Array; the stubs make it generic in a type that is not known here
Floats = npt.NDArray[np.float64]

VALUE, ERROR = "value", "error"
"""What a detector looks at: an output, or how far it is from its label."""

_FARTHEST = 10.0
"""Standard deviations that Page-Hinkley is told of at most: one row must not make a change."""


class _Detector(NamedTuple):
    fresh: Callable[[], Floats]
    update: Callable[[Floats, Floats, npt.NDArray[np.int64]], int]


_DETECTORS = {
    "adwin": _Detector(adwin.fresh, adwin.update),
    # In standard deviations, for shifts of a fifth of one and more. Siegmund's formula (Sequential Analysis,
    # 1985) has normal values without a change cross it once in 2e9.
    "page_hinkley": _Detector(lambda: page_hinkley.fresh(90.0, 0.1, 1.0), page_hinkley.update),
    "ddm": _Detector(error_rate.fresh, error_rate.ddm),
    "eddm": _Detector(error_rate.fresh, error_rate.eddm),
    "hddm_a": _Detector(error_rate.fresh, error_rate.hddm_a),
}


class Key(NamedTuple):
    """One detector: of what (VALUE, ERROR), of which output, and its name."""

    of: str
    output: str
    detector: str


class Found(NamedTuple):
    """A detector's state, float64[n], and the event time of its last change, Unix nanoseconds; 0 for none."""

    state: Floats
    time_ns: int


class _Scale(NamedTuple):
    """What detectors are fed of a value: how many times `width` it is from `origin`, within bounds."""

    detectors: tuple[str, ...]
    origin: float = 0.0
    width: float = 1.0
    least: float = 0.0
    most: float = 1.0


class _Source(NamedTuple):
    """Numbers of a batch: what `read` makes of some of its columns."""

    of: str
    output: str
    columns: tuple[int, ...]
    read: Callable[..., Floats]
    scales: tuple[_Scale, ...]


class Changes:
    """The detectors of one identity, fed row by row in the order of arrival, late rows too."""

    def __init__(self, profiles: tuple[Profile, ...], settings: Settings) -> None:
        self._chosen: frozenset[str] = frozenset(settings.detectors)
        self._profiles = {one.name: one for one in profiles if one.role is not Role.FEATURE}
        self._states: dict[Key, Floats] = {}
        self._times: dict[Key, int] = {}
        self._counts: Counter[Key] = Counter()
        self._waiting: list[Records] = []
        self._sources: WeakKeyDictionary[Layout, tuple[_Source, ...]] = WeakKeyDictionary()

    def update(self, batch: Records) -> None:
        """Take a batch in. It waits to be fed with others: until `settle`, or one of another layout."""
        if not self._chosen:
            return
        sources = self._sources.get(batch.layout)
        if sources is None:
            sources = self._sources[batch.layout] = tuple(
                _sources(batch.layout, batch.content.schema, self._profiles)
            )
        if sources:
            if self._waiting and self._waiting[0].layout is not batch.layout:
                self.settle()
            self._waiting.append(batch)

    def settle(self) -> None:
        """Feed what waits to all detectors. What is null, NaN or infinite is left out."""
        waiting, self._waiting = self._waiting, []
        for source in self._sources[waiting[0].layout] if waiting else ():
            values = np.concatenate(
                [source.read(*(batch.content.column(at) for at in source.columns)) for batch in waiting]
            )
            rows = np.flatnonzero(np.isfinite(values))
            if len(rows) < len(values):
                values = values[rows]
            for scale in source.scales if len(rows) else ():
                self._feed(waiting, source, scale, values, rows)

    def _feed(
        self,
        batches: list[Records],
        source: _Source,
        scale: _Scale,
        values: Floats,
        rows: npt.NDArray[np.int64],
    ) -> None:
        chosen = [name for name in scale.detectors if name in self._chosen]
        if not chosen:
            return
        with np.errstate(over="ignore"):
            fed = np.clip((values - scale.origin) / scale.width, scale.least, scale.most)
        changes = np.empty(len(fed), np.int64)
        for name in chosen:
            key, detector = Key(source.of, source.output, name), _DETECTORS[name]
            if key not in self._states:
                self._states[key] = detector.fresh()
            if count := detector.update(self._states[key], fed, changes):
                self._counts[key] += count
                self._times[key] = _time(batches, int(rows[changes[count - 1]]))

    def report(self, identity: Identity, points: Points) -> None:
        """Points of all detectors that have seen a value."""
        self.settle()
        for key in self._states:
            where = identity.attributes(output=key.output, detector=key.detector, of=key.of)
            points["prediction.changes"].append(Number(where, float(self._counts[key])))
            if key in self._times:
                points["prediction.change.time"].append(Number(where, self._times[key] / 1e9))

    def capture(self) -> dict[Key, Found]:
        """All of it but the counts, which begin at 0 again with the process."""
        self.settle()
        return {key: Found(state.copy(), self._times.get(key, 0)) for key, state in self._states.items()}

    def restore(self, state: dict[Key, Found]) -> None:
        """Go on from there, with those detectors that are chosen now."""
        for key, found in state.items():
            if key.detector in self._chosen and len(found.state) == len(_DETECTORS[key.detector].fresh()):
                self._states[key] = found.state
                if found.time_ns:
                    self._times[key] = found.time_ns


def _time(batches: list[Records], row: int) -> int:
    """The event time of a row of all rows of the batches, and no later than it arrived: Unix nanoseconds."""
    for batch in batches:
        if row < batch.items:
            return min(int(event_times(batch)[row]), batch.received_ns)
        row -= batch.items
    raise IndexError


def _sources(layout: Layout, schema: pa.Schema, profiles: dict[str, Profile]) -> Iterator[_Source]:
    for index, (name, kind) in enumerate(zip(layout.names, layout.kinds, strict=True)):
        profile = profiles.get(name)
        if profile is not None and kind is Kind.NUMERIC and _range(profile):
            scales = (
                _Scale(("adwin",), profile.lowest, _range(profile)),
                _Scale(("page_hinkley",), profile.center, _deviation(profile), -_FARTHEST, _FARTHEST),
            )
            yield _Source(VALUE, name, (index,), _doubles, scales)
    judged = _judged(layout)
    if judged is None:
        return
    name, profile = layout.names[judged[0]], profiles.get(layout.names[judged[0]])
    ours, theirs = (storage_type(schema.field(index).type) for index in judged)
    if not (_is_number(ours) and _is_number(theirs)):
        if _is_text(ours) and _is_text(theirs):
            yield _Source(ERROR, name, judged, _misses, (_Scale(("adwin", "ddm", "eddm", "hddm_a")),))
    elif not (pa.types.is_floating(ours) or pa.types.is_floating(theirs)):
        yield _Source(ERROR, name, judged, _misses, (_Scale(("adwin", "ddm", "eddm", "hddm_a")),))
    elif profile is not None and _range(profile):
        yield _Source(ERROR, name, judged, _distances, (_Scale(("adwin", "hddm_a"), width=_range(profile)),))


def _judged(layout: Layout) -> tuple[int, int] | None:
    """The first prediction, or else the first score, and the first label."""
    prediction, label = layout.index(Role.PREDICTION), layout.index(Role.LABEL)
    if prediction is None:
        prediction = layout.index(Role.SCORE)
    return None if prediction is None or label is None else (prediction, label)


def _range(profile: Profile) -> float:
    """How far the reference's values are apart at most; 0 where none are, or too far for doubles."""
    width = profile.highest - profile.lowest
    return width if profile.kind is Kind.NUMERIC and math.isfinite(width) and _deviation(profile) else 0.0


def _deviation(profile: Profile) -> float:
    finite = profile.rows - profile.infinite
    variance = float(profile.squares.sum()) / finite if finite else 0.0
    return math.sqrt(variance) if math.isfinite(variance) else 0.0


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _plain(column: Column) -> Column:
    """The values themselves: numbers as numbers, all texts of one type."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column if _is_number(column.type) else pc.cast(column, pa.string())


def _doubles(column: Column) -> Floats:
    """The numbers of a column, float64[rows], NaN for nulls."""
    if column.type != pa.float64():
        column = pc.cast(_plain(column), pa.float64(), safe=False)
    found: Floats = column.to_numpy(zero_copy_only=False)
    return found


def _misses(prediction: Column, label: Column) -> Floats:
    """1 where the prediction is not its label, 0 where it is, NaN where one of them is null."""
    one, other = _plain(prediction), _plain(label)
    if _is_number(one.type):
        one, other = pc.cast(one, pa.int64(), safe=False), pc.cast(other, pa.int64(), safe=False)
    return _doubles(pc.not_equal(one, other))


def _distances(prediction: Column, label: Column) -> Floats:
    with np.errstate(invalid="ignore", over="ignore"):
        return np.abs(_doubles(prediction) - _doubles(label))
