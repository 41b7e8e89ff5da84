"""Replays rows of the training data to the model server, and moves one feature when told to."""

from __future__ import annotations

import asyncio

import aiohttp
import numpy as np
from model import FEATURES, ROWS

SINGLE_INTERVAL_S = 1 / 20
BATCH_INTERVAL_S = 1 / 8
BATCH_ROWS = 32
"""20 x 1 and 8 x 32 rows a second: a few per cent of one core, and enough rows for a short window."""


class Traffic:
    """Rows drawn with replacement from the very rows that the reference describes.

    So a feature that is not moved has the reference's distribution exactly. `move` adds
    `deviations` standard deviations to one feature, as an instrument out of calibration would.
    Requests are paced; where the server is slow they come later, never more at once.
    """

    def __init__(self, url: str, feature: str, deviations: float) -> None:
        self._url = url
        self._random = np.random.default_rng(0)
        self._shift = np.zeros(len(FEATURES))
        self._column = FEATURES.index(feature)
        self._deviations = deviations
        self.rows = 0
        self.failures = 0

    def move(self) -> None:
        """From now on the feature is moved."""
        self._shift[self._column] = self._deviations * ROWS[:, self._column].std()

    async def run(self) -> None:
        """Send requests until cancelled."""
        async with aiohttp.ClientSession(self._url) as session:
            await asyncio.gather(
                self._repeat(session, "/predict", 1, SINGLE_INTERVAL_S),
                self._repeat(session, "/predict/batch", BATCH_ROWS, BATCH_INTERVAL_S),
            )

    async def _repeat(self, session: aiohttp.ClientSession, path: str, count: int, interval_s: float) -> None:
        clock = asyncio.get_running_loop().time
        due = clock()
        while True:
            rows = [dict(zip(FEATURES, row, strict=True)) for row in self._draw(count)]
            try:
                async with session.post(path, json=rows if count > 1 else rows[0]) as response:
                    response.raise_for_status()
            except (aiohttp.ClientError, TimeoutError):
                self.failures += 1
            else:
                self.rows += count
            due = max(due + interval_s, clock())
            await asyncio.sleep(due - clock())

    def _draw(self, count: int) -> list[list[float]]:
        chosen = self._random.integers(len(ROWS), size=count)
        drawn: list[list[float]] = (ROWS[chosen] + self._shift).tolist()
        return drawn
