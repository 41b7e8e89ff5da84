"""The published state: immutable tuples of metrics, swapped whole."""

from __future__ import annotations

import time

import msgspec

from tidegauge.metric import Kind, Metric


class Snapshot(msgspec.Struct, frozen=True):
    """Everything known at one instant. `generation` grows by one with each publication.

    `metrics` are what exporters show; `tables`, metrics of the kind TABLE, are on the page of the snapshot
    alone.
    """

    generation: int
    time_ns: int
    metrics: tuple[Metric, ...]
    tables: tuple[Metric, ...] = ()


class Snapshots:
    """Holds the latest metrics of each source. Written on the event loop, read from anywhere.

    Sources publish disjoint metric names; `latest` is their union in order of first publication, what
    senders made last of all: on a page the first of two metrics keeps a name that both want.
    """

    def __init__(self) -> None:
        self._sources: dict[str, tuple[Metric, ...]] = {}
        self._latest = Snapshot(0, time.time_ns(), ())

    def publish(self, source: str, metrics: tuple[Metric, ...]) -> None:
        """Replace what `source` published before."""
        self._sources[source] = metrics
        union = tuple(
            metric
            for received in (False, True)
            for part in self._sources.values()
            for metric in part
            if metric.received is received
        )
        shown = tuple(metric for metric in union if metric.kind is not Kind.TABLE)
        tables = tuple(metric for metric in union if metric.kind is Kind.TABLE)
        self._latest = Snapshot(self._latest.generation + 1, time.time_ns(), shown, tables)

    def latest(self) -> Snapshot:
        """The newest snapshot; never blocks, never changes under the reader."""
        return self._latest
