"""The /metrics page: the latest snapshot as bytes, made once and served until something changes."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import NamedTuple

from tidegauge.exporters.exposition import Exposition, Format, renderer
from tidegauge.exporters.gzipped import Gzip, joined
from tidegauge.exporters.negotiation import accepts_gzip, negotiate
from tidegauge.snapshot import Snapshots

log = logging.getLogger(__name__)

_FORGET_S = 600.0
"""A format that nobody has asked for this long is forgotten: one curl is not to hold memory for good."""


class Answer(NamedTuple):
    """What a scrape is answered with."""

    content_type: str
    gzipped: bool
    body: bytes


class MetricsPage:
    """Renders a snapshot at most once per format, on the first scrape that asks for it.

    The work is done on a thread; a scrape that comes meanwhile waits for that page, even where a newer
    snapshot has been published in between. Of the next snapshot only what has changed is written and
    compressed again. Use it on the event loop.
    """

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots
        self._pages: dict[Format, _Page] = {}
        self._asked_s: dict[Format, float] = {}
        self._told: dict[Format, tuple[str, ...]] = {}

    @property
    def renderings(self) -> int:
        """How often the pages in use have been rendered."""
        return sum(page.renderings for page in self._pages.values())

    async def answer(self, accept: str = "", accept_encoding: str = "") -> Answer:
        """The page in the format that the two request headers ask for."""
        form, content_type = negotiate(accept)
        gzipped = accepts_gzip(accept_encoding)
        page = self._page(form)
        # A scraper that hangs up must not take the page from the others.
        exposition = await asyncio.shield(page.latest())
        self._tell(form, exposition)
        return Answer(content_type, gzipped, await asyncio.shield(page.body(exposition, gzipped)))

    def _page(self, form: Format) -> _Page:
        now_s = time.monotonic()
        self._asked_s[form] = now_s
        for other in [one for one, asked_s in self._asked_s.items() if now_s - asked_s > _FORGET_S]:
            del self._pages[other], self._asked_s[other]
            self._told.pop(other, None)
        if form not in self._pages:
            self._pages[form] = _Page(form, self._snapshots)
        return self._pages[form]

    def _tell(self, form: Format, exposition: Exposition) -> None:
        told = {reason for reasons in self._told.values() for reason in reasons}
        for reason in exposition.left_out:
            if reason not in told:
                log.warning("left out of /metrics: %s", reason)
        self._told[form] = exposition.left_out


class _Page:
    """The page in one format."""

    def __init__(self, form: Format, snapshots: Snapshots) -> None:
        self._snapshots = snapshots
        self._renderer = renderer(form)
        self._gzip = Gzip()
        self._generation = -1
        self._rendering: asyncio.Task[Exposition] | None = None
        self._exposition = Exposition((), ())
        self._bodies: dict[bool, asyncio.Task[bytes]] = {}
        self.renderings = 0

    def latest(self) -> asyncio.Task[Exposition]:
        """The rendering in progress, else that of the latest snapshot."""
        task = self._rendering
        if task is None or (
            task.done()
            and (self._generation != self._snapshots.latest().generation or task.exception() is not None)
        ):
            task = self._rendering = asyncio.create_task(self._render())
        return task

    async def _render(self) -> Exposition:
        self.renderings += 1
        snapshot = self._snapshots.latest()
        self._generation = snapshot.generation
        exposition = await asyncio.to_thread(self._renderer.render, snapshot.metrics)
        # Bodies stay where no piece is another one, and that is asked by identity first.
        if exposition.pieces != self._exposition.pieces:
            self._bodies = {}
        self._exposition = exposition
        return exposition

    def body(self, exposition: Exposition, gzipped: bool) -> asyncio.Task[bytes]:
        """The page in one piece, made once."""
        if exposition.pieces != self._exposition.pieces:
            return asyncio.create_task(self._join(exposition, gzipped))  # another scrape went ahead
        task = self._bodies.get(gzipped)
        if task is None or (task.done() and task.exception() is not None):
            task = self._bodies[gzipped] = asyncio.create_task(self._join(exposition, gzipped))
        return task

    async def _join(self, exposition: Exposition, gzipped: bool) -> bytes:
        if gzipped:
            return await asyncio.to_thread(self._gzip.compress, exposition.pieces)
        return await asyncio.to_thread(joined, exposition.pieces)
