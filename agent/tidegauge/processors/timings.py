"""Histograms of what model servers tell of a request besides its duration, one per identity."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import chain

import numpy as np

from tidegauge import config
from tidegauge.batch import Batch, Spans
from tidegauge.metric import Attributes, ExponentialHistogram, Kind, Metric, Number
from tidegauge.processors.halves import COMPUTE, MODEL, Halves
from tidegauge.processors.histograms import Histograms
from tidegauge.processors.joined import Joined, join
from tidegauge.processors.quantities import QUANTITIES, TOLD, Quantity, fold
from tidegauge.processors.series_table import KEYS_PER_SERIES, SeriesTable
from tidegauge.wire.traces import identity

_PHASES = {
    Quantity.QUEUE: "queue",
    Quantity.VALIDATION: "validation",
    Quantity.PREFILL: "prefill",
    Quantity.DECODE: "decode",
    Quantity.INFERENCE: "inference",
    Quantity.COMPUTE_INPUT: "compute_input",
    Quantity.COMPUTE_INFER: "compute_infer",
    Quantity.COMPUTE_OUTPUT: "compute_output",
}
_TYPES = {Quantity.INPUT_TOKENS: "input", Quantity.OUTPUT_TOKENS: "output"}


class Timings:
    """The processor of `model.inference.time_to_first_token` and its kin, from the marks on spans.

    Labelled with the identity alone, not with operation and status. There are `max_series` histograms
    at most, QUANTITIES for each identity; what comes later counts under one marked as overflow.
    """

    def __init__(self, settings: config.Latency, start_ns: int | None = None) -> None:
        self._every_span = settings.spans == "all"
        self._start_ns = time.time_ns() if start_ns is None else start_ns
        identities = max(settings.max_series // QUANTITIES, 1)
        self._table = SeriesTable(identities, KEYS_PER_SERIES * settings.max_series)  # keys as latency has
        self._histograms = Histograms()
        self._histograms.reserve(2 * QUANTITIES)
        self._halves = Halves(self._start_ns)
        self._told = np.zeros(1, TOLD)
        self._shown: list[int] = []
        self._metrics: tuple[Metric, ...] = ()

    def update(self, *batches: Batch) -> Mapping[str, int]:
        """Fold the marks of trace batches. No span is left out for want of them."""
        for joined in join(batch for batch in batches if isinstance(batch, Spans) and len(batch.marks)):
            self._fold(joined)
        return {}

    def collect(self, now_ns: int) -> tuple[Metric, ...]:
        """The histograms and counters, cumulative since the processor's start."""
        self._halves.expire(now_ns)
        left_out = [
            *self._halves.lost.tolist(),
            int(self._told["invalid"][0]),
            int(self._told["overflow"][0]),
        ]
        if self._histograms.refresh(self._attributes) or left_out != self._shown:
            self._shown = left_out
            self._metrics = *self._timings(), *self._left_out()
        return self._metrics

    def _timings(self) -> tuple[Metric, ...]:
        first, per_token = Quantity.TIME_TO_FIRST_TOKEN, Quantity.TIME_PER_OUTPUT_TOKEN
        return (
            self._metric("time_to_first_token", "s", "Time from a request to its first token.", first),
            self._metric("time_per_output_token", "s", "Mean time between a request's tokens.", per_token),
            self._metric("phase.duration", "s", "Time that a request spent in a phase.", *_PHASES),
            self._metric("tokens", "{token}", "Tokens of a request, by type.", *_TYPES),
            self._counter(
                "model.inference.cold_starts",
                "{request}",
                "Requests that met a cold start (faas.coldstart).",
                *(Number(point.attributes, point.sum) for point in self._points(Quantity.COLD_START)),
            ),
        )

    def _left_out(self) -> tuple[Metric, ...]:
        lost = self._halves.lost
        return (
            self._counter(
                "tidegauge.timings.unjoined",
                "{span}",
                "Triton's model spans without a compute child, and the other way round.",
                Number((("span", "model"),), float(lost[MODEL])),
                Number((("span", "compute"),), float(lost[COMPUTE])),
            ),
            self._counter(
                "tidegauge.timings.invalid",
                "{value}",
                "Timings and token counts left out, being negative, not finite or over 2**53.",
                Number((), float(self._told["invalid"][0])),
            ),
            self._counter(
                "tidegauge.timings.overflow",
                "{span}",
                "Spans with timings counted in the overflow series, for want of room in latency.max_series.",
                Number((), float(self._told["overflow"][0])),
            ),
        )

    def _metric(self, name: str, unit: str, description: str, *quantities: Quantity) -> Metric:
        points = tuple(chain.from_iterable(map(self._points, quantities)))
        kind = Kind.EXPONENTIAL_HISTOGRAM
        return Metric(f"model.inference.{name}", kind, unit, description, points, self._start_ns)

    def _counter(self, name: str, unit: str, description: str, *points: Number) -> Metric:
        return Metric(name, Kind.COUNTER, unit, description, points, self._start_ns)

    def _points(self, quantity: Quantity) -> tuple[ExponentialHistogram, ...]:
        return self._histograms.points(slice(quantity, None, QUANTITIES))

    def _attributes(self, place: int) -> Attributes:
        identity, quantity = divmod(place, QUANTITIES)
        extra = {"phase": _PHASES.get(Quantity(quantity)), "type": _TYPES.get(Quantity(quantity))}
        pairs = ((name, value) for name, value in extra.items() if value)
        return (*self._table.attributes[identity], *pairs)

    def _fold(self, joined: Joined) -> None:
        done = 0
        while True:
            done = fold(
                joined.spans,
                joined.marks,
                done,
                self._every_span,
                self._table.full,
                self._table.entries,
                self._histograms.rows,
                self._histograms.changed,
                self._halves.rows,
                self._halves.given[0],
                self._halves.lost,
                self._told[0],
            )
            if done == len(joined.marks):
                return
            place = int(joined.marks["span"][done])
            self._register(joined.raw(place), joined.spans[place])

    def _register(self, raw: bytes, span: np.void) -> None:
        self._table.register(span["key"], identity(raw, span).attributes())
        if QUANTITIES * len(self._table.attributes) > len(self._histograms.rows):
            most = QUANTITIES * (self._table.max_series + 1)
            self._histograms.reserve(min(2 * len(self._histograms.rows), most))
