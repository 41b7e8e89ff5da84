"""Drift of features and predictions against a reference, per identity."""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple
from weakref import WeakKeyDictionary

from tidegauge.batch import Batch, Records
from tidegauge.categories import has_views, spelled_out
from tidegauge.config import Drift as Settings
from tidegauge.identity import Identity
from tidegauge.layout import Layout
from tidegauge.metric import Metric, Number, Point, attributes
from tidegauge.plain import Plain
from tidegauge.processors.drift.checkpoint import DriftState, FirstRows, IdentityState, decode
from tidegauge.processors.drift.counts import Tables
from tidegauge.processors.drift.joint import Turns
from tidegauge.processors.drift.report import METRICS, Points, bin_labels, family
from tidegauge.processors.drift.sections import Section
from tidegauge.processors.drift.warmup import WarmUp
from tidegauge.processors.drift.watch import Watch
from tidegauge.profile import ProfileError, Reference
from tidegauge.runs import Chain, Column
from tidegauge.statefile import StateError

log = logging.getLogger(__name__)

Model = tuple[str, str]

_ID = 12
"""Digits of a reference's fingerprint that are its id in labels."""


class Prepared(NamedTuple):
    """A reference that a model is to be compared with from now on, and what takes time to work out."""

    reference: Reference
    tables: Tables


class Outgoing(NamedTuple):
    """What still compares an identity with the reference of that id, until a Unix time, nanoseconds."""

    watch: Watch
    reference: str
    until_ns: int


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
        self._described: dict[Model, dict[str, Sequence[Point]]] = {}
        self._warm_ups: dict[Model, WarmUp] = {}
        self._ids: dict[Model, str] = {}
        self._unfit: set[Model] = set()
        self._watches: dict[Identity, Watch] = {}
        self._outgoing: dict[Identity, Outgoing] = {}
        self._views: WeakKeyDictionary[Layout, bool] = WeakKeyDictionary()
        self.turns = Turns(settings)
        self._on_reference = on_reference
        self._start_ns = time.time_ns()
        for reference in references:
            self._adopt(self._lay_out(reference))

    def retune(self, settings: Settings) -> None:
        """Judge by other thresholds from now on. Only those of its settings may differ that judge."""
        self._settings = settings
        for watch in self._watching():
            watch.retune(settings)

    def update(self, *batches: Batch) -> Mapping[str, int]:
        """Fold batches of records.

        Rows are left out as `late`, `future`, `identity_limit`, `schema_changed` or `error`.
        """
        left_out: Counter[str] = Counter()
        for batch in batches:
            if isinstance(batch, Records) and batch.items:
                try:
                    if some := self._update(batch):
                        left_out.update(some)
                except Exception:
                    # One bad batch must not take those with it that were queued beside it.
                    log.exception("a batch of %s %s failed", *batch.identity[:2])
                    left_out["error"] += batch.items
        for watch in self._watching():
            watch.settle()
        return left_out

    def _watching(self) -> tuple[Watch, ...]:
        return (*self._watches.values(), *(one.watch for one in self._outgoing.values()))

    def _has_views(self, batch: Records) -> bool:
        """Told by a stream's first batch: of 50 columns to look takes as long as to fold 100 rows of them."""
        found = self._views.get(batch.layout)
        if found is None:
            found = self._views[batch.layout] = has_views(batch.content.schema)
        return found

    def _update(self, batch: Records) -> Mapping[str, int]:
        if not isinstance(batch.content, Plain) and self._has_views(batch):
            batch = replace(batch, content=spelled_out(batch.content))
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
            # Once: the next rows may do no better.
            if model not in self._unfit and len(self._unfit) < self._settings.max_identities:
                self._unfit.add(model)
                log.warning("no reference of %s %s from its first rows: %s", *model, error)
            return
        self._adopt(self._lay_out(reference))
        log.info("the first %d rows of %s %s are its reference now", reference.rows, *model)
        if self._on_reference is not None:
            self._on_reference(reference)

    def collect(self, now_ns: int) -> tuple[Metric, ...]:
        """Statistics of every window, counts on both sides and the references' own rows."""
        found: dict[str, list[Sequence[Point]]] = defaultdict(list)
        self.turns.take(now_ns)
        self._outgoing = {who: one for who, one in self._outgoing.items() if now_ns < one.until_ns}
        for watch in self._watching():
            watch.collect(now_ns, found)
        self._collect_references(found)
        return tuple(
            Metric(name, about.kind, about.unit, about.description, Chain(found[name]), self._start_ns)
            for name, about in METRICS.items()
            if name in found
        )

    def capture(self) -> DriftState:
        """All that a restart would lose, in microseconds: panes are copied when they change, not here."""
        identities = tuple(watch.capture() for watch in self._watches.values())
        stamp = (
            tuple(self._ids.items()),
            tuple((identity, watch.window.updates) for identity, watch in self._watches.items()),
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
        return [*dict.fromkeys(problems)]

    def _tables_of(self, identity: Identity) -> Tables | None:
        return self._tables.get((identity.model, identity.version))

    def _take(self, state: IdentityState | Section | FirstRows, *, complete: bool) -> None:
        if isinstance(state, FirstRows):
            self._take_first_rows(state)
            return
        if isinstance(state, Section):
            # Without its window it is of no use, and why that is not there was told.
            if (its := self._watches.get(state.identity)) is not None:
                its.restore_part(state.part)
            return
        if len(self._watches) >= self._settings.max_identities:
            raise StateError("it has more identities than drift.max_identities")
        watch = self._watch(state.identity, state.tables)
        watch.restore(state, complete=complete)
        self._watches[state.identity] = watch

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

    def prepare(self, reference: Reference) -> Prepared | None:
        """What `switch` takes; None where the model has that very reference. On any thread: it takes a while,
        2 to 8 ms a column."""
        prepared = self._lay_out(reference)
        if prepared.tables.fingerprint[:_ID] == self._ids.get((reference.model, reference.version)):
            return None
        _ = prepared.tables.baselines, prepared.tables.bins  # kept from here on
        return prepared

    def switch(self, prepared: Prepared, now_ns: int) -> None:
        """Compare a model with another reference from Unix time `now_ns`, nanoseconds.

        All its identities change at once. Each goes on being compared with the one before as well, for
        `drift.reference_overlap`, or until the reference changes again.
        """
        model = (prepared.reference.model, prepared.reference.version)
        old = self._ids.get(model, "")
        self._warm_ups.pop(model, None)
        self._adopt(prepared)
        until_ns = now_ns + int(self._settings.reference_overlap * 1e9)
        for identity, watch in self._watches.items():
            if (identity.model, identity.version) == model:
                successor = self._watch(identity, prepared.tables)
                successor.succeed(watch, now_ns)
                watch.retire(old)
                self._watches[identity] = successor
                self._outgoing[identity] = Outgoing(watch, old, until_ns)
        log.info("%s %s is compared with reference %s now, and was with %s", *model, self._ids[model], old)

    def _lay_out(self, reference: Reference) -> Prepared:
        limit = self._settings.max_features
        if len(reference.profiles) > limit:
            log.warning(
                "%s %s: only the first %d of %d columns are watched (drift.max_features)",
                reference.model,
                reference.version,
                limit,
                len(reference.profiles),
            )
            reference = replace(reference, profiles=reference.profiles[:limit])
        limit = self._settings.multivariate.max_embeddings
        if len(reference.embeddings) > limit:
            log.warning(
                "%s %s: only the first %d embeddings are watched (drift.multivariate.max_embeddings)",
                reference.model,
                reference.version,
                limit,
            )
            reference = replace(reference, embeddings=reference.embeddings[:limit])
        return Prepared(reference, Tables(reference))

    def _adopt(self, prepared: Prepared) -> None:
        reference, tables = prepared
        model = (reference.model, reference.version)
        self._references[model] = reference
        self._tables[model] = tables
        self._ids[model] = tables.fingerprint[:_ID]
        self._described[model] = {}

    def _fold(self, batch: Records) -> Mapping[str, int]:
        watch = self._watches.get(batch.identity)
        if watch is None:
            if len(self._watches) >= self._settings.max_identities:
                return {"identity_limit": batch.items}
            tables = self._tables[batch.identity.model, batch.identity.version]
            watch = self._watch(batch.identity, tables)
            self._watches[batch.identity] = watch
        left_out = watch.update(batch)
        outgoing = self._outgoing.get(batch.identity)
        if outgoing is not None:
            outgoing.watch.fold(batch)
        return left_out

    def _watch(self, identity: Identity, tables: Tables) -> Watch:
        watch = Watch(identity, tables, self._settings, self._start_ns)
        self.turns.join(watch.joint)
        return watch

    def _collect_references(self, found: dict[str, list[Sequence[Point]]]) -> None:
        points: Points = defaultdict(Column)
        for (model, version), reference in self._references.items():
            where = attributes(model=model, version=version, source=reference.source)
            points["reference.rows"].append(Number(where, float(reference.rows)))
            points["reference.ready"].append(Number(where, 1.0))
            where = attributes(
                model=model, version=version, reference=self._ids[model, version], state="current"
            )
            points["model.reference.info"].append(Number(where, 1.0))
        for old in {(who.model, who.version, one.reference) for who, one in self._outgoing.items()}:
            where = attributes(model=old[0], version=old[1], reference=old[2], state="outgoing")
            points["model.reference.info"].append(Number(where, 1.0))
        for (model, version), warm_up in self._warm_ups.items():
            where = attributes(model=model, version=version, source=warm_up.SOURCE)
            points["reference.rows"].append(Number(where, float(warm_up.rows)))
            points["reference.ready"].append(Number(where, 0.0))
        for whose, described in self._described.items():
            if not described:
                described.update(self._describe(self._tables[whose], Identity(*whose)))
            for name, more in described.items():
                found[name].append(more)
        for name, column in points.items():
            found[name].append(column.points())

    def _describe(self, tables: Tables, whose: Identity) -> dict[str, Sequence[Point]]:
        """The counts of a reference, once, whatever the number of stages and data sources."""
        points: Points = defaultdict(Column)
        for profile, bins in zip(tables.profiles, bin_labels(tables, whose.attributes()), strict=True):
            counts = profile.counts.tolist()
            points[f"{family(profile.role)[0]}.reference.count"].put(bins[: len(counts)], map(float, counts))
        return {name: column.points() for name, column in points.items()}
