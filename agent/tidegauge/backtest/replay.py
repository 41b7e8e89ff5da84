"""History through the agent's own drift processor, and what it would have said when."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tidegauge.backtest.history import Times
from tidegauge.batch import Records
from tidegauge.config import Drift as Settings
from tidegauge.identity import Identity
from tidegauge.layout import Layout, layout_of
from tidegauge.metric import Metric, Number
from tidegauge.processors.drift.drift import Drift
from tidegauge.processors.drift.evidence import PRIMARY
from tidegauge.processors.drift.report import BESIDE, family
from tidegauge.profile import Embedding, Profile, Reference
from tidegauge.stats import embedding

KEYS = {"feature": "feature", "prediction": "output"}
"""Metrics' prefixes, and the attribute with the column's name."""

SCORES = (PRIMARY, embedding.STATISTICS[embedding.MMD])
"""Statistics that are scores: of bins, and of embeddings. A column has one of them."""


class Evaluation(NamedTuple):
    """What was said of one column at the end of one pane. Numbers are NaN where they were not told.

    `statistic` says what the score is: `psi`, of an embedding `mmd`; empty without one.
    """

    time_ns: int
    kind: str  # feature or prediction
    column: str
    rows: float
    missing: float
    statistic: str
    score: float
    null_quantile: float
    p_value: float
    is_drifted: bool
    evidence: float
    is_alarming: bool
    unjudged: str


class Moment(NamedTuple):
    """All that was said at the end of one pane, and the metrics that said it."""

    time_ns: int
    evaluations: list[Evaluation]
    metrics: tuple[Metric, ...]


class Replay:
    """One model's history through one `Drift`, pane by pane.

    Rows arrive at their event time. After the last row of each pane of `drift.window` that has any, the
    metrics are collected as a scrape would see them at the pane's end.
    """

    def __init__(self, reference: Reference, settings: Settings) -> None:
        self.settings = settings
        self.identity = Identity(reference.model, reference.version)
        self.left_out: Counter[str] = Counter()
        self._drift = Drift(settings, [reference])

    def update(self, rows: pa.RecordBatch, layout: Layout, arrived_ns: int) -> None:
        """Fold rows of one pane."""
        batch = Records("backtest", self.identity, layout, rows, arrived_ns, rows.nbytes)
        self.left_out.update(self._drift.update(batch))

    def look(self, end_ns: int) -> Moment:
        """What the processor says at the end of a pane."""
        # At the end proper the next pane begins, and the window would have an empty one.
        metrics = self._drift.collect(end_ns - 1)
        return Moment(end_ns, evaluations(metrics, end_ns), metrics)


def replay(
    batches: Iterable[tuple[pa.RecordBatch, Times]], replays: Sequence[Replay]
) -> Iterator[list[Moment]]:
    """Feed rows in the order of time to all `replays`, which have the same panes.

    Yields:
        a Moment of each, for each pane with rows.
    """
    settings = replays[0].settings
    width = max(int(settings.window * 1e9) // settings.panes, 1)
    schema: pa.Schema | None = None
    layout: Layout | None = None
    pane: int | None = None
    for rows, times in batches:
        if layout is None or schema is None or not schema.equals(rows.schema, check_metadata=True):
            schema, layout = rows.schema, layout_of(rows.schema)
        numbers = times // width
        cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(times)]
        for start, end in pairwise(cuts):
            number = int(numbers[start])
            if pane is not None and number != pane:
                yield [one.look((pane + 1) * width) for one in replays]
            pane = number
            for one in replays:
                one.update(rows.slice(start, end - start), layout, int(times[end - 1]))
    if pane is not None:
        yield [one.look((pane + 1) * width) for one in replays]


def columns(reference: Reference, settings: Settings) -> list[tuple[str, str]]:
    """Kind and name of each column that is watched, embeddings last."""
    watched: tuple[Profile | Embedding, ...] = (
        *reference.profiles[: settings.max_features],
        *reference.embeddings[: settings.multivariate.max_embeddings],
    )
    return [(family(one.role)[0], one.name) for one in watched]


def evaluations(metrics: Iterable[Metric], time_ns: int) -> list[Evaluation]:
    """What metrics say of `drift.window`, column by column."""
    told: defaultdict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    texts: defaultdict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for metric in metrics:
        kind, _, what = metric.name.partition(".")
        if kind not in KEYS or what not in _TOLD:
            continue
        for point in metric.points:
            at = dict(point.attributes)
            if (
                isinstance(point, Number)
                and "window" not in at
                and at.keys().isdisjoint(BESIDE)
                and at.get("statistic", PRIMARY) in SCORES
            ):
                where = kind, at[KEYS[kind]]
                told[where][what] = point.value
                texts[where].update((key, at[key]) for key in ("reason", "statistic") if key in at)
    return [_evaluation(where, values, texts[where], time_ns) for where, values in told.items()]


_TOLD = {
    "window.rows",
    "missing",
    "drift.score",
    "drift.null_quantile",
    "drift.p_value",
    "drifted",
    "drift.evidence",
    "drift.alarm",
    "drift.unjudged",
}


def _evaluation(
    where: tuple[str, str], told: Mapping[str, float], texts: Mapping[str, str], time_ns: int
) -> Evaluation:
    def value(name: str) -> float:
        return told.get(name, math.nan)

    return Evaluation(
        time_ns,
        *where,
        rows=value("window.rows"),
        missing=value("missing"),
        statistic=texts.get("statistic", ""),
        score=value("drift.score"),
        null_quantile=value("drift.null_quantile"),
        p_value=value("drift.p_value"),
        is_drifted=value("drifted") == 1,
        evidence=value("drift.evidence"),
        is_alarming=value("drift.alarm") == 1,
        unjudged=texts.get("reason", ""),
    )
