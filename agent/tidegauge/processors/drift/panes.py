"""Counts in panes of event time, fine ones for what is recent and coarser ones for what is older."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidegauge.processors.drift.counts import Counts, Tables

RETIRED = -1
"""The place of the sum of all that left the last level, beside the levels."""


class PaneState(NamedTuple):
    """Panes as they were at one moment, which nobody changes any more.

    `widths_ns` are those of each level's panes. `held` are the panes by level and number, in the order
    in which sums add them up; the sum of what left them, where it is asked for, is at (RETIRED, 0).
    """

    widths_ns: tuple[int, ...]
    held: Mapping[tuple[int, int], Counts]


class Panes:
    """The rows of several sliding windows, each `panes` panes long, every row held once.

    `windows_ns` are the windows' lengths, ascending, each a multiple of the one before. A level of panes
    belongs to each: rows go to the finest level that reaches back to them, and a pane that leaves its
    level is added to the pane of the next one that encloses it. What leaves the last level is kept as
    one sum. So the memory is that of `panes` counts for each window, however long it is. Without `vectors`
    counts hold nothing of embeddings.
    """

    def __init__(
        self, tables: Tables, windows_ns: Sequence[int], panes: int, *, vectors: bool = True
    ) -> None:
        self._fresh = partial(Counts, tables, vectors=vectors)
        self._most = panes
        self._widths = [max(length // panes, 1) for length in windows_ns]
        self._levels: list[dict[int, Counts]] = [{} for _ in windows_ns]
        self._retired = self._fresh()
        self._until: float = -math.inf
        self._lent: set[tuple[int, int]] = set()  # captured as they are: copied before they are changed
        self._wide: set[tuple[int, int]] = set()  # given to have rows folded into them since `retire`

    def begin(self, level: int, time_ns: int) -> int:
        """Where the window of `level` that holds `time_ns` in its last pane begins, Unix nanoseconds."""
        width = self._widths[level]
        return (time_ns // width - self._most + 1) * width

    def number(self, level: int, time_ns: int) -> int:
        """The pane of `level` that `time_ns` lies in."""
        return time_ns // self._widths[level]

    def time(self, level: int, number: int) -> int:
        """When the pane `number` of `level` begins, Unix nanoseconds."""
        return number * self._widths[level]

    @property
    def is_empty(self) -> bool:
        """Whether no level has a pane."""
        return not any(self._levels)

    def holds(self, watermark_ns: int) -> bool:
        """Whether the watermark is in the panes that it was in when `retire` was last called, or before."""
        return watermark_ns < self._until

    def retire(self, watermark_ns: int) -> None:
        """Move what lies before each level's window, as of the watermark, to the next level. Panes that
        were given before are not to be folded into any more."""
        for level, panes in enumerate(self._levels):
            first = self.begin(level, watermark_ns) // self._widths[level]
            for number in [number for number in panes if number < first]:
                self._after(level, number).__iadd__(panes.pop(number))
        for level, number in self._wide:
            if (pane := self._levels[level].get(number)) is not None:
                pane.narrow()
        self._wide = set()
        self._until = min((watermark_ns // width + 1) * width for width in self._widths)

    def place(self, first_ns: int, last_ns: int, watermark_ns: int) -> Counts | None:
        """The one pane for rows between two times, or None where there are several or none."""
        finer_ns: float = math.inf  # from where on rows belong to the level before
        for level, width in enumerate(self._widths):
            begin_ns = self.begin(level, watermark_ns)
            if first_ns >= begin_ns:
                number = first_ns // width
                alone = last_ns // width == number and last_ns < finer_ns
                return self._pane(level, number) if alone else None
            finer_ns = begin_ns
        return None

    def places(
        self, times_ns: npt.NDArray[np.int64], watermark_ns: int
    ) -> Iterator[tuple[Counts, npt.NDArray[np.bool_] | None]]:
        """The pane for each of the rows at `times_ns`, as pairs of counts and which rows are theirs.

        None stands for all rows. Rows before every level's window belong nowhere.
        """
        left = np.ones(len(times_ns), bool)
        for level, width in enumerate(self._widths):
            here = left & (times_ns >= self.begin(level, watermark_ns))
            numbers = times_ns // width
            for number in np.unique(numbers[here]).tolist():
                mine = here & (numbers == number)
                yield self._pane(level, number), None if mine.all() else mine
            left &= ~here

    def total(self, level: int, now_ns: int) -> Counts:
        """The sum of the window of `level` at `now_ns`, an event time."""
        return self._sum(level, self.begin(level, now_ns), None)

    def pane(self, level: int, number: int) -> Counts:
        """The sum of the rows of the pane `number` of `level`, those of finer levels included."""
        width = self._widths[level]
        return self._sum(level, number * width, (number + 1) * width)

    def held(self, level: int, before_ns: int) -> list[int]:
        """The panes of `level` before a time that have rows in it or in finer levels, ascending."""
        width = self._widths[level]
        found = {
            number * mine // width
            for mine, panes in zip(self._widths, self._levels[: level + 1], strict=False)
            for number in panes
        }
        return sorted(number for number in found if (number + 1) * width <= before_ns)

    def lifetime(self) -> Counts:
        """The sum of every row there ever was."""
        total = self._fresh()
        total += self._retired
        for panes in self._levels:
            for pane in panes.values():
                total += pane
        return total

    def capture(self, *, lifetime: bool = True) -> PaneState:
        """All of it, without a copy: a pane is copied when rows come to it after this.

        Without `lifetime`, all but what has left the windows.
        """
        held = {
            (level, number): pane
            for level, panes in enumerate(self._levels)
            for number, pane in panes.items()
        }
        if lifetime:
            held[RETIRED, 0] = self._retired
        self._lent = set(held)
        return PaneState(tuple(self._widths), held)

    def restore(self, state: PaneState, *, anew: bool) -> None:
        """Go on from a state of panes of the same widths. `anew`: the lifetime begins with no rows.

        Raises:
            ValueError: where the widths are others.
        """
        if state.widths_ns != tuple(self._widths):
            raise ValueError("its panes are of other lengths (drift.window, other_windows, panes)")
        for (level, number), pane in state.held.items():
            if level == RETIRED:
                self._retired = pane
            else:
                pane.narrow()
                self._levels[level][number] = pane
        if anew:
            self._retired = self._fresh()
            self._retired -= self.lifetime()

    def _sum(self, deepest: int, begin_ns: int, end_ns: int | None) -> Counts:
        total = self._fresh()
        for level in range(deepest + 1):
            width = self._widths[level]
            for number, pane in self._levels[level].items():
                if number * width >= begin_ns and (end_ns is None or number * width < end_ns):
                    total += pane
        return total

    def _after(self, level: int, number: int) -> Counts:
        if level + 1 == len(self._levels):
            if (RETIRED, 0) in self._lent:
                self._lent.remove((RETIRED, 0))
                self._retired = self._retired.copy()
            return self._retired
        return self._pane(level + 1, number * self._widths[level] // self._widths[level + 1])

    def _pane(self, level: int, number: int) -> Counts:
        pane = self._levels[level].get(number)
        if pane is None:
            pane = self._levels[level][number] = self._fresh()
        elif (level, number) in self._lent:
            pane = self._levels[level][number] = pane.copy()
        self._lent.discard((level, number))
        if (level, number) not in self._wide:
            pane.widen()
            self._wide.add((level, number))
        return pane
