"""A snapshot as a page, of which only what has changed since the last one is written anew.

A page is made of blocks: some hundred points of one metric. A block is kept with the points that it
shows and with their labels as written. Where the next snapshot has equal points in that place, the
block stays as it is; where only their values differ, the labels need not be written again.
"""

from __future__ import annotations

import enum
import operator
import zlib
from collections.abc import Hashable, Iterable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import msgspec

from tidegauge.exporters.families import Family, families
from tidegauge.exporters.gzipped import Piece, joined, packed
from tidegauge.exporters.pause import Pause
from tidegauge.exporters.protobuf_format import Protobuf
from tidegauge.exporters.text_format import OpenMetrics, Text
from tidegauge.metric import Attributes, Kind, Metric, Point
from tidegauge.runs import labels_of

BLOCK_POINTS = 256
"""Numbers in a block: 30 kB of text, a tenth of a millisecond to write."""
_BLOCK_HISTOGRAMS = 8
_WORTH_PACKING = 32

K = TypeVar("K", bound=Hashable)


class Format(enum.Enum):
    """A format that is served."""

    TEXT = "text"
    OPENMETRICS = "openmetrics"
    PROTOBUF = "protobuf"


class Encoder(Protocol[K]):
    """Writes families in one format."""

    end: bytes

    def key(self, attributes: Attributes, type_: str) -> K:
        """What tells a series of a family of that type from its others, and its labels as written."""

    def head(self, family: Family, size: int) -> bytes:
        """What stands above a family's samples, which take `size` bytes."""

    def points(self, family: Family, metric: Metric, points: Sequence[tuple[K, Point]]) -> bytes:
        """The samples of some of a metric's points."""


class Exposition(NamedTuple):
    """A page in pieces, and why any metric is not on it."""

    pieces: tuple[bytes | Piece, ...]
    left_out: tuple[str, ...]

    @property
    def body(self) -> bytes:
        """The page in one piece."""
        return joined(self.pieces)


class _Keys(Generic[K]):
    """The keys of some series, as small as they become: a tenth. To have them takes 60 us for 256."""

    def __init__(self, keys: list[K]) -> None:
        self._keys: list[K] | None = keys
        self._packed = b""

    def loaded(self) -> list[K]:
        """One by one."""
        if self._keys is not None:
            return self._keys
        found: list[K] = msgspec.msgpack.decode(zlib.decompress(self._packed))
        return found

    def pack(self) -> None:
        """Keep them packed from now on.

        Raises:
            ValueError: where one is no Unicode text.
        """
        if self._keys is not None and len(self._keys) >= _WORTH_PACKING:
            self._packed, self._keys = zlib.compress(msgspec.msgpack.encode(self._keys), 1), None


class _Block(Generic[K]):
    """Some points of a metric; `twins` are places of series that the family has already."""

    def __init__(self, points: Sequence[Point], keys: _Keys[K]) -> None:
        self.points = points
        self.keys = keys
        self.twins: frozenset[int] = frozenset()
        self.body: bytes | Piece | None = None

    def mark(self, twins: frozenset[int]) -> None:
        """Tell it its twins; it is written again where they are others than before."""
        if twins != self.twins:
            self.twins, self.body = twins, None

    def singles(self) -> list[tuple[K, Point]]:
        """Its points with their keys, without twins."""
        pairs = zip(self.keys.loaded(), self.points, strict=True)
        if not self.twins:
            return list(pairs)
        return [pair for place, pair in enumerate(pairs) if place not in self.twins]


class _Part(NamedTuple, Generic[K]):
    """One metric of a family, in blocks."""

    metric: Metric
    blocks: list[_Block[K]]


class Renderer(Generic[K]):
    """Makes the pages of one format, and keeps what the last one was made of. One thread at a time."""

    def __init__(self, encoder: Encoder[K]) -> None:
        self._encoder = encoder
        self._pause = Pause()
        self._known: dict[tuple[str, str], list[_Part[K]]] = {}

    def render(self, metrics: Iterable[Metric]) -> Exposition:
        """The page of `metrics`. What cannot stand beside the others is left out.

        That is a metric whose name is taken or whose points are not of its kind, which is told; and a
        series that is there already, and a counter that is negative or NaN.
        """
        found, left_out = families(metrics)
        known, self._known = self._known, {}
        pieces: list[bytes | Piece] = []
        for family in found:
            was = known.get((family.name, family.type), [])
            parts = self._parts(family, was)
            self._find_twins([block for part in parts for block in part.blocks], was)
            self._known[family.name, family.type] = parts
            bodies = self._bodies(family, parts, left_out)
            if bodies:
                pieces += self._encoder.head(family, sum(map(len, bodies))), *bodies
        if self._encoder.end:
            pieces.append(self._encoder.end)
        return Exposition(tuple(pieces), tuple(left_out))

    def _parts(self, family: Family, was: Sequence[_Part[K]]) -> list[_Part[K]]:
        parts = []
        for place, metric in enumerate(family.metrics):
            old = was[place] if place < len(was) else None
            if old is not None and metric.points is old.metric.points and _alike(metric, old.metric):
                parts.append(_Part(metric, old.blocks))
                continue
            blocks = old.blocks if old is not None and _alike(metric, old.metric) else []
            parts.append(_Part(metric, self._blocks(family, metric, blocks)))
        return parts

    def _blocks(self, family: Family, metric: Metric, was: Sequence[_Block[K]]) -> list[_Block[K]]:
        size = BLOCK_POINTS if metric.kind in (Kind.GAUGE, Kind.COUNTER) else _BLOCK_HISTOGRAMS
        blocks = []
        for place, begin in enumerate(range(0, len(metric.points), size)):
            points = metric.points[begin : begin + size]
            old = was[place] if place < len(was) else None
            blocks.append(self._block(family, points, old))
        return blocks

    def _block(self, family: Family, points: Sequence[Point], was: _Block[K] | None) -> _Block[K]:
        self._pause()
        if was is not None:
            if points == was.points:
                was.points = points  # the older ones, equal but not the same, can go
                return was
            if labels_of(points) == labels_of(was.points):
                block = _Block(points, was.keys)
                block.twins = was.twins
                return block
        keys = [self._encoder.key(labels, family.type) for labels in labels_of(points)]
        return _Block(points, _Keys(keys))

    def _find_twins(self, blocks: Sequence[_Block[K]], was: Sequence[_Part[K]]) -> None:
        """Tell each block of a family which of its series stand before it already."""
        keys = [block.keys for block in blocks]
        known = [block.keys for part in was for block in part.blocks]
        if len(keys) == len(known) and all(map(operator.is_, keys, known)):
            return
        seen: set[K] = set()
        for block in blocks:
            self._pause()
            twins = set()
            for place, key in enumerate(block.keys.loaded()):
                if key in seen:
                    twins.add(place)
                seen.add(key)
            block.mark(frozenset(twins))

    def _bodies(self, family: Family, parts: Sequence[_Part[K]], left_out: list[str]) -> list[bytes | Piece]:
        """The family's samples, without metrics that cannot be written."""
        bodies: list[bytes | Piece] = []
        for part in parts:
            try:
                bodies += self._written(family, part)
            except (TypeError, ValueError) as error:
                left_out.append(f"{part.metric.name}: {error}")
        return bodies

    def _written(self, family: Family, part: _Part[K]) -> list[bytes | Piece]:
        bodies: list[bytes | Piece] = []
        for block in part.blocks:
            if block.body is None:
                self._pause()
                block.body = packed(self._encoder.points(family, part.metric, block.singles()))
                block.keys.pack()
            if block.body:
                bodies.append(block.body)
        return bodies


def _alike(metric: Metric, other: Metric) -> bool:
    """Whether equal points of both are written alike."""
    return (metric.kind, metric.unit, metric.start_ns) == (other.kind, other.unit, other.start_ns)


def renderer(form: Format) -> Renderer[str] | Renderer[bytes]:
    """One for the format."""
    match form:
        case Format.TEXT:
            return Renderer(Text())
        case Format.OPENMETRICS:
            return Renderer(OpenMetrics())
        case Format.PROTOBUF:
            return Renderer(Protobuf())


def render(metrics: Iterable[Metric], form: Format) -> Exposition:
    """The page of `metrics`, from nothing."""
    return renderer(form).render(metrics)
