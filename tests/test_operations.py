"""What operators go by holds: docs/operations.md has the alerts, reasons and log lines that there are."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tidegauge.generate.plan import Plan, Watched
from tidegauge.generate.rules import rule_files
from tidegauge.processors.series import Reason
from tidegauge.receivers.outcome import Verdict

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "operations.md").read_text()
RULES = ROOT / "deploy" / "rules"
RUNBOOKS = ROOT / "docs" / "runbooks"
FILES = sorted(path for path in RULES.glob("*.yaml") if not path.name.endswith(".test.yaml"))
FIRED = [
    test
    for path in sorted(RULES.glob("*.test.yaml"))
    for test in yaml.safe_load(path.read_text())["tests"]
    if "alert_rule_test" in test
]
GENERATED = rule_files(Plan(models=(Watched(model="fraud", version="2.1", features=("amount",)),)))
SILENT = [alert for alert in GENERATED["models"].alerts() if alert.name == "ModelSilent"]


def alerts() -> dict[str, list[Any]]:
    """The shipped alerts' rules by name."""
    found: dict[str, list[Any]] = {}
    for path in FILES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                if "alert" in rule:
                    found.setdefault(rule["alert"], []).append(rule)
    return found


def same(expression: str) -> str:
    return " ".join(expression.split())


def section(title: str) -> str:
    """The text below a heading, up to the next of its depth or less."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^(?!\1#)##|\Z)", PAGE, re.S | re.M)
    assert found is not None, title
    return found[2]


def queries(text: str) -> list[str]:
    return [same(body) for body in re.findall(r"^```promql\n(.*?)^```$", text, re.S | re.M)]


@pytest.mark.parametrize("name", alerts())
def test_each_alert_has_a_page_with_its_expressions(name: str) -> None:
    page = (RUNBOOKS / f"{name}.md").read_text()
    rules = alerts()[name]
    expressions = [same(rule["expr"]) for rule in rules]
    assert queries(page)[: len(rules)] == expressions
    assert page.startswith(f"# {name}\n")
    assert all(f"`{rule['labels']['severity']}`" in page.split("```")[0] for rule in rules)
    assert all(f"after {rule.get('for', '')}" in page for rule in rules if "for" in rule)


def test_what_is_generated_for_a_model_has_a_page_too() -> None:
    assert queries((RUNBOOKS / "ModelSilent.md").read_text()) == [SILENT[0].expr]


@pytest.mark.parametrize("page", sorted(RUNBOOKS.glob("*.md")), ids=lambda page: page.stem)
def test_each_page_says_what_it_means_what_to_look_at_and_what_to_do(page: Path) -> None:
    parts = re.split(r"^## (.+)$", page.read_text(), flags=re.M)
    assert parts[1::2] == ["What it means", "What to look at", "What to do"]
    assert all(len(part.split()) >= 3 for part in parts[2::2])
    assert page.stem in alerts() or page.stem == SILENT[0].name


def test_the_list_has_every_alert_with_its_severity() -> None:
    rows = re.findall(r"^\| \[(\w+)\]\(runbooks/(\w+)\.md\) \| ([\w, ]+) \|", section("Alerts"), re.M)
    listed = {name: severities.split(", ") for name, _, severities in rows}
    told = {
        name: list(dict.fromkeys(rule["labels"]["severity"] for rule in rules))
        for name, rules in alerts().items()
    }
    assert listed == told | {"ModelSilent": ["warning"]}
    assert all(name == page for name, page, _ in rows)


@pytest.mark.parametrize("name", alerts())
def test_each_alert_is_tested_to_fire_and_not_to(name: str) -> None:
    """`promtool` compares the whole list, so a time without alerts, or series without one, is a test too."""
    fires = [test for test in FIRED for one in test["alert_rule_test"] if one["alertname"] == name]
    looks = [one for test in fires for one in test["alert_rule_test"] if one["alertname"] == name]
    assert [one for one in looks if one.get("exp_alerts")]
    series = [one["series"] for test in fires for one in test["input_series"]]
    assert any('"well' in one for one in series) or [one for one in looks if not one.get("exp_alerts")]


def test_each_alert_says_how_grave_it_is_and_where_and_has_a_runbook() -> None:
    for name, rules in alerts().items():
        for rule in rules:
            assert rule["labels"]["severity"] in {"critical", "warning", "info"}, name
            assert "$labels." in rule["annotations"]["summary"], name
            assert (ROOT / rule["annotations"]["runbook_url"]) == RUNBOOKS / f"{name}.md"


def reasons(title: str) -> set[str]:
    rows = re.findall(r"^\| (`[^|]+) \|", section(title), re.M)
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)} - {"reason"}


def test_the_reasons_of_receivers_are_those_that_there_are() -> None:
    flight = (ROOT / "agent" / "tidegauge" / "receivers" / "flight.py").read_text()
    told = set(re.findall(r'Refusal\("(\w+)"', flight)) | set(Verdict) - {Verdict.ACCEPTED}
    assert reasons("What a receiver refuses") == told


def test_the_reasons_for_leaving_out_are_those_that_there_are() -> None:
    folder = ROOT / "agent" / "tidegauge" / "processors"
    text = "".join((folder / f"{name}.py").read_text() for name in ("latency", "drift/drift", "drift/window"))
    told = set(re.findall(r'["{ (]"(\w+)": (?:untimed|late|future|batch\.items|rest\.items)', text))
    told |= {"late", "future", "error", "shutdown"} | {reason.name.lower() for reason in Reason}
    assert reasons("What is accepted and left out") == told


def test_the_reasons_of_the_forwarder_are_those_that_there_are() -> None:
    forward = (ROOT / "agent" / "tidegauge" / "exporters" / "forward.py").read_text()
    told = set(re.findall(r'_drop\([^"]+"(\w+)"', forward)) | {"shutdown"}
    assert reasons("What a forwarder gives up") == told


def logged() -> set[str]:
    """Every message that the agent logs, with … for what differs."""
    found = set()
    for path in (ROOT / "agent").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="log")), args=[ast.Constant(value=str(text)), *_]
                ):
                    found.add(re.sub("…+", "…", re.sub(r"%[-.\d]*[a-z]", "…", text)))
    return found


def test_log_lines_are_as_they_are_written() -> None:
    named = re.findall(r"`([^`\n]+)`", section("The log").partition("|---")[2])
    lines = {text for text in named if " " in text or text == "stopped"}
    assert len(lines) >= 20
    assert sorted(lines - logged()) == []
