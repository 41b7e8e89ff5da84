"""How the rows of one identity come: how often, in what schema, how many of them late or again."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Mapping
from typing import NamedTuple
from weakref import WeakSet

from tidegauge.batch import Records
from tidegauge.config import Drift as Settings
from tidegauge.identity import Identity
from tidegauge.layout import Layout, Role
from tidegauge.metric import Number
from tidegauge.processors.drift.repeats import Repeats, RepeatsState, is_hashable
from tidegauge.processors.drift.report import Points

_SHORTEST_NS = 10**9
"""Shorter pauses are none: a stream of batches by the millisecond has no usual pause."""

_PAUSES = 256
_USUAL = 0.99
_TIMES = 3
"""A stream is stale after so many times its usual longest pause: the 99 % quantile of the last 256."""

_LIFE = 10
"""Before it has lasted for so many times `drift.stale_after` nobody knows what is usual."""

_SCHEMAS = 64
"""Schemas that are remembered for an identity."""

TIMING = ("late", "future")
"""Why `Window.update` leaves rows out."""


class StreamState(NamedTuple):
    """When the first and the last batch came, Unix nanoseconds, the latest pauses between two, and a hash of
    each schema that came."""

    first_ns: int
    last_ns: int
    pauses: tuple[int, ...]
    schemas: tuple[int, ...]


class Stream:
    """What there is to say of an identity's batches besides their values."""

    def __init__(self, settings: Settings) -> None:
        self._stale_ns = int(settings.stale_after * 1e9)
        self._ids = settings.remembered_ids
        self._repeats: Repeats | None = None
        self._repeated = 0
        self._first_ns = self._last_ns = 0
        self._pauses: deque[int] = deque(maxlen=_PAUSES)
        self._left_out: Counter[str] = Counter()
        self._layouts: WeakSet[Layout] = WeakSet()
        self._schemas: set[int] = set()
        self._changes = 0

    def update(self, batch: Records, left_out: Mapping[str, int]) -> None:
        """Take in a batch, and which of its rows were left out."""
        self._arrive(batch.received_ns)
        if batch.layout not in self._layouts:
            self._layouts.add(batch.layout)
            self._meet(batch)
        if left_out:
            self._left_out.update({reason: left_out.get(reason, 0) for reason in TIMING})
        ids = batch.layout.index(Role.PREDICTION_ID)
        if ids is not None and self._ids and is_hashable(batch.content.schema.field(ids).type):
            if self._repeats is None:
                self._repeats = Repeats(self._ids)
            self._repeated += self._repeats.update(batch.content.column(ids))

    def stale(self, now_ns: int) -> bool | None:
        """Whether nothing has come for longer than usual; None while nobody knows what is usual."""
        if not self._pauses and self._last_ns - self._first_ns < _LIFE * self._stale_ns:
            return None
        pauses = sorted(self._pauses) or [0]
        usual = pauses[int(_USUAL * (len(pauses) - 1))]
        return now_ns - self._last_ns > max(self._stale_ns, _TIMES * usual)

    def capture(self) -> StreamState:
        """What tells whether it is stale, and which schema is new. What is counted begins at 0 again with the
        process."""
        return StreamState(self._first_ns, self._last_ns, tuple(self._pauses), tuple(self._schemas))

    def restore(self, state: StreamState) -> None:
        """Go on from there."""
        self._first_ns, self._last_ns, pauses, schemas = state
        self._pauses.extend(pauses)
        self._schemas.update(schemas)

    def capture_ids(self) -> RepeatsState | None:
        """The ids that are remembered."""
        return None if self._repeats is None else self._repeats.capture()

    def restore_ids(self, state: RepeatsState) -> None:
        """Go on from there, if ids are to be remembered now.

        Raises:
            ValueError: where it is another number of them.
        """
        if self._ids:
            repeats = Repeats(self._ids)
            repeats.restore(state)
            self._repeats = repeats

    def report(self, identity: Identity, now_ns: int, points: Points) -> None:
        """Points as of Unix time `now_ns`, nanoseconds."""
        where = identity.attributes()
        points["records.age"].append(Number(where, max(now_ns - self._last_ns, 0) / 1e9))
        stale = self.stale(now_ns)
        if stale is not None:
            points["records.stale"].append(Number(where, float(stale)))
        for reason in TIMING:
            left_out = float(self._left_out[reason])
            points["records.left_out"].append(Number(identity.attributes(reason=reason), left_out))
        points["model.schema.changes"].append(Number(where, float(self._changes)))
        if self._repeats is not None:
            points["prediction_id.duplicates"].append(Number(where, float(self._repeated)))

    def _arrive(self, received_ns: int) -> None:
        if not self._first_ns:
            self._first_ns = self._last_ns = received_ns
        pause = received_ns - self._last_ns
        if pause >= _SHORTEST_NS:
            self._pauses.append(pause)
        self._last_ns = max(self._last_ns, received_ns)

    def _meet(self, batch: Records) -> None:
        """A layout is a stream's, and a schema may come on many."""
        schema = _hash(sorted((field.name, str(field.type)) for field in batch.content.schema))
        if schema not in self._schemas:
            self._changes += bool(self._schemas)
            if len(self._schemas) < _SCHEMAS:
                self._schemas.add(schema)


def _hash(fields: list[tuple[str, str]]) -> int:
    """The same in every process, as Python's own is not: int64."""
    digest = hashlib.blake2b(repr(fields).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
