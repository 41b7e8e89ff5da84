"""Panels of a Grafana dashboard: what is asked, and how it is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

SOURCE = {"type": "prometheus", "uid": "${datasource}"}

Kind = Literal["timeseries", "stat", "table", "heatmap", "barchart", "state-timeline"]

_RED, _GREEN = "red", "green"


@dataclass(frozen=True, slots=True)
class Query:
    """A PromQL expression and what its series are called; `now` asks for one value, not for a range."""

    expr: str
    legend: str = ""
    now: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One drawing. `link` leads from a series to another dashboard; `limit` is a line, red above it.

    `width` is of 24, `height` in Grafana's rows. `columns` renames a table's, in their order; others go.
    """

    title: str
    queries: tuple[Query, ...]
    kind: Kind = "timeseries"
    unit: str = "short"
    width: int = 8
    height: int = 8
    about: str = ""
    limit: float | None = None
    at_most: float | None = None
    link: str = ""
    stacked: bool = False
    columns: tuple[tuple[str, str], ...] = ()

    def json(self, number: int, x: int, y: int) -> dict[str, Any]:
        """The panel of that number at that place."""
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.about,
            "datasource": SOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "targets": [
                _target(query, chr(ord("A") + place), self.kind) for place, query in enumerate(self.queries)
            ],
            "fieldConfig": {"defaults": self._field(), "overrides": []},
            "options": _OPTIONS[self.kind],
            **({"transformations": list(self._transformations())} if self.kind in _TABLES else {}),
        }

    def _field(self) -> dict[str, Any]:
        field: dict[str, Any] = {"unit": self.unit, "custom": {}}
        if self.kind == "timeseries":
            field["custom"] = {
                "lineWidth": 1,
                "fillOpacity": 10 if self.stacked else 0,
                "showPoints": "never",
            }
            if self.stacked:
                field["custom"]["stacking"] = {"mode": "normal", "group": "A"}
        if self.at_most is not None:
            field |= {"min": 0, "max": self.at_most}
        if self.limit is not None:
            steps = [{"color": _GREEN, "value": None}, {"color": _RED, "value": self.limit}]
            field["thresholds"] = {"mode": "absolute", "steps": steps}
            if self.kind == "timeseries":
                field["custom"]["thresholdsStyle"] = {"mode": "line"}
            else:
                field["color"] = {"mode": "thresholds"}
        if self.link:
            field["links"] = [{"title": "Look closer", "url": self.link}]
        return field

    def _transformations(self) -> Iterator[dict[str, Any]]:
        if self.kind == "barchart":
            yield {"id": "joinByField", "options": {"byField": self.columns[0][0], "mode": "outer"}}
        else:
            yield {"id": "merge", "options": {}}
        names = dict(self.columns)
        keep = {"names": [*names]}
        yield {"id": "filterFieldsByName", "options": {"include": keep}}
        order = {name: place for place, name in enumerate(names)}
        yield {"id": "organize", "options": {"indexByName": order, "renameByName": names}}


_TABLES = ("table", "barchart")

_LEGEND = {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"], "showLegend": True}
_OPTIONS: dict[Kind, dict[str, Any]] = {
    "timeseries": {"legend": _LEGEND, "tooltip": {"mode": "multi", "sort": "desc"}},
    "stat": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "area"},
    "table": {"showHeader": True, "sortBy": []},
    "heatmap": {"calculate": False, "yAxis": {"unit": "s"}, "color": {"scheme": "Blues"}},
    "barchart": {"orientation": "auto", "showValue": "never", "xTickLabelRotation": -45},
    "state-timeline": {"showValue": "never", "mergeValues": True, "legend": {"showLegend": True}},
}


def _target(query: Query, ref: str, kind: Kind) -> dict[str, Any]:
    form = "table" if kind in _TABLES else "heatmap" if kind == "heatmap" else "time_series"
    now = query.now or kind in _TABLES
    return {
        "refId": ref,
        "datasource": SOURCE,
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
        "format": form,
        "instant": now,
        "range": not now,
    }
