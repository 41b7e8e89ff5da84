"""What all dashboards mark in time, and how they choose models."""

from __future__ import annotations

from tidegauge.generate.dashboard import Annotation, Variable, chosen
from tidegauge.generate.plan import Plan

FLEET, MODEL, FEATURE, OUTPUT, GPU, AGENT = (
    f"tidegauge-{name}" for name in ("fleet", "model", "feature", "output", "gpu", "agent")
)
"""Where the dashboards are."""

RATE = "$__rate_interval"

_SEEN = "model_inference_latency_seconds_count|feature_window_rows|prediction_window_rows"


def models(plan: Plan) -> tuple[Variable, Variable]:
    """Model and version, as they are met; or those planned for."""
    names = tuple(dict.fromkeys(one.model for one in plan.models))
    versions = tuple(dict.fromkeys(one.version for one in plan.models if one.version))
    return (
        Variable(name="model", series=f'{{__name__=~"{_SEEN}"}}', values=names),
        Variable(name="version", series=f'{{__name__=~"{_SEEN}",model=~"$model"}}', values=versions),
    )


def of_model(metric: str, more: str = "") -> str:
    """A selector of the models chosen."""
    return chosen(metric, "model", "version", more=more)


def references() -> Annotation:
    """Marks when a model's reference is another one than two minutes before."""
    current = of_model("model_reference_info", 'state="current"')
    return Annotation(
        name="Reference switched",
        expr=f"{current} unless last_over_time({current}[10m] offset 2m)",
        text="{{model}} {{version}}: {{reference}}",
        color="purple",
    )


def alarms(selector: str = "") -> Annotation:
    """Marks while an alert of the rule files fires."""
    inside = ",".join(part for part in ('alertstate="firing"', selector) if part)
    return Annotation(
        name="Alert fires",
        expr=f"ALERTS{{{inside}}}",
        text="{{alertname}} {{model}} {{version}} {{feature}}{{output}}{{hw_id}} {{instance}}",
        color="red",
    )
