"""Recording and alerting rules, and the rule files that Prometheus reads.

YAML is written here rather than by a library, which would lay out queries as it likes and lose what is
said of them.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

RUNBOOKS = "docs/runbooks"

Severity = Literal["critical", "warning", "info"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A query that Prometheus evaluates and keeps under a name."""

    name: str
    expr: str
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Alert:
    """A query that finds what somebody should know, once it has found it for as long as `wait`.

    `summary` and `description` are Prometheus' templates. `labels` come on top of the severity.
    """

    name: str
    expr: str
    severity: Severity
    summary: str
    wait: str = ""
    description: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    note: str = ""


Rule = Record | Alert


@dataclass(frozen=True, slots=True)
class Group:
    """Rules that are evaluated one after the other."""

    name: str
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class RuleFile:
    """Groups, and what stands above them."""

    head: str
    groups: tuple[Group, ...]

    def alerts(self) -> list[Alert]:
        """Those of all groups."""
        return [rule for group in self.groups for rule in group.rules if isinstance(rule, Alert)]

    def text(self, runbooks: str = RUNBOOKS) -> str:
        """The file for Prometheus; `runbooks` is the folder or URL below which each alert has its page."""
        return _comment(self.head) + _groups(self.groups, runbooks)

    def manifest(self, name: str, runbooks: str = RUNBOOKS) -> str:
        """The same as a PrometheusRule of the Prometheus operator."""
        head = ["apiVersion: monitoring.coreos.com/v1", "kind: PrometheusRule", "metadata:"]
        head += [f"  name: {name}", "  labels: {app.kubernetes.io/name: tidegauge}", "spec:\n"]
        return _comment(self.head) + "\n".join(head) + textwrap.indent(_groups(self.groups, runbooks), "  ")


def rising(series: str, over: str = "15m") -> str:
    """A counter that has grown, also where it came with its first value, where `increase` sees nothing.

    >>> print(rising("x_total", "5m"))
    increase(x_total[5m]) > 0
    or
    (x_total unless x_total offset 5m) > 0
    """
    return f"increase({series}[{over}]) > 0\nor\n({series} unless {series} offset {over}) > 0"


def matchers(pairs: Iterable[tuple[str, str]]) -> str:
    """A selector of equal labels; nothing where there are none.

    >>> matchers([("feature", 'say "hi"')]), matchers([])
    ('{feature="say \\\\"hi\\\\""}', '')
    """
    inside = ",".join(f"{name}={quoted(value)}" for name, value in pairs)
    return f"{{{inside}}}" if inside else ""


def quoted(text: str) -> str:
    """A string of PromQL, which has Go's escapes: JSON's are among them."""
    return json.dumps(text, ensure_ascii=False)


def _groups(groups: Sequence[Group], runbooks: str) -> str:
    return "groups:\n" + "\n".join(
        f"  - name: {group.name}\n    rules:\n" + "\n".join(_rule(rule, runbooks) for rule in group.rules)
        for group in groups
    )


def _rule(rule: Rule, runbooks: str) -> str:
    lines = ["# " + line for line in textwrap.wrap(rule.note, 103)]
    key = "record" if isinstance(rule, Record) else "alert"
    lines += [f"- {key}: {rule.name}", *_expression(inspect.cleandoc(rule.expr))]
    if isinstance(rule, Alert):
        labels = ", ".join(f"{name}: {_scalar(value)}" for name, value in _labels(rule))
        lines += [f"  for: {rule.wait}"] if rule.wait else []
        lines += [f"  labels: {{{labels}}}", "  annotations:", f"    summary: {_scalar(rule.summary)}"]
        lines += [f"    description: {_scalar(rule.description)}"] if rule.description else []
        lines.append(f"    runbook_url: {runbooks.rstrip('/')}/{rule.name}.md")
    return textwrap.indent("\n".join(lines) + "\n", " " * 6, lambda line: bool(line.strip()))


def _labels(alert: Alert) -> list[tuple[str, str]]:
    return [("severity", alert.severity), *alert.labels]


def _expression(text: str) -> list[str]:
    if "\n" in text:
        return ["  expr: |", *("    " + line for line in text.splitlines())]
    return [f"  expr: {_plain(text) or _scalar(text)}"]


def _plain(text: str) -> str:
    """The text itself, where YAML reads it as it stands."""
    return (
        text if re.match(r"[a-zA-Z]\w*[(:{ ]|\(", text) and not re.search(r": | #|[:\s]$|\s{2}", text) else ""
    )


def _scalar(text: str) -> str:
    return text if text in get_args(Severity) else json.dumps(text, ensure_ascii=False)


def _comment(text: str) -> str:
    return "".join(f"# {line}".rstrip() + "\n" for line in text.splitlines())
