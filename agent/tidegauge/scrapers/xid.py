"""XID errors: what the driver reports of a GPU's faults, counted by kind and dated by number.

Kinds are made of NVIDIA's catalogue ("Analyzing Xid Errors with the Xid Catalog") and of the list
that its Kubernetes device plugin takes for errors of the application (internal/rm/health.go).
"""

from __future__ import annotations

import threading
import time

from tidegauge.metric import Attributes, Metric
from tidegauge.scrapers.family import Sample, as_metrics

KINDS = {
    "application": frozenset({13, 31, 43, 45, 68, 69, 109}),
    "memory": frozenset({48, 63, 64, 92, 94, 95, 140}),
    "link": frozenset({74, 79}),
    "firmware": frozenset({61, 62, 119, 120}),
}
"""Numbers by kind; the others are of kind `other`. Link: 74 is NVLink, 79 the GPU gone from PCIe."""

NUMBERS = 64
"""Numbers that are dated for each GPU at most: there are 170 in all, and few on one board."""


def kind_of(number: int) -> str:
    """The kind of an XID.

    >>> kind_of(79), kind_of(13), kind_of(8)
    ('link', 'application', 'other')
    """
    return next((kind for kind, numbers in KINDS.items() if number in numbers), "other")


class Xids:
    """Counts XID errors. Written by the thread that waits for them, read by any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, dict[str, int]] = {}
        self._attributes: dict[str, Attributes] = {}
        self._times: dict[tuple[str, int], float] = {}

    def watch(self, uuid: str, attributes: Attributes) -> None:
        """Begin with zeros, so that the first error is an increase."""
        with self._lock:
            self._attributes[uuid] = attributes
            self._counts.setdefault(uuid, dict.fromkeys((*KINDS, "other"), 0))

    def add(self, uuid: str, number: int) -> None:
        """Count an error that has just happened."""
        if uuid not in self._counts:
            self.watch(uuid, (("hw.id", uuid),))
        with self._lock:
            self._counts[uuid][kind_of(number)] += 1
            if (uuid, number) in self._times or sum(key[0] == uuid for key in self._times) < NUMBERS:
                self._times[uuid, number] = time.time()

    def collect(self) -> tuple[Metric, ...]:
        """`hw.gpu.xid.events` and `hw.gpu.xid.time`."""
        with self._lock:
            counts = [
                Sample(
                    "hw.gpu.xid.events", (*self._attributes[uuid], ("hw.gpu.xid.kind", kind)), float(count)
                )
                for uuid, kinds in self._counts.items()
                for kind, count in kinds.items()
            ]
            times = [
                Sample("hw.gpu.xid.time", (*self._attributes[uuid], ("hw.gpu.xid", str(number))), when_s)
                for (uuid, number), when_s in self._times.items()
            ]
        return as_metrics(counts + times)
