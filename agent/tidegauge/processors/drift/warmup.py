"""A model's first rows, kept until they are its reference."""

from __future__ import annotations

import logging
from collections.abc import Set
from dataclasses import replace
from typing import ClassVar

from tidegauge.batch import Records
from tidegauge.config import Drift as Settings
from tidegauge.identity import Identity
from tidegauge.layout import FOLDED, Kind, layout_of
from tidegauge.processors.drift.checkpoint import FirstRows
from tidegauge.profile import Profile, ProfileError, Reference
from tidegauge.reference import ReferenceBuilder, Vectors, with_sample
from tidegauge.sample import RowSample

log = logging.getLogger(__name__)


class WarmUp:
    """Holds the first `drift.reference_rows` rows of a model."""

    SOURCE: ClassVar[str] = "first_rows"

    def __init__(self, model: str, version: str, settings: Settings) -> None:
        self._model, self._version = model, version
        self._settings = settings
        self._held: list[Records] = []
        self.nbytes = 0
        self.rows = 0

    @property
    def ready(self) -> bool:
        """Whether it holds all the rows that it wants."""
        return self.rows >= self._settings.reference_rows

    def update(self, batch: Records) -> Records:
        """Take what is still needed of a batch; returns the rest, which belongs to the window."""
        taken = min(self._settings.reference_rows - self.rows, batch.items)
        self._held.append(replace(batch, content=batch.rows.slice(0, taken)))
        self.rows += taken
        self.nbytes += batch.nbytes
        return replace(batch, content=batch.rows.slice(taken))

    def capture(self) -> FirstRows:
        """The rows held, which nobody changes."""
        return FirstRows(self._model, self._version, tuple(batch.rows for batch in self._held))

    def restore(self, state: FirstRows) -> None:
        """Take in rows that were held before, as many as are still needed.

        Raises:
            LayoutError: for columns that cannot be served.
        """
        for rows in state.batches:
            identity = Identity(self._model, self._version)
            self.update(Records("state", identity, layout_of(rows.schema), rows, 0, rows.nbytes))

    def build(self) -> Reference:
        """The reference of the rows held. A column that changes its type in them is left out.

        Raises:
            ProfileError: where no column is left to judge.
        """
        profiles: list[Profile] = []
        vectors: dict[str, Vectors] = {}
        names = {
            name: None
            for batch in self._held
            for name, role, kind in zip(
                batch.layout.names, batch.layout.roles, batch.layout.kinds, strict=True
            )
            if role in FOLDED and kind is not Kind.NONE
        }
        # One column at a time: counting its values takes 300 kB for a moment.
        for name in names:
            builder = ReferenceBuilder(bins=self._settings.bins, max_categories=self._settings.max_categories)
            try:
                for batch in self._held:
                    builder.update(batch.rows, batch.layout, only=name)
                profiles += builder.build(self._model, self._version, self.SOURCE).profiles
                vectors |= builder.vectors
            except ProfileError as error:
                log.warning("%s %s: no reference of column %r: %s", self._model, self._version, name, error)
        reference = Reference(self._model, self._version, self.SOURCE, self.rows, tuple(profiles))
        reference = with_sample(reference, self._sample({*(one.name for one in profiles), *vectors}), vectors)
        if not reference.profiles and not reference.embeddings:
            raise ProfileError("no column of the first rows can have a reference")
        return reference

    def _sample(self, names: Set[str]) -> RowSample:
        """A sample of the rows held, of the columns that can have a reference."""
        sample = RowSample()
        for batch in self._held:
            rows = batch.rows.select([name for name in batch.layout.names if name in names])
            if rows.num_columns:
                sample.update(rows, layout_of(rows.schema))
        return sample
