"""What the status page says of models: their health, their drift, their slices."""

from __future__ import annotations

import math
from collections import defaultdict

from tidegauge.exporters.section import Row, count_text, figure_text, percent_text, section
from tidegauge.exporters.view import View, identity_text

_SCORES = ("psi", "mmd")
"""Statistics that are a column's score, which the verdict goes by."""


def health(view: View) -> str:
    """The Serving Health Index of each model with its parts, and what to look at first."""
    parts: defaultdict[str, list[str]] = defaultdict(list)
    for at, value in view.numbers("model.serving_health.part"):
        parts[identity_text(at)].append(f"{at['part']} {percent_text(value)}")
    causes: dict[str, tuple[float, str]] = {}
    for at, value in view.numbers("model.first_cause"):
        causes[identity_text(at)] = max(
            causes.get(identity_text(at), (0.0, "")), (value, f"{at['cause']} ({at['evidence']})")
        )
    rows = [
        (
            identity_text(at),
            ", ".join(parts[identity_text(at)]),
            causes.get(identity_text(at), (0.0, ""))[1],
            percent_text(value),
        )
        for at, value in view.numbers("model.serving_health")
    ]
    return section("Serving health", ("model", "parts", "look first at", "index"), rows, texts=3)


def drift(view: View) -> str:
    """One line for each column, what is in alarm first, and then what is drifted."""
    rows: list[tuple[int, float, Row]] = []
    for what, key in (("feature", "feature"), ("prediction", "output")):
        cells: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
        for column in ("drift.score", "window.rows", "missing", "drifted", "drift.alarm"):
            for at, value in view.proper(f"{what}.{column}"):
                cells[identity_text(at), at.get(key, "")][column] = value
        for at, value in view.proper(f"{what}.drift.p_value"):
            if at.get("statistic") in _SCORES:
                cells[identity_text(at), at.get(key, "")]["p"] = value
        for (identity, name), cell in cells.items():
            if not cell.keys() & {"drift.score", "window.rows"}:
                continue
            score = cell.get("drift.score", math.nan)
            verdict = _verdict(cell)
            row = (
                identity,
                name if what == "feature" else f"{name} (prediction)",
                verdict,
                figure_text(score),
                figure_text(cell.get("p", math.nan)),
                count_text(cell.get("window.rows", math.nan)),
                percent_text(cell.get("missing", math.nan)),
            )
            order = ("in alarm", "drifted").index(verdict) if verdict in ("in alarm", "drifted") else 2
            rows.append((order, -score if score == score else math.inf, row))
    rows.sort(key=lambda entry: entry[:2])
    header = ("model", "feature", "verdict", "score", "p-value", "rows", "missing")
    return section(
        "Drift",
        header,
        [row for _, _, row in rows],
        texts=3,
        empty="No rows were received yet.",
        ill=("in alarm", "drifted"),
    )


def _verdict(cell: dict[str, float]) -> str:
    if cell.get("drift.alarm"):
        return "in alarm"
    if cell.get("drifted"):
        return "drifted"
    return "steady" if "drift.score" in cell else "too few rows"


def together(view: View) -> str:
    """All features of a model at once."""
    aucs, usual = (
        {identity_text(at): value for at, value in view.numbers(name) if at["statistic"] == "domain_auc"}
        for name in ("model.drift.statistic", "model.drift.null_quantile")
    )
    rows = [
        (
            identity_text(at),
            "drifted" if value else "steady",
            figure_text(aucs.get(identity_text(at), math.nan)),
            figure_text(usual.get(identity_text(at), math.nan)),
        )
        for at, value in view.numbers("model.drifted")
    ]
    header = ("model", "verdict", "AUC", "without drift below, 95 %")
    return section("All features together", header, rows, texts=2, ill=("drifted",))


def slices(view: View) -> str:
    """How many columns of each slice are drifted, most first."""
    drifted = {
        (identity_text(at), at["slice"]): value for at, value in view.numbers("model.slice.drifted_columns")
    }
    found = [
        (drifted.get((identity_text(at), at["slice"]), 0.0), identity_text(at), at["slice"], value)
        for at, value in view.numbers("model.slice.rows")
    ]
    found.sort(key=lambda one: (-one[0], one[1:3]))
    rows = [
        (model, name, "drifted" if columns else "steady", count_text(columns), count_text(its_rows))
        for columns, model, name, its_rows in found
    ]
    header = ("model", "slice", "verdict", "drifted columns", "rows")
    return section("Slices", header, rows, texts=3, ill=("drifted",))
