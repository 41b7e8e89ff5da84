"""Drift of features and predictions against a reference, per identity."""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from msgspec import structs

from tidegauge.batch import Batch, Records
from tidegauge.config import Drift as Settings
from tidegauge.identity import Identity
from tidegauge.layout import Kind, Role
from tidegauge.metric import Histogram, Metric, Number, attributes
from tidegauge.processors.alarms import Alarms
from tidegauge.processors.checkpoint import DriftState, FirstRows, IdentityState, decode
from tidegauge.processors.counts import Counts, Tables, Tally, tallies
from tidegauge.processors.embeddings import report_embeddings
from tidegauge.processors.evidence import Evidence
from tidegauge.processors.joint import Joint
from tidegauge.processors.quality import inspect, missing_columns, summarise
from tidegauge.processors.report import METRICS, Labels, Points, alarm, describe, family, lifetime, report
from tidegauge.processors.stream import Stream
from tidegauge.processors.warmup import WarmUp
from tidegauge.processors.window import Window
from tidegauge.profile import ProfileError, Reference
from tidegauge.statefile import StateError
from tidegauge.units import duration_text

log = logging.getLogger(__name__)

Model = tuple[str, str]


class Drift:
    """Implements the pipeline's Processor for record batches.

    A model without a reference gets one from its first `drift.reference_rows` rows; those rows are
    not judged. `on_reference` is told of each such reference, on the worker thread.
    """

    def __init__(
        self,
        settings: Settings,
        references: Iterable[Reference] = (),
        on_reference: Callable[[Reference], None] | None = None,
    ) -> None:
        self._settings = settings
        self._references: dict[Model, Reference] = {}
        self._tables: dict[Model, Tables] = {}
        self._described: dict[Model, Points] = {}
        self._warm_ups: dict[Model, WarmUp] = {}
        self._windows: dict[Identity, Window] = {}
        self._alarms: dict[Identity, Alarms] = {}
        self._streams: dict[Identity, Stream] = {}
        self._joint = Joint(settings)
        self._labels: dict[Identity, dict[str, list[Labels]]] = {}
        self._known: dict[Identity, tuple[tuple[int, int], Points]] = {}
        self._on_reference = on_reference
        self._start_ns = time.time_ns()
        self._starts: dict[Identity, int] = {}  # of lifetimes that began in an earlier run
        self._sums: dict[Identity, dict[str, float]] = defaultdict(dict)
        for reference in references:
            self._adopt(reference)

    def update(self, *batches: Batch) -> Mapping[str, int]:
        """Fold batches of records.

        Rows are left out as `late`, `future`, `identity_limit`, `schema_changed` or `error`.
        """
        left_out: Counter[str] = Counter()
        for batch in batches:
            if isinstance(batch, Records) and batch.items:
                try:
                    left_out.update(self._update(batch))
                except Exception:
                    # One bad batch must not take those with it that were queued beside it.
                    log.exception("a batch of %s %s failed", *batch.identity[:2])
                    left_out["error"] += batch.items
        for window in self._windows.values():
            window.settle()
        return left_out

    def _update(self, batch: Records) -> Mapping[str, int]:
        model = (batch.identity.model, batch.identity.version)
        if model in self._references:
            return self._fold(batch)
        if model not in self._warm_ups:
            if len(self._references) + len(self._warm_ups) >= self._settings.max_identities:
                return {"identity_limit": batch.items}
            self._warm_ups[model] = WarmUp(*model, self._settings)
        rest = self._warm_ups[model].update(batch)
        self._keep_within_memory()
        if model in self._warm_ups and self._warm_ups[model].ready:
            self._finish(model)
        if not rest.items or model in self._warm_ups:
            return {}
        return self._fold(rest) if model in self._references else {"schema_changed": rest.items}

    def _keep_within_memory(self) -> None:
        """End the largest warm-ups early: their references are noisier, and their row counts say so."""
        while sum(one.nbytes for one in self._warm_ups.values()) > self._settings.reference_memory:
            self._finish(max(self._warm_ups, key=lambda model: self._warm_ups[model].nbytes))

    def _finish(self, model: Model) -> None:
        try:
            reference = self._warm_ups.pop(model).build()
        except ProfileError as error:
            log.warning("no reference of %s %s from its first rows: %s", *model, error)
            return
        self._adopt(reference)
        log.info("the first %d rows of %s %s are its reference now", reference.rows, *model)
        if self._on_reference is not None:
            self._on_reference(reference)

    def collect(self, now_ns: int) -> tuple[Metric, ...]:
        """Statistics of every window, counts on both sides and the references' own rows."""
        points: Points = defaultdict(list)
        self._joint.turn(now_ns)
        for identity, window in self._windows.items():
            stamp = window.stamp(now_ns)
            known = self._known.get(identity)
            if known is None or known[0] != stamp:
                known = self._known[identity] = (stamp, self._judged(identity, window, now_ns))
            for name, more in known[1].items():
                points[name].extend(more)
            self._streams[identity].report(identity, now_ns, points)
            self._joint.report(identity, points)
        self._collect_references(points)
        return tuple(
            Metric(name, about.kind, about.unit, about.description, tuple(points[name]), self._start_ns)
            for name, about in METRICS.items()
            if name in points
        )

    def capture(self) -> DriftState:
        """All that a restart would lose, in microseconds: panes are copied when they change, not here."""
        identities = tuple(
            IdentityState(
                identity,
                window.tables,
                self._starts.get(identity, self._start_ns),
                dict(self._sums[identity]),
                window.capture(),
                self._alarms[identity].capture(),
                self._streams[identity].capture(),
            )
            for identity, window in self._windows.items()
        )
        stamp = (
            tuple((identity, window.updates) for identity, window in self._windows.items()),
            tuple((model, warm_up.rows) for model, warm_up in self._warm_ups.items()),
        )
        return DriftState(stamp, identities, tuple(one.capture() for one in self._warm_ups.values()))

    def restore(self, frames: Iterable[bytes], *, complete: bool) -> list[str]:
        """Go on from a state: to be called before the first batch.

        Unless it is `complete`, rows that scrapes have counted may be missing from it: `prediction.histogram`
        then begins at 0 again. Returns why parts of it were not used.
        """
        problems = []
        try:
            for frame in frames:
                try:
                    self._take(decode(frame, self._tables_of), complete=complete)
                except (StateError, ValueError) as error:
                    problems.append(str(error))
        except StateError as error:  # from where on it cannot be read
            problems.append(str(error))
        return problems

    def _tables_of(self, identity: Identity) -> Tables | None:
        return self._tables.get((identity.model, identity.version))

    def _take(self, state: IdentityState | FirstRows, *, complete: bool) -> None:
        if isinstance(state, FirstRows):
            self._take_first_rows(state)
            return
        if len(self._windows) >= self._settings.max_identities:
            raise StateError("it has more identities than drift.max_identities")
        window = Window(state.tables, self._settings)
        window.restore(state.window, anew=not complete)
        self._open(state.identity, window)
        self._alarms[state.identity].restore(state.alarms)
        self._streams[state.identity].restore(state.stream)
        if complete:
            self._starts[state.identity] = state.start_ns
            self._sums[state.identity] = state.sums

    def _take_first_rows(self, state: FirstRows) -> None:
        model = (state.model, state.version)
        if model in self._references:
            return  # it got one meanwhile
        if model not in self._warm_ups:
            if len(self._references) + len(self._warm_ups) >= self._settings.max_identities:
                raise StateError("it has more models than drift.max_identities")
            self._warm_ups[model] = WarmUp(*model, self._settings)
        self._warm_ups[model].restore(state)
        self._keep_within_memory()

    def _adopt(self, reference: Reference) -> None:
        model = (reference.model, reference.version)
        limit = self._settings.max_features
        if len(reference.profiles) > limit:
            log.warning(
                "%s %s: only the first %d of %d columns are watched (drift.max_features)",
                *model,
                limit,
                len(reference.profiles),
            )
            reference = replace(reference, profiles=reference.profiles[:limit])
        if len(reference.embeddings) > self._settings.multivariate.max_embeddings:
            limit = self._settings.multivariate.max_embeddings
            log.warning("%s %s: only the first %d embeddings are watched", *model, limit)
            reference = replace(reference, embeddings=reference.embeddings[:limit])
        self._references[model] = reference
        self._tables[model] = Tables(reference)
        self._described[model] = {}

    def _fold(self, batch: Records) -> Mapping[str, int]:
        window = self._windows.get(batch.identity)
        if window is None:
            if len(self._windows) >= self._settings.max_identities:
                return {"identity_limit": batch.items}
            tables = self._tables[batch.identity.model, batch.identity.version]
            window = Window(tables, self._settings)
            self._open(batch.identity, window)
        left_out = window.update(batch)
        self._streams[batch.identity].update(batch, left_out)
        self._joint.update(batch)
        for pane in window.closed():
            self._alarms[batch.identity].look(pane)
        return left_out

    def _open(self, identity: Identity, window: Window) -> None:
        self._windows[identity] = window
        self._alarms[identity] = Alarms(window.tables, self._settings)
        self._streams[identity] = Stream(self._settings)
        self._joint.open(identity, window.tables)

    def _label(self, identity: Identity, window: Window) -> dict[str, list[Labels]]:
        """By window: "" for `drift.window`, whose points carry no label of it. Made when first wanted: for
        2000 columns restored at once it takes a second, which the start need not wait for."""
        if identity in self._labels:
            return self._labels[identity]
        texts = [
            "" if length == self._settings.window else duration_text(length) for length in window.lengths
        ]
        tables, shared = window.tables, identity.attributes()
        found = self._labels[identity] = {
            text: [
                Labels(shared, profile, text, () if text else bins)
                for profile, bins in zip(tables.profiles, tables.bins, strict=True)
            ]
            for text in texts
        }
        return found

    def _judged(self, identity: Identity, window: Window, now_ns: int) -> Points:
        try:
            return self._judge(identity, window, now_ns)
        except Exception:
            # One model's numbers must not take the others' off the page.
            log.exception("%s %s could not be judged", identity.model, identity.version)
            return {}

    def _judge(self, identity: Identity, window: Window, now_ns: int) -> Points:
        points: Points = defaultdict(list)
        for length, (text, labels) in zip(window.lengths, self._label(identity, window).items(), strict=True):
            counts = window.total(now_ns, length)
            if not text:
                self._look(identity, window, labels, counts, points)
                if self._alarms[identity].ready:
                    alarm(labels, self._alarms[identity], identity, points)
            evidence = Evidence(window.tables, counts, self._settings)
            report(labels, evidence, points)
            if not text:
                self._joint.note(identity, evidence.drifted.tolist())
            report_embeddings(identity, window.tables.frames, counts, text, self._settings, points)
        for column in tallies(window.tables, window.lifetime()):
            if column.profile.role is not Role.FEATURE and column.profile.kind is Kind.NUMERIC:
                points["prediction.histogram"].append(self._lifetime(identity, column))
        return points

    def _lifetime(self, identity: Identity, column: Tally) -> Histogram:
        found = lifetime(identity, column)
        name, total = column.profile.name, found.sum
        if len(column.profile.edges) and column.profile.edges[0] >= 0:
            # Panes add up in another order when they move: a last digit less would read as a reset.
            total = max(total, self._sums[identity].get(name, 0.0))
            self._sums[identity][name] = total
        return structs.replace(found, sum=total, start_ns=self._starts.get(identity, 0))

    def _look(
        self, identity: Identity, window: Window, labels: list[Labels], counts: Counts, points: Points
    ) -> None:
        """Describe the columns of `drift.window`, and those that are not as the reference has them."""
        columns = tallies(window.tables, counts)
        for names, column in zip(labels, columns, strict=True):
            describe(names, column, points)
        skipped, vanished = window.unfit()
        for one in skipped[: self._settings.max_features]:
            prefix, key = family(one.role)
            where = identity.attributes(**{key: one.name, "reason": one.reason})
            points[f"{prefix}.skipped"].append(Number(where, 1.0))
        violations = inspect(labels, columns, self._settings, points)
        violations += missing_columns(labels, sorted(vanished), skipped, points)
        summarise(identity, violations, points)

    def _collect_references(self, points: Points) -> None:
        for (model, version), reference in self._references.items():
            where = attributes(model=model, version=version, source=reference.source)
            points["reference.rows"].append(Number(where, float(reference.rows)))
            points["reference.ready"].append(Number(where, 1.0))
        for (model, version), warm_up in self._warm_ups.items():
            where = attributes(model=model, version=version, source=warm_up.SOURCE)
            points["reference.rows"].append(Number(where, float(warm_up.rows)))
            points["reference.ready"].append(Number(where, 0.0))
        for whose, described in self._described.items():
            if not described:
                described.update(self._describe(self._tables[whose], Identity(*whose)))
            for name, more in described.items():
                points[name].extend(more)

    def _describe(self, tables: Tables, whose: Identity) -> Points:
        """The counts of a reference, once, whatever the number of stages and data sources."""
        points: Points = defaultdict(list)
        for profile, bins in zip(tables.profiles, tables.bins, strict=True):
            names = Labels(whose.attributes(), profile, bins=bins)
            points[f"{names.prefix}.reference.count"].extend(
                Number(where, float(count))
                for where, count in zip(names.bins, profile.counts.tolist(), strict=False)
            )
        return points
