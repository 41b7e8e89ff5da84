"""Drift that shows in several columns together, judged on samples of rows now and then, on a thread aside."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from typing import NamedTuple
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from tidegauge.batch import Records
from tidegauge.config import Drift as Settings
from tidegauge.identity import Identity
from tidegauge.layout import Kind, Role
from tidegauge.metric import Number
from tidegauge.processors.drift.counts import Tables
from tidegauge.processors.drift.evidence import FEW_ROWS, NULL_QUANTILE
from tidegauge.processors.drift.outliers import Forest, MissingExtraError, Outlying
from tidegauge.processors.drift.report import Points
from tidegauge.processors.drift.rows import Rows, RowsState
from tidegauge.stats import joint

log = logging.getLogger(__name__)

NO_SAMPLE = "no_sample"
"""The reason where a reference has no sample of rows, or too small a one."""

Pairs = npt.NDArray[np.int64]
Rows32 = npt.NDArray[np.float32]
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
    are ordered, and how many rows its sample has."""

    features: npt.NDArray[np.int64]
    categorical: tuple[bool, ...]
    ordered: npt.NDArray[np.int64]
    rows: int


class Joint:
    """A sample of the rows of one identity, and what was found when it was last judged."""

    def __init__(self, identity: Identity, tables: Tables, settings: Settings) -> None:
        self._identity = identity
        self._tables = tables
        self._settings = settings
        self._rows = Rows(identity, tables, settings) if settings.multivariate.sample_rows else None
        self._drifted: Sequence[bool] = ()
        self._forest: Forest | None = None
        self._updates = self._judged = 0
        self.findings: Findings | None = None
        self.looked_ns = 0

    @cached_property
    def _frame(self) -> Frame:
        return _frame(self._tables)

    def retune(self, settings: Settings) -> None:
        """Judge by other thresholds from now on."""
        self._settings = settings

    def update(self, batch: Records) -> None:
        """Sample rows of a batch."""
        if self._rows is not None:
            self._rows.update(batch)
            self._updates += 1

    def note(self, drifted: Sequence[bool]) -> None:
        """Hear which columns are drifted, in the order of `Tables.profiles`."""
        self._drifted = drifted

    def waits(self, since_ns: int) -> bool:
        """Whether rows came after it was last judged, and that was at Unix time `since_ns` or before."""
        return self._updates > self._judged and self.looked_ns <= since_ns

    def look(self, now_ns: int) -> Callable[[bool], Findings] | None:
        """What judges the rows of now, on any thread, and outliers if told so; None where they are few."""
        assert self._rows is not None
        self.looked_ns, self._judged = now_ns, self._updates
        window, least = self._rows.sample(), self._settings.min_rows
        if len(window) >= least and self._frame.rows >= least and len(self._frame.features):
            return partial(self._judge, window)
        self.findings = None
        return None

    def try_again(self) -> None:
        """Be judged at the next turn, though no rows should come."""
        self.looked_ns, self._judged = 1, -1

    def capture(self) -> RowsState | None:
        """The sample; what was found of it is found again."""
        return None if self._rows is None else self._rows.capture()

    def restore(self, state: RowsState) -> None:
        """Go on from there, if rows are to be sampled now, and be judged at the next turn.

        Raises:
            ValueError: where the window has other panes.
        """
        if self._rows is not None:
            self._rows.restore(state)
            self.try_again()

    def _judge(self, window: Rows32, outliers: bool) -> Findings:
        frame = self._frame
        # Put together each time, in a millisecond: kept, it would be there twice, 4 kB a column.
        sample = np.column_stack([one.sample for one in self._tables.profiles]).astype(np.float32)
        reference, seen = (_chosen(rows, frame.features) for rows in (sample, window))
        before, after = joint.alike(reference, seen, frame.categorical)
        outlying = None
        if outliers:
            if self._forest is None:
                self._forest = Forest(sample[:, frame.features])
            outlying = self._forest.judge(window[:, frame.features])
        return Findings(
            len(window),
            joint.domain_auc(before, after),
            joint.reconstruction(before, after),
            self._pairs(frame, sample, window),
            outlying,
        )

    def _pairs(self, frame: Frame, sample: Rows32, window: Rows32) -> Pairs:
        """Ordered features that are correlated in the reference, or in the window."""
        if len(frame.ordered) < 2:
            return _NO_PAIRS
        least = self._settings.multivariate.correlation
        found = [
            frame.ordered[joint.correlated(joint.normal_scores(_chosen(rows, frame.ordered)), least)]
            for rows in (sample, window)
        ]
        return np.unique(np.concatenate(found), axis=0)

    def report(self, clock_ns: int, points: Points) -> None:
        """Points of what was found last; why there is nothing, where that is so.

        At the event time `clock_ns` all rows may have left the window, and what was found of them with them.
        """
        if self._rows is None:
            return
        identity = self._identity
        found = self.findings if self._rows.reach(clock_ns) else None
        if found is None:
            few = self._frame.rows >= self._settings.min_rows
            where = identity.attributes(reason=FEW_ROWS if few else NO_SAMPLE)
            points["model.drift.unjudged"].append(Number(where, 1.0))
            return
        rare = found.domain.p_value <= self._settings.significance
        verdict = rare and found.domain.auc >= self._settings.multivariate.auc_threshold
        points["model.drifted"].append(Number(identity.attributes(), float(verdict)))
        points["model.drift.sample_rows"].append(Number(identity.attributes(), float(found.rows)))
        told = [("domain_auc", found.domain.auc, found.domain.p_value)]
        told.append(("pca_error", found.reconstruction.ratio, found.reconstruction.p_value))
        if found.outlying is not None:
            told.append(("outlier_ratio", found.outlying.ratio, found.outlying.p_value))
        for name, value, p_value in told:
            if math.isfinite(value):
                where = identity.attributes(statistic=name)
                points["model.drift.statistic"].append(Number(where, value))
                points["model.drift.p_value"].append(Number(where, p_value))
        if math.isfinite(found.domain.limit):
            where = identity.attributes(statistic="domain_auc", probability=str(NULL_QUANTILE))
            points["model.drift.null_quantile"].append(Number(where, found.domain.limit))
        self._report_groups(found.pairs, points)

    def _report_groups(self, pairs: Pairs, points: Points) -> None:
        """Points of the features that drift together."""
        if not self._drifted:
            return
        profiles = self._tables.profiles
        members = [place for place in self._frame.features.tolist() if self._drifted[place]]
        for group in joint.groups(members, pairs):
            name = profiles[group[0]].name
            size = self._identity.attributes(group=name)
            points["model.drift.group.size"].append(Number(size, float(len(group))))
            for place in group:
                where = self._identity.attributes(feature=profiles[place].name, group=name)
                points["feature.drift.group"].append(Number(where, 1.0))


class Turns:
    """Has one Joint judged at a time, that which has waited longest, on a thread of its own: it takes
    tenths of a second, for which the folding of batches must not wait. A new one waits for an interval too:
    rows gather first."""

    def __init__(self, settings: Settings) -> None:
        self._interval_ns = int(settings.multivariate.interval * 1e9)
        self._outliers = settings.multivariate.outliers
        self._members: WeakSet[Joint] = WeakSet()
        self._running: tuple[Joint, Future[Findings]] | None = None
        self._thread: ThreadPoolExecutor | None = None

    def join(self, member: Joint) -> None:
        """Let it have its turns, as long as it is kept elsewhere."""
        self._members.add(member)

    def take(self, now_ns: int) -> None:
        """Take in what was found, and begin with the next one whose interval is over."""
        self._harvest()
        if self._running is not None:
            return
        for member in self._members:
            member.looked_ns = member.looked_ns or now_ns
        waiting = [one for one in self._members if one.waits(now_ns - self._interval_ns)]
        for member in sorted(waiting, key=lambda one: one.looked_ns):
            if (judge := member.look(now_ns)) is not None:
                if self._thread is None:
                    self._thread = ThreadPoolExecutor(1, "multivariate")
                self._running = member, self._thread.submit(judge, self._outliers)
                return

    def wait(self) -> None:
        """Wait for what is being judged, and take it in."""
        if self._running is not None:
            self._running[1].exception()
        self._harvest()

    def _harvest(self) -> None:
        if self._running is None or not self._running[1].done():
            return
        (member, future), self._running = self._running, None
        error = future.exception()
        if error is None:
            member.findings = future.result()
            return
        member.findings = None
        if isinstance(error, MissingExtraError):
            log.warning("%s", error)
            self._outliers = False
            member.try_again()
        else:
            log.error("the rows of a model could not be judged", exc_info=error)


def _chosen(rows: npt.NDArray[np.float32], columns: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    return rows[:, columns].astype(np.float64)


def _frame(tables: Tables) -> Frame:
    profiles = tables.profiles
    rows = {len(profile.sample) for profile in profiles}
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
        rows.pop() if len(rows) == 1 else 0,
    )
