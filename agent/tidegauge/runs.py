"""Many gauges of one metric as columns: of 200 000 points, objects for each would take 18 MB."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain
from typing import Any, Final, overload

from tidegauge.metric import Attributes, Number, Point


class Run(Sequence[Number]):
    """Points that have a value and nothing else: `values[i]`, a double, is that of `labels[i]`.

    Equal to any other points that are equal one by one, NaN to NaN.

    >>> list(Run([(("model", "fraud"),)], [0.5]))
    [Number(attributes=(('model', 'fraud'),), value=0.5, start_ns=0, exemplar=None)]
    """

    __slots__ = ("labels", "values")

    def __init__(self, labels: Iterable[Attributes], values: Iterable[float]) -> None:
        self.labels: Final = tuple(labels)
        self.values: Final = array("d", values)
        if len(self.labels) != len(self.values):
            raise ValueError(f"{len(self.values)} values of {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Number]:
        return map(Number, self.labels, self.values)

    @overload
    def __getitem__(self, place: int) -> Number: ...

    @overload
    def __getitem__(self, place: slice) -> Run: ...

    def __getitem__(self, place: int | slice) -> Number | Run:
        if isinstance(place, slice):
            return Run(self.labels[place], self.values[place])
        return Number(self.labels[place], self.values[place])

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Run):
            return self.values.tobytes() == other.values.tobytes() and self.labels == other.labels
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]


class Chain(Sequence[Point]):
    """Points one part after the other, each a tuple or a run. Made of them, and not a copy."""

    __slots__ = ("_ends", "_parts")

    def __init__(self, parts: Iterable[Sequence[Point]]) -> None:
        self._parts = tuple(part for part in parts if len(part))
        self._ends = tuple(accumulate(map(len, self._parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[Point]:
        return chain.from_iterable(self._parts)

    @overload
    def __getitem__(self, place: int) -> Point: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Point]: ...

    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            begin, end, step = place.indices(len(self))
            if step != 1:
                return tuple(self)[place]
            return _joined(list(self._between(begin, end)))
        place = range(len(self))[place]
        part = bisect_right(self._ends, place)
        return self._parts[part][place - self._ends[part] + len(self._parts[part])]

    def _between(self, begin: int, end: int) -> Iterator[Sequence[Point]]:
        for part in range(bisect_right(self._ends, begin), len(self._parts)):
            first = self._ends[part] - len(self._parts[part])
            if first >= end:
                return
            yield self._parts[part][max(begin - first, 0) : end - first]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]


def _joined(parts: Sequence[Sequence[Point]]) -> Sequence[Point]:
    if len(parts) == 1:
        return parts[0]
    runs = [part for part in parts if isinstance(part, Run)]
    if len(runs) < len(parts):
        return tuple(chain.from_iterable(parts))
    labels = chain.from_iterable(run.labels for run in runs)
    return Run(labels, chain.from_iterable(run.values for run in runs))


class Column(list[Point]):
    """Points of one metric in the making: a list, and beside it columns of labels and values.

    `points` has the columns first, and after them the points of the list.
    """

    def __init__(self) -> None:
        super().__init__()
        self._labels: list[Attributes] = []
        self._values: list[float] = []

    def note(self, attributes: Attributes, value: float) -> None:
        """Add one value."""
        self._labels.append(attributes)
        self._values.append(value)

    def put(self, labels: Iterable[Attributes], values: Iterable[float]) -> None:
        """Add as many values as there are labels."""
        self._labels.extend(labels)
        self._values.extend(values)

    def points(self) -> Sequence[Point]:
        """As they are to be kept: a run where they are plain."""
        if all(map(_is_plain, self)):
            labels = (*self._labels, *(one.attributes for one in self))
            return Run(labels, chain(self._values, (one.value for one in self)))  # type: ignore[union-attr]
        return Chain((Run(self._labels, self._values), tuple(self))) if self._labels else tuple(self)


def _is_plain(point: Point) -> bool:
    return (
        type(point) is Number and type(point.value) is float and not point.start_ns and point.exemplar is None
    )


def labels_of(points: Sequence[Point]) -> Sequence[Attributes]:
    """The attributes of each."""
    return points.labels if isinstance(points, Run) else [point.attributes for point in points]


def plain(points: object) -> object:
    """A run or a chain as a tuple, for encoders that know tuples alone.

    Raises:
        NotImplementedError: for anything else.
    """
    if isinstance(points, Run | Chain):
        return tuple(points)
    raise NotImplementedError(type(points).__name__)
