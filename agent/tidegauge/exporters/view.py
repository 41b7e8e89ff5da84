"""A snapshot's metrics as the status page reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tidegauge.metric import Attributes, ExponentialHistogram, Metric, Number

_IDENTITY = ("model", "version", "stage", "data_source")


class View:
    """A snapshot's metrics by name: the agent's own, for a sender may call its own the same."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self.by_name = {metric.name: metric for metric in metrics if not metric.received}

    def histograms(self, *names: str) -> Iterator[tuple[Metric, ExponentialHistogram]]:
        """The exponential ones that have observations."""
        for metric in filter(None, map(self.by_name.get, names)):
            for point in metric.points:
                if isinstance(point, ExponentialHistogram) and point.count:
                    yield metric, point

    def numbers(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        """Attributes and value of each."""
        metric = self.by_name.get(name)
        for point in metric.points if metric else ():
            if isinstance(point, Number):
                yield dict(point.attributes), point.value

    def proper(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        """Those of `drift.window` against the reference, and not of what is judged besides."""
        for at, value in self.numbers(name):
            if at.keys().isdisjoint(("window", "baseline", "reference")):
                yield at, value


def identity_text(at: dict[str, str]) -> str:
    """Model, version, stage and data source, as far as there are any."""
    if at.get("otel_metric_overflow"):
        return "(over the limit)"
    return " ".join(at[key] for key in _IDENTITY if key in at)


def rest_text(attributes: Attributes) -> str:
    """All but these."""
    return all_text(tuple(pair for pair in attributes if pair[0] not in _IDENTITY))


def all_text(attributes: Attributes) -> str:
    """All attributes."""
    return ", ".join(f"{key}={value}" for key, value in attributes)
