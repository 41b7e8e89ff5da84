"""Where the time of a request goes: a breakdown of traces by the names of their spans."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from tidegauge import config
from tidegauge.batch import Batch, Spans
from tidegauge.identity import OVERFLOW, Identity
from tidegauge.metric import Attributes, Kind, Metric, Number, attributes
from tidegauge.processors import breakdown, trees
from tidegauge.processors.held import (
    DONE,
    FULL,
    HELD,
    LABEL,
    Outcome,
    addresses,
    admit,
    compact,
    cursor,
    give_up_large,
    sample,
)
from tidegauge.processors.series_table import KEYS_PER_SERIES
from tidegauge.stats.keyed import doubled, free, insert
from tidegauge.wire.traces import identity, operation

_EVERY_TRACE = 2**64 - 1
_LARGEST_SHARE = 8
"""A trace of more than this part of the spans held would starve the others: it is given up."""

_FAMILIES = (
    ("time", "s", "Time that requests spent in their spans of one name, without what their children took."),
    ("requests", "{request}", "Requests broken down into stages."),
    ("cold_requests", "{request}", "Requests broken down into stages that met a cold start."),
    ("errors", "{request}", "Requests that failed, by the span that failed first."),
)
_NAMES = tuple(f"model.inference.{'' if name == 'errors' else 'stage.'}{name}" for name, *_ in _FAMILIES)


class Stages:
    """The processor of `model.inference.stage.*` and `model.inference.errors`.

    Spans wait in a fixed array until the first one of their request has been there for `linger`; then
    the request is broken down, whole. Where the array is too small for all, whole traces are left out,
    by a hash of their id: whether a span counts is known when it comes, and is the same for all of a trace.

    Spans that came since the last `collect` have the time of the next one as their arrival, so a request
    waits up to one publication longer than `linger`.
    """

    def __init__(self, settings: config.Stages, start_ns: int | None = None) -> None:
        self._enabled = settings.enabled
        self._start_ns = time.time_ns() if start_ns is None else start_ns
        self._cold_names = frozenset(settings.cold_start_spans)
        self._limits = np.zeros(1, trees.LIMITS)
        self._limits["linger_ns"] = round(settings.linger * 1e9)
        self._limits["max_duration_ns"] = round(settings.max_duration * 1e9)
        # A child may have come as early as its request began, and the request one linger after its end.
        self._limits["give_up_ns"] = round((settings.max_duration + 2 * settings.linger) * 1e9)
        self._limits["settled"] = _EVERY_TRACE
        self._threshold = _EVERY_TRACE
        self._seed = np.uint64(secrets.randbits(64))
        self._changed_ns = 0
        self._peak = 0

        size = settings.max_spans if settings.enabled else 0
        slots = _slots(size)
        # Pages that were never written take no memory.
        self._held, self._nodes = np.zeros(size, HELD), np.zeros(size, trees.NODE)
        self._places, self._sizes = np.zeros(slots, np.int32), np.zeros(slots, np.int32)
        self._members = np.zeros(size, np.int32)
        self._count = 0
        self._tally = np.zeros(len(Outcome), np.int64)

        self._max_keys = KEYS_PER_SERIES * settings.max_series
        self._keys = 0
        self._table = free(64)
        self._labels = np.zeros(64, LABEL)
        self._names: list[str] = [""]
        self._identities: list[Identity] = [Identity("")]
        self._known: dict[str | Identity, int] = {}

        overflows = len(_FAMILIES)
        self._series = np.zeros(settings.max_series + overflows, breakdown.SERIES)
        self._series["family"][:overflows] = range(overflows)
        self._series_table = free(_slots(len(self._series)))
        self._used = np.array([overflows], np.int64)
        self._attributes: list[Attributes] = [OVERFLOW] * overflows

    def update(self, *batches: Batch) -> Mapping[str, int]:
        """Take the spans of trace batches."""
        spans = [batch for batch in batches if isinstance(batch, Spans) and batch.items]
        if not (spans and self._enabled):
            return {}
        where, at = addresses(spans), cursor()
        while True:
            full = self._keys >= self._max_keys
            stopped, count = admit(
                where,
                at,
                self._held,
                self._count,
                self._table,
                self._labels,
                full,
                self._seed,
                np.uint64(self._threshold),
                self._tally,
            )
            self._count = int(count)
            if stopped == DONE:
                return {}
            if stopped == FULL:
                self._make_room()
            else:
                batch = spans[int(at["batch"][0])]
                self._register(batch.raw, batch.columns[int(at["span"][0])])

    def collect(self, now_ns: int) -> tuple[Metric, ...]:
        """Break down what has lingered; the sums since the processor's start."""
        if not self._enabled:
            return ()
        self._peak = max(self._peak, self._count)
        self._resolve(now_ns)
        self._open(now_ns)
        for one in self._series[len(self._attributes) : int(self._used[0])]:
            self._attributes.append(self._attributes_of(one))
        return (*self._sums(), *self._own())

    def _resolve(self, now_ns: int) -> None:
        self._limits["now_ns"] = now_ns
        slots = _slots(self._count)
        chosen = trees.link(
            self._held,
            self._count,
            self._places[:slots],
            self._nodes,
            self._limits[0],
            self._tally,
            self._members,
        )
        breakdown.resolve(
            self._held,
            self._nodes,
            self._labels,
            self._members[:chosen],
            self._series_table,
            self._series,
            self._used,
        )
        self._count = int(compact(self._held, self._count))

    def _make_room(self) -> None:
        """Leave out traces until a quarter of the array is free: first what is too large, then by hash."""
        size = len(self._held)
        self._peak = size
        self._count = int(
            give_up_large(
                self._held, self._count, size // _LARGEST_SHARE, self._places, self._sizes, self._tally
            )
        )
        while self._count > size - size // 4:
            self._threshold //= 2
            self._count = int(sample(self._held, self._count, np.uint64(self._threshold), self._tally))
            self._changed_ns = 0
        self._limits["settled"] = min(int(self._limits["settled"][0]), self._threshold)

    def _open(self, now_ns: int) -> None:
        """Let more traces in where there has been room for twice as many, for as long as any span waits.

        Of traces that were left out until now some spans are missing: those that began before do not count.
        """
        give_up_ns = int(self._limits["give_up_ns"][0])
        if self._changed_ns == 0:
            self._changed_ns = now_ns
        if self._threshold == _EVERY_TRACE and int(self._limits["settled"][0]) == _EVERY_TRACE:
            return
        if now_ns - self._changed_ns < give_up_ns:
            return
        self._limits["settled"] = self._threshold
        self._changed_ns = now_ns
        if self._threshold < _EVERY_TRACE and 4 * self._peak <= len(self._held):
            more = min(len(self._held) // (2 * max(self._peak, 1)), 16)
            self._threshold = min((self._threshold + 1) * more, _EVERY_TRACE)
            self._limits["opened_ns"] = now_ns
        self._peak = self._count

    def _register(self, raw: bytes, span: np.void) -> None:
        """Give the span's key a label."""
        self._keys += 1
        if 2 * self._keys > len(self._table):
            self._table = doubled(self._table)
        if self._keys == len(self._labels):
            self._labels = np.concatenate([self._labels, np.zeros_like(self._labels)])
        name, who = operation(raw, span), identity(raw, span)
        label = (_intern(self._known, self._names, name), _intern(self._known, self._identities, who))
        self._labels[self._keys] = (*label, name in self._cold_names)
        insert(self._table, span["key"], self._keys)

    def _attributes_of(self, series: np.void) -> Attributes:
        more = {"operation": self._names[series["operation"]]}
        if series["family"] in (breakdown.TIME, breakdown.ERRORS):
            # The identity has an attribute `stage` already: where the model stands.
            what = "span" if series["family"] == breakdown.TIME else "cause"
            more[what] = self._names[series["name"]]
        return self._identities[int(series["identity"])].attributes(**more)

    def _sums(self) -> list[Metric]:
        points: list[list[Number]] = [[] for _ in _FAMILIES]
        used = self._series[: len(self._attributes)]
        for family, value, key in zip(
            used["family"].tolist(), used["value"].tolist(), self._attributes, strict=True
        ):
            if value or key is not OVERFLOW:
                points[family].append(Number(key, value))
        return [
            Metric(name, Kind.COUNTER, unit, description, tuple(points[family]), self._start_ns)
            for family, (name, (_, unit, description)) in enumerate(zip(_NAMES, _FAMILIES, strict=True))
        ]

    def _own(self) -> list[Metric]:
        outcomes = tuple(
            Number(attributes(outcome=outcome.name.lower()), float(self._tally[outcome]))
            for outcome in Outcome
            if self._tally[outcome]
        )
        held, share = Number((), float(self._count)), Number((), (self._threshold + 1) / 2**64)
        gauge, counter = Kind.GAUGE, Kind.COUNTER
        return [
            _metric(
                "spans", counter, "{span}", "Spans that no longer wait, by outcome.", outcomes, self._start_ns
            ),
            _metric("held", gauge, "{span}", "Spans that wait for the rest of their request.", (held,)),
            _metric("sampling", gauge, "1", "Share of traces that are broken down.", (share,)),
        ]


def _metric(name: str, *rest: Any) -> Metric:
    return Metric(f"tidegauge.stages.{name}", *rest)


def _slots(count: int) -> int:
    """Twice the count, up to the next power of two: a hash table half full at most."""
    return 1 << max(2 * count - 1, 1).bit_length()


def _intern(known: dict[Any, int], values: list[Any], value: Any) -> int:
    place = known.get(value)
    if place is None:
        place = known[value] = len(values)
        values.append(value)
    return place
