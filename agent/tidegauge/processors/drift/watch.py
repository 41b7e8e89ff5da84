"""One identity under watch: its windows, alarms, stream and detectors, and what is published of them."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence

from msgspec import structs

from tidegauge.batch import Records
from tidegauge.config import Drift as Settings
from tidegauge.identity import Identity
from tidegauge.layout import Kind, Role
from tidegauge.metric import Histogram, Number, Point
from tidegauge.processors.drift import sliced
from tidegauge.processors.drift.adaptive import Scores
from tidegauge.processors.drift.alarms import Alarms
from tidegauge.processors.drift.baselines import Against, Names, compared, deviations
from tidegauge.processors.drift.changes import Changes
from tidegauge.processors.drift.checkpoint import IdentityState
from tidegauge.processors.drift.counts import Counts, Tables, Tally, tallies
from tidegauge.processors.drift.embeddings import inspect_embeddings, report_embeddings
from tidegauge.processors.drift.evidence import Evidence
from tidegauge.processors.drift.joint import Joint
from tidegauge.processors.drift.past import Past
from tidegauge.processors.drift.quality import inspect, missing_columns, summarise
from tidegauge.processors.drift.repeats import RepeatsState
from tidegauge.processors.drift.report import (
    Labels,
    Points,
    alarm,
    bin_labels,
    describe,
    family,
    lifetime,
    name_unseen,
    own_quantiles,
    report,
)
from tidegauge.processors.drift.rows import RowsState
from tidegauge.processors.drift.sections import Part
from tidegauge.processors.drift.slices import SegmentState
from tidegauge.processors.drift.stream import Stream
from tidegauge.processors.drift.unseen import UnseenState
from tidegauge.processors.drift.window import Window
from tidegauge.runs import Column
from tidegauge.stats.comparison import PSI
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
        self.past = Past(tables, settings) if settings.other_baselines else None
        self.scores = Scores(len(tables.profiles), settings) if settings.adaptive.use != "none" else None
        self._settings = settings
        self._run_start_ns = start_ns
        self._shared = identity.attributes()
        self._is_outgoing = False
        self._start_ns: int | None = None  # of a lifetime that began in an earlier run
        self._sums: dict[str, float] = {}
        self._labelled: dict[str, list[Labels]] = {}
        self._baselines: dict[str, list[Names]] = {}
        self._judged: tuple[tuple[int, int], dict[str, Sequence[Point]]] | None = None

    @property
    def tables(self) -> Tables:
        """Of the reference."""
        return self.window.tables

    def retune(self, settings: Settings) -> None:
        """Judge by other thresholds from now on. The rows and the evidence stay."""
        self._settings = settings
        self._judged = None
        self.alarms.retune(settings)
        self.joint.retune(settings)

    def update(self, batch: Records) -> Mapping[str, int]:
        """Take a batch in; returns the rows left out, by reason."""
        left_out = self.fold(batch)
        self.stream.update(batch, left_out)
        self.changes.update(batch)
        self.joint.update(batch)
        return left_out

    def fold(self, batch: Records) -> Mapping[str, int]:
        """Take a batch in that the stream has met elsewhere; returns the rows left out, by reason."""
        left_out = self.window.update(batch)
        for pane in self.window.closed():
            self.alarms.look(pane.counts)
            if self.past is not None:
                self.past.add(pane)
        return left_out

    def settle(self) -> None:
        """Fold what waits for more."""
        self.window.settle()
        self.changes.settle()

    def collect(self, now_ns: int, found: dict[str, list[Sequence[Point]]]) -> None:
        """Add all points as of Unix time `now_ns`. What cannot have changed is not judged again."""
        stamp = self.window.stamp(now_ns)
        if self._judged is None or self._judged[0] != stamp:
            judged = self._judge_safely(now_ns)
            self._judged = stamp, {name: column.points() for name, column in judged.items()}
        for name, more in self._judged[1].items():
            found[name].append(more)
        points: Points = defaultdict(Column)
        if not self._is_outgoing:
            self.stream.report(self.identity, now_ns, points)
            self.changes.report(self.identity, points)
            self.joint.report(self.window.clock(now_ns), points)
        for name, column in points.items():
            found[name].append(column.points())

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
            None if self.past is None else self.past.capture(),
            None if self.scores is None else self.scores.capture(),
            self.joint.capture(),
            None if self.window.unseen is None else self.window.unseen.capture(),
            self.window.slices.capture(),
            self.stream.capture_ids(),
        )

    def restore(self, state: IdentityState, *, complete: bool) -> None:
        """Go on from there, but for what `restore_part` takes. Unless it is `complete` the lifetime begins
        anew.

        Raises:
            ValueError: where the windows have other panes.
        """
        self.window.restore(state.window, anew=not complete)
        self.alarms.restore(state.alarms)
        self.stream.restore(state.stream)
        self.changes.restore(state.changes)
        if self.past is not None and state.past is not None:
            self.past.restore(state.past)
        if self.scores is not None and state.scores is not None:
            self.scores.restore(state.scores)
        if complete:
            self._start_ns = state.start_ns
            self._sums = state.sums

    def restore_part(self, part: Part) -> None:
        """Go on from there with a part of a state, after `restore`. What nothing asks for now is dropped.

        Raises:
            ValueError: where it is of another window, or more than the limits allow.
        """
        match part:
            case RowsState():
                self.joint.restore(part)
            case UnseenState():
                if self.window.unseen is not None:
                    self.window.unseen.restore(part)
            case SegmentState():
                self.window.slices.restore(part)
            case RepeatsState():
                self.stream.restore_ids(part)

    def succeed(self, old: Watch, now_ns: int) -> None:
        """Go on with the stream of `old`, which was compared with another reference until Unix time `now_ns`.

        On the same bins windows, past and lifetime go on, and so do change points, which are sought in the
        reference's standard deviations; else they begin with no rows. Alarms begin anew: what they have
        gathered speaks against another reference.
        """
        self.stream = old.stream
        state = old.window.capture()
        held: dict[tuple[int, int], Counts] = {}
        self._start_ns = now_ns
        if self.tables.has_bins_of(old.tables):
            # Copies, for the old ones go on as well.
            held = {place: pane.copy() for place, pane in state.panes.held.items()}
            self._start_ns, self._sums, self.changes = old._start_ns, dict(old._sums), old.changes
            if self.past is not None and old.past is not None:
                self.past.restore(old.past.capture())
                self.past.summarise_anew()
        panes = state.panes._replace(held=held)
        self.window.restore(state._replace(panes=panes), anew=False)

    def retire(self, reference: str) -> None:
        """Be the outgoing one, compared with what is called `reference`: from now on only statistics and
        alarms are published, with that label."""
        self._is_outgoing = True
        self._shared = (*self.identity.attributes(), ("reference", reference))
        self._labelled, self._judged = {}, None
        self.past = self.scores = None

    def _labels(self) -> dict[str, list[Labels]]:
        """By window: "" for `drift.window`, whose points carry no label of it. Made when first wanted: for
        2000 columns restored at once it takes a second, which the start need not wait for."""
        if not self._labelled:
            primary = self._settings.window
            told = (
                [()] * len(self.tables.profiles)
                if self._is_outgoing
                else bin_labels(self.tables, self._shared)
            )
            texts = ["" if length == primary else duration_text(length) for length in self.window.lengths]
            self._labelled = {
                text: [
                    Labels(self._shared, profile, text, told=self._settings.other_windows_statistics)
                    if text
                    else Labels(self._shared, profile, bins=bins)
                    for profile, bins in zip(self.tables.profiles, told, strict=True)
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
        points: Points = defaultdict(Column)
        for length, (text, labels) in zip(self.window.lengths, self._labels().items(), strict=True):
            counts = self.window.total(now_ns, length)
            if not text and self.alarms.ready:
                alarm(labels, self.alarms, self._shared, points)
            if not text and not self._is_outgoing:
                self._look(labels, counts, now_ns, points)
                self._compare(counts, now_ns, points)
            evidence = self._evidence(text, counts, now_ns)
            report(labels, evidence, points)
            report_embeddings(self._shared, self.tables.frames, counts, text, self._settings, points)
            if not text:
                self.joint.note(evidence.drifted.tolist())
        if self.scores is not None:
            own_quantiles(self._labels()[""], self.scores.usual, self._settings.adaptive.quantile, points)
        if not self._is_outgoing:
            self._add_own(now_ns, points)
        return points

    def _add_own(self, now_ns: int, points: Points) -> None:
        """What there is once, whatever the number of references."""
        for name, more in sliced.report(self.identity, self.window, now_ns, self._settings).items():
            points[name].extend(more)
        for name in ("min_rows", "threshold", "significance"):
            where = self.identity.attributes(limit=name)
            points["model.drift.limit"].append(Number(where, float(getattr(self._settings, name))))
        if self.tables.frames:
            where = self.identity.attributes(limit="mmd_threshold")
            points["model.drift.limit"].append(Number(where, self._settings.multivariate.mmd_threshold))
        for column in tallies(self.tables, self.window.lifetime()):
            if column.profile.role is not Role.FEATURE and column.profile.kind is Kind.NUMERIC:
                points["prediction.histogram"].append(self._lifetime(column))

    def _evidence(self, window: str, counts: Counts, now_ns: int) -> Evidence:
        """The scores of `drift.window`, which has no name, are those that thresholds adapt to."""
        use = self._settings.adaptive.use
        if window or self.scores is None:
            return Evidence(self.tables, counts, self._settings)
        least = self.scores.usual if use == "verdict" else None
        found = Evidence(self.tables, counts, self._settings, least)
        self.scores.look(self.window.span(now_ns)[1], found.values[:, PSI], found.judged)
        return found

    def _compare(self, counts: Counts, now_ns: int, points: Points) -> None:
        """`drift.window` beside the stream's own past."""
        if self.past is None:
            return
        shared, profiles = self.identity.attributes(), self.tables.profiles
        for kind in self._settings.other_baselines:
            if kind not in self._baselines:
                self._baselines[kind] = [Names(shared, profile, kind) for profile in profiles]
            before = self.past.before(kind, *self.window.span(now_ns))
            compared(self._baselines[kind], Against(self.tables, counts, before, self._settings), points)
        deviations(shared, profiles, self.past.deviations, points)

    def _lifetime(self, column: Tally) -> Histogram:
        found = lifetime(self.identity, column)
        name, total = column.profile.name, found.sum
        if len(column.profile.edges) and column.profile.edges[0] >= 0:
            # Panes add up in another order when they move: a last digit less would read as a reset.
            total = max(total, self._sums.get(name, 0.0))
            self._sums[name] = total
        return structs.replace(found, sum=total, start_ns=self._start_ns or 0)

    def _look(self, labels: list[Labels], counts: Counts, now_ns: int, points: Points) -> None:
        """Describe the columns of `drift.window`, and those that are not as the reference has them."""
        columns = tallies(self.tables, counts)
        for names, column in zip(labels, columns, strict=True):
            describe(names, column, points)
        first = len(self.tables.numeric)
        for row, (names, column) in enumerate(zip(labels[first:], columns[first:], strict=True)):
            if column.counts[-1]:
                frequent = self.window.frequent_unseen(row, now_ns)
                name_unseen(names, column, frequent, self._settings.unseen_categories, points)
        skipped, vanished, vectors = self.window.unfit()
        for one in skipped[: self._settings.max_features]:
            prefix, key = family(one.role)
            where = self.identity.attributes(**{key: one.name, "reason": one.reason})
            points[f"{prefix}.skipped"].append(Number(where, 1.0))
        violations = inspect(labels, columns, self._settings, points)
        violations += missing_columns(labels, sorted(vanished), skipped, points)
        violations += inspect_embeddings(self._shared, self.tables, counts, vectors, self._settings, points)
        summarise(self.identity, violations, points)
