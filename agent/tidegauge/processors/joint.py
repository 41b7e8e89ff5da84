"""Drift that shows in several columns together, judged on samples of rows now and then, on a thread aside."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidegauge.batch import Records
from tidegauge.config import Drift as Settings
from tidegauge.identity import Identity
from tidegauge.layout import Kind, Role
from tidegauge.metric import Number
from tidegauge.processors.counts import Tables
from tidegauge.processors.evidence import FEW_ROWS, NULL_QUANTILE
from tidegauge.processors.outliers import Forest, MissingExtraError, Outlying
from tidegauge.processors.report import Points
from tidegauge.processors.rows import Rows
from tidegauge.stats import joint

log = logging.getLogger(__name__)

NO_SAMPLE = "no_sample"
"""The reason where a reference has no sample of rows, or too small a one."""

Pairs = npt.NDArray[np.int64]
_NO_PAIRS: Pairs = np.empty((0, 2), np.int64)


class Findings(NamedTuple):
    """What a window's sample says against the reference's. `pairs` are places in `Tables.profiles`."""

    rows: int
    domain: joint.Separation
    reconstruction: joint.Reconstruction
    pairs: Pairs
    outlying: Outlying | None


class Frame(NamedTuple):
    """What of a reference is compared: places of the features in `Tables.profiles`, those among them that
    are ordered, and float32[rows, profiles] of its sample."""

    features: npt.NDArray[np.int64]
    categorical: tuple[bool, ...]
    ordered: npt.NDArray[np.int64]
    sample: npt.NDArray[np.float32]


class Joint:
    """One sample of rows for each identity, and what was found in it last.

    `turn` starts one evaluation at a time, of the identity that has waited longest, on a thread of its
    own: it takes tenths of a second, and the folding of batches must not wait for it.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._rows: dict[Identity, Rows] = {}
        self._frames: dict[Identity, Frame] = {}
        self._forests: dict[Tables, Forest] = {}
        self._tables: dict[Identity, Tables] = {}
        self._found: dict[Identity, Findings] = {}
        self._drifted: dict[Identity, Sequence[bool]] = {}
        self._updates: dict[Identity, int] = {}
        self._looked: dict[Identity, tuple[int, int]] = {}  # when, and the updates by then
        self._running: tuple[Identity, Future[Findings]] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._outliers = settings.multivariate.outliers

    def open(self, identity: Identity, tables: Tables) -> None:
        """Begin with an identity."""
        if self._settings.multivariate.sample_rows:
            self._rows[identity] = Rows(identity, tables, self._settings)
            self._tables[identity] = tables
            self._updates[identity] = 0

    def update(self, batch: Records) -> None:
        """Sample rows of a batch."""
        rows = self._rows.get(batch.identity)
        if rows is not None:
            rows.update(batch)
            self._updates[batch.identity] += 1

    def turn(self, now_ns: int) -> None:
        """Take in what was found, and begin with the next identity that is due."""
        self._harvest()
        if self._running is not None:
            return
        due = now_ns - int(self._settings.multivariate.interval * 1e9)
        for identity in sorted(self._rows, key=lambda one: self._looked.get(one, (0, 0))):
            when, updates = self._looked.get(identity, (0, 0))
            if when <= due and updates < self._updates[identity]:
                self._looked[identity] = now_ns, self._updates[identity]
                self._start(identity)
                return

    def wait(self) -> None:
        """Wait for the evaluation that runs, and take in what it finds."""
        if self._running is not None:
            self._running[1].exception()
        self._harvest()

    def _harvest(self) -> None:
        if self._running is None or not self._running[1].done():
            return
        (identity, future), self._running = self._running, None
        error = future.exception()
        if isinstance(error, MissingExtraError):
            log.warning("%s", error)
            self._outliers = False
            self._looked.pop(identity, None)
        elif error is not None:
            log.error("%s %s could not be judged as a whole", *identity[:2], exc_info=error)
            self._found.pop(identity, None)
        else:
            self._found[identity] = future.result()

    def _start(self, identity: Identity) -> None:
        frame, window = self._frame(identity), self._rows[identity].sample()
        least = self._settings.min_rows
        if len(window) < least or len(frame.sample) < least or not len(frame.features):
            self._found.pop(identity, None)
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "multivariate")
        work = self._thread.submit(self._evaluate, self._tables[identity], frame, window)
        self._running = identity, work

    def _frame(self, identity: Identity) -> Frame:
        if identity not in self._frames:
            self._frames[identity] = _frame(self._tables[identity])
        return self._frames[identity]

    def _evaluate(self, tables: Tables, frame: Frame, window: npt.NDArray[np.float32]) -> Findings:
        reference, seen = (_chosen(rows, frame.features) for rows in (frame.sample, window))
        before, after = joint.alike(reference, seen, frame.categorical)
        outlying = None
        if self._outliers:
            if tables not in self._forests:
                self._forests[tables] = Forest(frame.sample[:, frame.features])
            outlying = self._forests[tables].judge(window[:, frame.features])
        return Findings(
            len(window),
            joint.domain_auc(before, after),
            joint.reconstruction(before, after),
            self._pairs(frame, window),
            outlying,
        )

    def _pairs(self, frame: Frame, window: npt.NDArray[np.float32]) -> Pairs:
        """Ordered features that are correlated in the reference, or in the window."""
        if len(frame.ordered) < 2:
            return _NO_PAIRS
        least = self._settings.multivariate.correlation
        found = [
            frame.ordered[joint.correlated(joint.normal_scores(_chosen(rows, frame.ordered)), least)]
            for rows in (frame.sample, window)
        ]
        return np.unique(np.concatenate(found), axis=0)

    def report(self, identity: Identity, points: Points) -> None:
        """Points of what was found last; why there is nothing, where that is so."""
        if identity not in self._rows:
            return
        found = self._found.get(identity)
        if found is None:
            few = len(self._frame(identity).sample) >= self._settings.min_rows
            where = identity.attributes(reason=FEW_ROWS if few else NO_SAMPLE)
            points["model.drift.unjudged"].append(Number(where, 1.0))
            return
        domain = found.domain
        verdict = (
            domain.p_value <= self._settings.significance
            and domain.auc >= self._settings.multivariate.auc_threshold
        )
        points["model.drifted"].append(Number(identity.attributes(), float(verdict)))
        points["model.drift.sample_rows"].append(Number(identity.attributes(), float(found.rows)))
        told = [("domain_auc", domain.auc, domain.p_value)]
        told.append(("pca_error", found.reconstruction.ratio, found.reconstruction.p_value))
        if found.outlying is not None:
            told.append(("outlier_ratio", found.outlying.ratio, found.outlying.p_value))
        for name, value, p_value in told:
            if math.isfinite(value):
                where = identity.attributes(statistic=name)
                points["model.drift.statistic"].append(Number(where, value))
                points["model.drift.p_value"].append(Number(where, p_value))
        self._group(identity, found, points)
        where = identity.attributes(statistic="domain_auc", probability=str(NULL_QUANTILE))
        points["model.drift.null_quantile"].append(Number(where, domain.limit))

    def note(self, identity: Identity, drifted: Sequence[bool]) -> None:
        """Hear which columns are drifted, in the order of `Tables.profiles`."""
        self._drifted[identity] = drifted

    def _group(self, identity: Identity, found: Findings, points: Points) -> None:
        """Points of the features that drift together."""
        drifted = self._drifted.get(identity)
        if drifted is None:
            return
        profiles = self._tables[identity].profiles
        members = [place for place in self._frame(identity).features.tolist() if drifted[place]]
        for group in joint.groups(members, found.pairs):
            name = profiles[group[0]].name
            size = identity.attributes(group=name)
            points["model.drift.group.size"].append(Number(size, float(len(group))))
            for place in group:
                where = identity.attributes(feature=profiles[place].name, group=name)
                points["feature.drift.group"].append(Number(where, 1.0))


def _chosen(rows: npt.NDArray[np.float32], columns: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    return rows[:, columns].astype(np.float64)


def _frame(tables: Tables) -> Frame:
    profiles = tables.profiles
    rows = {len(profile.sample) for profile in profiles}
    whole = len(rows) == 1
    sample = np.column_stack([one.sample for one in profiles]) if whole else np.empty((0, len(profiles)))
    places = [place for place, one in enumerate(profiles) if one.role is Role.FEATURE]
    # Two categories have an order, whichever.
    ordered = [
        place
        for place in places
        if profiles[place].kind is Kind.NUMERIC or len(profiles[place].categories) == 2
    ]
    return Frame(
        np.array(places, np.int64),
        tuple(profiles[place].kind is Kind.CATEGORICAL for place in places),
        np.array(ordered, np.int64),
        sample.astype(np.float32),
    )
