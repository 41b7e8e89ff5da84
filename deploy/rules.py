"""Writes deploy/rules as they come into a cluster: a PrometheusRule, and the Helm chart's copy.

    python3 deploy/rules.py

To be run when a file of deploy/rules has changed; a test fails until then.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
RULES = HERE / "rules"
MONITORING = HERE / "kustomize" / "components" / "monitoring" / "prometheusrule.yaml"
CHART = HERE / "helm" / "tidegauge" / "rules.yaml"

NOTE = "# Made by deploy/rules.py from deploy/rules, where the comments are.\n"


def groups() -> list[dict[str, Any]]:
    """The groups of every file of rules, those of tests left out."""
    files = sorted(path for path in RULES.glob("*.yaml") if not path.name.endswith(".test.yaml"))
    return [group for path in files for group in yaml.safe_load(path.read_text())["groups"]]


def written() -> dict[Path, str]:
    """What each file has to be."""
    custom = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "tidegauge"},
        "spec": {"groups": groups()},
    }
    return {MONITORING: NOTE + _dump(custom), CHART: NOTE + _dump({"groups": groups()})}


def _dump(tree: object) -> str:
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=110)


if __name__ == "__main__":
    for path, text in written().items():
        path.write_text(text)
