"""The agent's own counters, which hold the conservation identity.

For each receiver and signal, at every instant: received = accepted + rejected and
accepted = folded + dropped + pending. All are written on the event loop only, so a snapshot taken
there is consistent.
"""

from __future__ import annotations

import platform
import time
from collections import Counter

from tidegauge import __version__
from tidegauge.metric import Attributes, Kind, Metric, Number, attributes

COUNTERS = {
    "received": "Items that arrived at a receiver. An undecodable request counts as one item.",
    "accepted": "Received items that were taken into the queue.",
    "rejected": "Received items that were refused, by reason; the sender was told.",
    "folded": "Accepted items that every processor has folded in.",
    "dropped": "Accepted items that were lost or left out, by reason.",
    "exported": "Items handed on, by exporter.",
    "export.dropped": "Items that an exporter gave up, by exporter and reason.",
    "export.restored": "Items that a disk queue held at the start, from an earlier run.",
    "export.unsaved": "Items that a disk queue was to hold and could not: they are in memory only.",
    "export.retries": "Attempts of an exporter that failed and were tried again.",
    "denied": "Requests and connections turned away at the door, by listener and reason.",
    "reloads": "Changes of files under the running agent, by setting and outcome: taken or refused.",
}
"""Counter names, without the `tidegauge.` prefix, and what each means."""


class Telemetry:
    """Counts the agent's own work."""

    def __init__(self) -> None:
        self._start_ns = time.time_ns()
        self._counts: dict[str, Counter[Attributes]] = {name: Counter() for name in COUNTERS}
        self._gauges: dict[str, tuple[str, str, dict[Attributes, float]]] = {}

    def add(self, counter: str, items: int, **labels: str) -> None:
        """Add `items` to a counter of COUNTERS; a zero creates the series."""
        self._counts[counter][attributes(**labels)] += items

    def total(self, counter: str, **labels: str) -> int:
        """The sum of the counter's series that carry all of `labels`."""
        wanted = set(labels.items())
        return sum(items for key, items in self._counts[counter].items() if wanted <= set(key))

    def set_gauge(self, name: str, unit: str, description: str, value: float, **labels: str) -> None:
        """Set a gauge `tidegauge.<name>`."""
        _, _, values = self._gauges.setdefault(name, (unit, description, {}))
        values[attributes(**labels)] = float(value)

    def forget_gauge(self, name: str) -> None:
        """Take a gauge off the page, with all its series."""
        self._gauges.pop(name, None)

    def collect(self) -> tuple[Metric, ...]:
        """The counters and gauges as metrics, with `tidegauge.build`."""
        counters = [
            Metric(
                f"tidegauge.{name}",
                Kind.COUNTER,
                "{item}",
                description,
                tuple(Number(key, float(items)) for key, items in self._counts[name].items()),
                self._start_ns,
            )
            for name, description in COUNTERS.items()
            if self._counts[name]
        ]
        gauges = [
            Metric(
                f"tidegauge.{name}",
                Kind.GAUGE,
                unit,
                description,
                tuple(Number(key, value) for key, value in values.items()),
            )
            for name, (unit, description, values) in self._gauges.items()
        ]
        build = attributes(version=__version__, python=platform.python_version())
        info = Metric(
            "tidegauge.build_info", Kind.GAUGE, "", "The running build; always 1.", (Number(build, 1.0),)
        )
        return (*counters, *gauges, info)
