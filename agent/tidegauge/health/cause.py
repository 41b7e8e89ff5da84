"""A first hint at what is behind a symptom: the data, the model or the machine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tidegauge.health.parts import Parts
from tidegauge.health.relations import Relation
from tidegauge.health.signals import SIGNALS, Family

FELT = 0.8
"""A part of the index below this is a symptom."""

SIGNIFICANT = 0.01
"""The p-value from which on a correlation is evidence."""

_OF_PARTS = {"latency": ("latency", "queue_time"), "errors": ("error_ratio",)}


class Cause(NamedTuple):
    """A candidate: how strong its evidence is, from 0 to 1, and what that is: a signal that rose with the
    symptom or ahead of it, or a part of the index."""

    family: Family
    strength: float
    evidence: str


def candidates(found: Parts, relations: Iterable[Relation]) -> list[Cause]:
    """The strongest evidence for each family, strongest first; none where there is no symptom.

    Evidence is what the family's part of the index lacks, and how closely one of its signals rose with a
    symptom, or ahead of it, where that is not by chance. Outputs that drift while features do not are
    evidence for the model; with features that drift they are their symptom.
    """
    felt = {symptom for part, them in _OF_PARTS.items() for symptom in them if found.get(part, 1.0) < FELT}
    shifted = found.get("model", 1.0) < FELT
    if not felt and not shifted:
        return []
    evidence = [
        Cause(family, 1.0 - found[family], f"{family}_part")
        for family in (Family.DATA, Family.MODEL, Family.MACHINE)
        if family in found and not (family is Family.MODEL and found.get(Family.DATA, 1.0) < FELT)
    ]
    for one in relations:
        family, ahead = SIGNALS[one.signal], one.ahead
        rose = ahead.r > 0.0 and ahead.p_value < SIGNIFICANT
        if rose and one.symptom in felt and family is not Family.SERVICE:
            evidence.append(Cause(family, ahead.r, one.signal))
    best: dict[Family, Cause] = {}
    for cause in sorted(evidence, key=lambda one: one.strength):
        if cause.strength > 0.0:
            best[cause.family] = cause
    return sorted(best.values(), key=lambda one: -one.strength)
