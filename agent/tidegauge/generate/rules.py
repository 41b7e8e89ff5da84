"""All rule files."""

from __future__ import annotations

from tidegauge.generate import agent_rules, fleet_rules, gpu_rules, model_rules, slo_rules
from tidegauge.generate.plan import Plan
from tidegauge.generate.rule import RuleFile


def rule_files(plan: Plan) -> dict[str, RuleFile]:
    """Each by its name, without `.yaml`.

    Raises:
        ValueError: for an objective of latency that no bucket can tell.
    """
    return {
        "tidegauge": agent_rules.rules(plan),
        "models": model_rules.rules(plan),
        "slo": slo_rules.rules(plan),
        "gpu": gpu_rules.rules(plan),
        "fleet-drift": fleet_rules.rules(plan),
    }
