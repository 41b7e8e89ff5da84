"""What becomes of a request, and what its sender is told."""

from __future__ import annotations

import enum
from typing import NamedTuple

RETRY_DELAY_S = 1
"""What a sender is asked to wait when there is no room. Fixed, for three reasons: a full queue of 128 MiB
folds in less than that; OpenTelemetry's Python exporter drops at once what it is asked to keep for longer
than its timeout has left (10 s in all), so that a delay that grows would lose more; and while the consumer
is stuck, refusing a request that comes back each second costs next to nothing."""


class Verdict(enum.StrEnum):
    """What became of a request. All but the first are reasons on `tidegauge.rejected`."""

    ACCEPTED = "accepted"
    UNDECODABLE = "undecodable"  # the sender must not send it again
    QUEUE_FULL = "queue_full"  # the sender should, after RETRY_DELAY_S
    OVERLOAD = "overload"  # the same: too much was arriving at once
    SLOW = "slow"  # the same: it took longer to arrive than it may
    TOO_LARGE = "too_large"  # the sender must send less at a time
    ABANDONED = "abandoned"  # it never came whole, or its sender gave up before it was read

    @property
    def passing(self) -> bool:
        """Whether the sender should try again."""
        return self in (Verdict.QUEUE_FULL, Verdict.OVERLOAD, Verdict.SLOW)


class Outcome(NamedTuple):
    """A verdict, and why in words for the sender."""

    verdict: Verdict
    message: str = ""


class RefusedError(Exception):
    """A request that is turned away before it has been read."""

    def __init__(self, verdict: Verdict, message: str) -> None:
        super().__init__(message)
        self.outcome = Outcome(verdict, message)
