"""What operators go by holds: docs/operations.md has the alerts, reasons and log lines that there are."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tidegauge.processors.series import Reason
from tidegauge.receivers.outcome import Verdict

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "operations.md").read_text()
RULES = ROOT / "deploy" / "rules"
FIRED = yaml.safe_load((RULES / "tidegauge.test.yaml").read_text())["tests"]


def alerts() -> dict[str, Any]:
    groups = yaml.safe_load((RULES / "tidegauge.yaml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def same(expression: str) -> str:
    return " ".join(expression.split())


def section(title: str) -> str:
    """The text below a heading, up to the next of its depth or less."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^(?!\1#)##|\Z)", PAGE, re.S | re.M)
    assert found is not None, title
    return found[2]


def queries(text: str) -> list[str]:
    return [same(body) for body in re.findall(r"^```promql\n(.*?)^```$", text, re.S | re.M)]


@pytest.mark.parametrize("name", [name for name in alerts() if name.startswith("Tidegauge")])
def test_each_alert_of_the_agents_is_explained_with_its_expression(name: str) -> None:
    text = section(name)
    assert queries(text)[0] == same(alerts()[name]["expr"])
    assert len(re.sub(r"```.*?```", "", text, flags=re.S).split()) > 10


def test_alerts_on_models_are_shown_with_their_expressions() -> None:
    others = [same(rule["expr"]) for name, rule in alerts().items() if not name.startswith("Tidegauge")]
    assert queries(section("Alerts on models and GPUs")) == others


def test_no_alert_is_explained_that_is_not_there() -> None:
    assert [name for name in re.findall(r"^### (Tidegauge\w+)$", PAGE, re.M) if name not in alerts()] == []


@pytest.mark.parametrize("name", alerts())
def test_each_alert_is_tested_to_fire_and_not_to(name: str) -> None:
    """In each test there are series that must not fire: `promtool` compares the whole list."""
    fires = [test for test in FIRED for one in test["alert_rule_test"] if one["alertname"] == name]
    expected = [
        one
        for test in fires
        for one in test["alert_rule_test"]
        if one["alertname"] == name and one.get("exp_alerts")
    ]
    assert expected
    assert any('"well' in series["series"] for test in fires for series in test["input_series"])


def test_each_alert_says_how_grave_it_is_and_where() -> None:
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}, name
        assert "$labels." in rule["annotations"]["summary"], name


def reasons(title: str) -> set[str]:
    rows = re.findall(r"^\| (`[^|]+) \|", section(title), re.M)
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)} - {"reason"}


def test_the_reasons_of_receivers_are_those_that_there_are() -> None:
    flight = (ROOT / "agent" / "tidegauge" / "receivers" / "flight.py").read_text()
    told = set(re.findall(r'Refusal\("(\w+)"', flight)) | set(Verdict) - {Verdict.ACCEPTED}
    assert reasons("What a receiver refuses") == told


def test_the_reasons_for_leaving_out_are_those_that_there_are() -> None:
    folder = ROOT / "agent" / "tidegauge" / "processors"
    text = "".join((folder / f"{name}.py").read_text() for name in ("latency", "drift", "window"))
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
