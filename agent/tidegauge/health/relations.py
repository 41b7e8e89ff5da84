"""Which signals move with a symptom, and which of them ahead of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tidegauge.health.history import History
from tidegauge.health.signals import SIGNALS, SYMPTOMS
from tidegauge.stats.correlation import Correlation, correlate, lagged


class Relation(NamedTuple):
    """A symptom and another signal: at equal times, and with the signal `ahead.lag` steps earlier."""

    symptom: str
    signal: str
    at_once: Correlation
    ahead: Correlation


def relate(history: History, most_lag: int) -> Iterator[Relation]:
    """All pairs of a symptom and another signal that have enough steps in common."""
    there = history.names()
    for symptom in SYMPTOMS:
        if symptom not in there:
            continue
        felt = history.series(symptom)
        for signal in SIGNALS:
            if signal == symptom or signal not in there:
                continue
            told = history.series(signal)
            at_once, ahead = correlate(felt, told), lagged(felt, told, most_lag)
            if at_once is not None and ahead is not None:
                yield Relation(symptom, signal, at_once, ahead)
