"""One identity under watch: its windows, alarms and stream, and what is published of them."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping

from msgspec import structs

from tidegauge.batch import Records
from tidegauge.config import Drift as Settings
from tidegauge.identity import Identity
from tidegauge.layout import Kind, Role
from tidegauge.metric import Histogram, Number
from tidegauge.processors.alarms import Alarms
from tidegauge.processors.changes import Changes
from tidegauge.processors.checkpoint import IdentityState
from tidegauge.processors.counts import Counts, Tables, Tally, tallies
from tidegauge.processors.embeddings import report_embeddings
from tidegauge.processors.evidence import Evidence
from tidegauge.processors.joint import Joint
from tidegauge.processors.quality import inspect, missing_columns, summarise
from tidegauge.processors.report import Labels, Points, alarm, describe, family, lifetime, report
from tidegauge.processors.stream import Stream
from tidegauge.processors.window import Window
from tidegauge.units import duration_text

log = logging.getLogger(__name__)


class Watch:
    """What is kept of one identity, compared with one reference.

    `start_ns`, Unix nanoseconds, is when the processor began.
    """

    def __init__(self, identity: Identity, tables: Tables, settings: Settings, start_ns: int) -> None:
        self.identity = identity
        self.window = Window(tables, settings)
        self.alarms = Alarms(tables, settings)
        self.stream = Stream(settings)
        self.changes = Changes(tables.profiles, settings)
        self.joint = Joint(identity, tables, settings)
        self._settings = settings
        self._run_start_ns = start_ns
        self._start_ns: int | None = None  # of a lifetime that began in an earlier run
        self._sums: dict[str, float] = {}
        self._labelled: dict[str, list[Labels]] = {}
        self._judged: tuple[tuple[int, int], Points] | None = None

    @property
    def tables(self) -> Tables:
        """Of the reference."""
        return self.window.tables

    def update(self, batch: Records) -> Mapping[str, int]:
        """Take a batch in; returns the rows left out, by reason."""
        left_out = self.window.update(batch)
        self.stream.update(batch, left_out)
        self.changes.update(batch)
        self.joint.update(batch)
        for pane in self.window.closed():
            self.alarms.look(pane.counts)
        return left_out

    def collect(self, now_ns: int, points: Points) -> None:
        """Add all points as of Unix time `now_ns`. What cannot have changed is not judged again."""
        stamp = self.window.stamp(now_ns)
        if self._judged is None or self._judged[0] != stamp:
            self._judged = stamp, self._judge_safely(now_ns)
        for name, more in self._judged[1].items():
            points[name].extend(more)
        self.stream.report(self.identity, now_ns, points)
        self.changes.report(self.identity, points)
        self.joint.report(points)

    def capture(self) -> IdentityState:
        """All that a restart would lose, in microseconds: panes are copied when they change, not here."""
        return IdentityState(
            self.identity,
            self.tables,
            self._run_start_ns if self._start_ns is None else self._start_ns,
            dict(self._sums),
            self.window.capture(),
            self.alarms.capture(),
            self.stream.capture(),
            self.changes.capture(),
        )

    def restore(self, state: IdentityState, *, complete: bool) -> None:
        """Go on from there. Unless it is `complete` the lifetime begins anew.

        Raises:
            ValueError: where the windows have other panes.
        """
        self.window.restore(state.window, anew=not complete)
        self.alarms.restore(state.alarms)
        self.stream.restore(state.stream)
        self.changes.restore(state.changes)
        if complete:
            self._start_ns = state.start_ns
            self._sums = state.sums

    def _labels(self) -> dict[str, list[Labels]]:
        """By window: "" for `drift.window`, whose points carry no label of it. Made when first wanted: for
        2000 columns restored at once it takes a second, which the start need not wait for."""
        if not self._labelled:
            primary = self._settings.window
            texts = ["" if length == primary else duration_text(length) for length in self.window.lengths]
            shared = self.identity.attributes()
            self._labelled = {
                text: [
                    Labels(shared, profile, text, () if text else bins)
                    for profile, bins in zip(self.tables.profiles, self.tables.bins, strict=True)
                ]
                for text in texts
            }
        return self._labelled

    def _judge_safely(self, now_ns: int) -> Points:
        try:
            return self._judge(now_ns)
        except Exception:
            # One model's numbers must not take the others' off the page.
            log.exception("%s %s could not be judged", self.identity.model, self.identity.version)
            return {}

    def _judge(self, now_ns: int) -> Points:
        points: Points = defaultdict(list)
        for length, (text, labels) in zip(self.window.lengths, self._labels().items(), strict=True):
            counts = self.window.total(now_ns, length)
            if not text:
                self._look(labels, counts, points)
                if self.alarms.ready:
                    alarm(labels, self.alarms, self.identity, points)
            evidence = Evidence(self.tables, counts, self._settings)
            report(labels, evidence, points)
            report_embeddings(self.identity, self.tables.frames, counts, text, self._settings, points)
            if not text:
                self.joint.note(evidence.drifted.tolist())
        for column in tallies(self.tables, self.window.lifetime()):
            if column.profile.role is not Role.FEATURE and column.profile.kind is Kind.NUMERIC:
                points["prediction.histogram"].append(self._lifetime(column))
        return points

    def _lifetime(self, column: Tally) -> Histogram:
        found = lifetime(self.identity, column)
        name, total = column.profile.name, found.sum
        if len(column.profile.edges) and column.profile.edges[0] >= 0:
            # Panes add up in another order when they move: a last digit less would read as a reset.
            total = max(total, self._sums.get(name, 0.0))
            self._sums[name] = total
        return structs.replace(found, sum=total, start_ns=self._start_ns or 0)

    def _look(self, labels: list[Labels], counts: Counts, points: Points) -> None:
        """Describe the columns of `drift.window`, and those that are not as the reference has them."""
        columns = tallies(self.tables, counts)
        for names, column in zip(labels, columns, strict=True):
            describe(names, column, points)
        skipped, vanished = self.window.unfit()
        for one in skipped[: self._settings.max_features]:
            prefix, key = family(one.role)
            where = self.identity.attributes(**{key: one.name, "reason": one.reason})
            points[f"{prefix}.skipped"].append(Number(where, 1.0))
        violations = inspect(labels, columns, self._settings, points)
        violations += missing_columns(labels, sorted(vanished), skipped, points)
        summarise(self.identity, violations, points)
