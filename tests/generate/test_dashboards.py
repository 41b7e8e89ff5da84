"""Dashboards: the shipped ones are what is generated, panels do not overlap, links lead to dashboards."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tidegauge.generate.dashboards import dashboards
from tidegauge.generate.plan import Plan, Watched

SHIPPED = Path(__file__).parents[2] / "deploy" / "grafana"
MADE = {name: json.loads(one.text()) for name, one in dashboards(Plan()).items()}

each = pytest.mark.parametrize("name", MADE)


def test_the_shipped_dashboards_are_those_of_the_defaults() -> None:
    assert {path.stem: path.read_text() for path in SHIPPED.glob("*.json")} == {
        name: one.text() for name, one in dashboards(Plan()).items()
    }


def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
    place = panel["gridPos"]
    columns = range(place["x"], place["x"] + place["w"])
    return set(itertools.product(columns, range(place["y"], place["y"] + place["h"])))


@each
def test_panels_have_numbers_of_their_own_and_do_not_overlap(name: str) -> None:
    panels = MADE[name]["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 8
    covered = [cell for panel in panels for cell in cells(panel)]
    assert len(set(covered)) == len(covered)
    assert max(x for x, _ in covered) == 23


@each
def test_links_lead_to_dashboards_and_set_variables_that_they_have(name: str) -> None:
    variables = {one["uid"]: {each["name"] for each in one["templating"]["list"]} for one in MADE.values()}
    links = re.findall(r'"url": "/d/([\w-]+)\?([^"]*)"', json.dumps(MADE[name]))
    assert all(set(re.findall(r"var-(\w+)=", words)) <= variables[uid] for uid, words in links)
    assert bool(links) == (name in {"fleet", "model"})


@each
def test_variables_that_are_asked_for_are_there(name: str) -> None:
    tree = MADE[name]
    asked = set(re.findall(r"\$(\w+)", json.dumps([tree["panels"], tree["annotations"], tree["templating"]])))
    there = {one["name"] for one in tree["templating"]["list"]}
    assert {one for one in asked if not one.startswith("_")} <= there
    assert there - {"datasource"} <= asked


@each
def test_alarms_are_marked_and_of_models_the_switch_of_a_reference(name: str) -> None:
    marks = [one["name"] for one in MADE[name]["annotations"]["list"]]
    models = ["Reference switched"] if name not in {"gpu", "agent"} else []
    assert marks == [*models, "Alert fires"]


def test_models_and_columns_that_are_planned_for_can_be_chosen_before_rows_come() -> None:
    plan = Plan(models=(Watched(model="a,b", version="1", features=("x", "y"), outputs=("score",)),))
    trees = {name: json.loads(one.text()) for name, one in dashboards(plan).items()}
    chosen = {
        one["name"]: one["query"]
        for name in ("feature", "output")
        for one in trees[name]["templating"]["list"]
        if one["type"] == "custom"
    }
    assert chosen == {"model": "a\\,b", "version": "1", "feature": "x,y", "output": "score"}


def test_lines_are_drawn_at_the_plans_thresholds() -> None:
    text = "".join(one.text() for one in dashboards(Plan(psi=0.234, gpu_celsius=71.0, stale_s=93.0)).values())
    for value in (0.234, 71.0, 93.0):
        assert f'"value": {value}\n' in text
