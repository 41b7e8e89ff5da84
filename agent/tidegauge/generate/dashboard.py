"""A Grafana dashboard: panels in rows, what can be chosen, and what is marked in time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tidegauge.generate.panel import SOURCE, Panel

SCHEMA = 39
"""Grafana 10.4 and later read it as it is, and later ones bring it up themselves."""
TAG = "tidegauge"
_WIDTH = 24
_ROW = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Variable:
    """What can be chosen: the values of a label that some series have, or those given."""

    name: str
    series: str
    label: str = ""
    title: str = ""
    several: bool = True
    values: tuple[str, ...] = ()

    def json(self) -> dict[str, Any]:
        """Its entry; all values are chosen at first where several can be, and a missing label counts."""
        common = {"name": self.name, "label": self.title or self.name, "multi": self.several}
        everything = {"includeAll": self.several, "allValue": ".*"} if self.several else {"includeAll": False}
        if self.several:
            common["current"] = {"text": ["All"], "value": ["$__all"]}
        if self.values:
            options = ",".join(value.replace(",", "\\,") for value in self.values)
            return common | everything | {"type": "custom", "query": options}
        query = self.query()
        return {
            **common,
            **everything,
            "type": "query",
            "datasource": SOURCE,
            "definition": query,
            "query": {"query": query, "refId": self.name},
            "refresh": 2,
            "sort": 1,
        }

    def query(self) -> str:
        """As Grafana asks a Prometheus."""
        return f"label_values({self.series}, {self.label or self.name})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotation:
    """Marks the times at which an expression has a value."""

    name: str
    expr: str
    text: str
    color: str

    def json(self) -> dict[str, Any]:
        """Its entry."""
        return {
            "name": self.name,
            "datasource": SOURCE,
            "enable": True,
            "expr": self.expr,
            "iconColor": self.color,
            "titleFormat": self.name,
            "textFormat": self.text,
            "step": "60s",
        }


@dataclass(frozen=True, slots=True)
class Row:
    """A heading and the panels below it, from left to right."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Dashboard:
    """One dashboard, at /d/UID."""

    uid: str
    title: str
    about: str
    variables: tuple[Variable, ...]
    annotations: tuple[Annotation, ...]
    rows: tuple[Row, ...]

    def text(self) -> str:
        """JSON that Grafana imports, or takes from a provisioned folder."""
        source = {"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus"}
        others = {
            "type": "dashboards",
            "title": "Tidegauge",
            "tags": [TAG],
            "asDropdown": True,
            "includeVars": True,
            "keepTime": True,
        }
        tree = {
            "uid": self.uid,
            "title": self.title,
            "description": self.about,
            "tags": [TAG],
            "schemaVersion": SCHEMA,
            "editable": True,
            "refresh": "30s",
            "time": {"from": "now-6h", "to": "now"},
            "links": [others],
            "templating": {"list": [source, *(one.json() for one in self.variables)]},
            "annotations": {"list": [one.json() for one in self.annotations]},
            "panels": list(self._panels()),
        }
        return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"

    def panels(self) -> list[Panel]:
        """Those of all rows."""
        return [panel for row in self.rows for panel in row.panels]

    def _panels(self) -> Iterator[dict[str, Any]]:
        number, y = 1, 0
        for row in self.rows:
            place = {"x": 0, "y": y, "w": _WIDTH, "h": _ROW}
            yield {"id": number, "type": "row", "title": row.title, "collapsed": False, "gridPos": place}
            number, x, y, tallest = number + 1, 0, y + _ROW, 0
            for panel in row.panels:
                if x + panel.width > _WIDTH:
                    x, y, tallest = 0, y + tallest, 0
                yield panel.json(number, x, y)
                number, x, tallest = number + 1, x + panel.width, max(tallest, panel.height)
            y += tallest


def link(uid: str, **variables: str) -> str:
    """Where a series leads: a dashboard with variables set from its labels.

    >>> link("tidegauge-model", model="model")
    '/d/tidegauge-model?${__url_time_range}&${datasource:queryparam}&var-model=${__field.labels.model}'
    """
    chosen = "".join(f"&var-{name}=${{__field.labels.{label}}}" for name, label in variables.items())
    return f"/d/{uid}?${{__url_time_range}}&${{datasource:queryparam}}{chosen}"


def chosen(metric: str, *names: str, more: str = "") -> str:
    """A selector of what is chosen in the variables of these names.

    >>> chosen("hw_status", "hw_id", more='hw_state="ok"')
    'hw_status{hw_id=~"$hw_id",hw_state="ok"}'
    """
    inside = [f'{name}=~"${name}"' for name in names]
    return f"{metric}{{{','.join([*inside, more] if more else inside)}}}"
