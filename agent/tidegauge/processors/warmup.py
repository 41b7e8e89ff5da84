"""A model's first rows, kept until they are its reference."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from tidegauge.batch import Records
from tidegauge.config import Drift as Settings
from tidegauge.profile import Reference
from tidegauge.reference import ReferenceBuilder


class WarmUp:
    """Holds the first `drift.reference_rows` rows, or as many as its share of the memory allows."""

    SOURCE: ClassVar[str] = "first_rows"

    def __init__(self, model: str, version: str, settings: Settings) -> None:
        self._model, self._version = model, version
        self._settings = settings
        self._held: list[Records] = []
        self._nbytes = 0
        self.rows = 0
        self.ready = False

    def update(self, batch: Records, share: int) -> Records:
        """Take what is still needed of a batch; returns the rest, which belongs to the window.

        `share` is the memory in bytes that this model may hold. Rows past it end the warm-up early:
        fewer rows make a noisier reference, and the reference's own row count says so.
        """
        taken = min(self._settings.reference_rows - self.rows, batch.items)
        self._held.append(replace(batch, rows=batch.rows.slice(0, taken)))
        self.rows += taken
        self._nbytes += batch.nbytes
        self.ready = self.rows >= self._settings.reference_rows or self._nbytes > share
        return replace(batch, rows=batch.rows.slice(taken))

    def build(self) -> Reference:
        """The reference of the rows held.

        Raises:
            ProfileError: where they contradict each other or have no column to judge.
        """
        builder = ReferenceBuilder(bins=self._settings.bins, max_categories=self._settings.max_categories)
        for batch in self._held:
            builder.update(batch.rows, batch.layout)
        return builder.build(self._model, self._version, self.SOURCE)
