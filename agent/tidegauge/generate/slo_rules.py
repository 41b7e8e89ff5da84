"""Objectives for errors and latency, and alerts on how fast their budgets burn.

Several windows and burn rates, as "The Site Reliability Workbook" has them (chapter 5, "Alerting on SLOs",
table 5-8): a long window says that it matters, a short one that it still goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tidegauge.generate.plan import Plan, latency_bound, number
from tidegauge.generate.rule import Alert, Group, Record, Rule, RuleFile, Severity

HEAD = """\
Objectives: {errors} of requests answered without an error, {latency} of the answers within {seconds} s, over 30 days.
docs/runbooks has a page on each alert. `promtool test rules slo.test.yaml` tests them.

Rates of 5 minutes are recorded, and longer windows add them up: each request weighs the same, and no query
reads days of raw samples. Latency needs the classic buckets: with native histograms alone, set
`always_scrape_classic_histograms: true`."""

WHO = "model, version, stage"
_COUNT = "model_inference_latency_seconds_count"


class Burn(NamedTuple):
    """Budget spent at `rate` times the pace that would last 30 days, over both windows."""

    rate: float
    long: str
    short: str
    wait: str
    severity: Severity


BURNS = (
    Burn(14.4, "1h", "5m", "2m", "critical"),  # 2 % of the budget in the hour
    Burn(6, "6h", "30m", "15m", "critical"),  # 5 % in six
    Burn(3, "1d", "2h", "1h", "warning"),  # a tenth in a day
    Burn(1, "3d", "6h", "1h", "warning"),  # a tenth in three
)
WINDOWS = ("30m", "1h", "2h", "6h", "1d", "3d")


class Objective(NamedTuple):
    """Requests that count, and those of them that are bad, by the names of their recorded rates."""

    alert: str
    bad: str
    all: str
    share: float
    what: str


def rules(plan: Plan) -> RuleFile:
    """Recorded rates and ratios, and the alerts on them."""
    errors = Objective(
        "ErrorBudgetBurns",
        "inference_errors",
        "inference_requests",
        plan.error_objective,
        "of requests fail",
    )
    slow = Objective(
        "LatencyBudgetBurns",
        "inference_slow",
        "inference_answers",
        plan.latency_objective,
        f"of answers take longer than {latency_bound(plan.latency_s):.3g} s",
    )
    head = HEAD.format(
        errors=_percent(plan.error_objective),
        latency=_percent(plan.latency_objective),
        seconds=f"{latency_bound(plan.latency_s):.3g}",
    )
    groups = (
        Group("slo-rates", tuple(_rates(latency_bound(plan.latency_s)))),
        Group("slo-errors", (*_ratios(errors), *_burns(errors))),
        Group("slo-latency", (*_ratios(slow), *_burns(slow))),
        Group("latency", (_mean(plan),)),
    )
    return RuleFile(head, groups)


def _rates(bound_s: float) -> Iterator[Record]:
    yield Record(name="model:inference_requests:rate5m", expr=f"sum by ({WHO}) (rate({_COUNT}[5m]))")
    yield Record(
        name="model:inference_errors:rate5m",
        expr=f"""
        sum by ({WHO}) (rate({_COUNT}{{status="error"}}[5m]))
          or 0 * model:inference_requests:rate5m
        """,
        note="A model that never failed has no series of errors.",
    )
    yield Record(
        name="model:inference_answers:rate5m", expr=f'sum by ({WHO}) (rate({_COUNT}{{status="ok"}}[5m]))'
    )
    yield Record(
        name="model:inference_slow:rate5m",
        expr=f"""
        model:inference_answers:rate5m
          - sum by ({WHO}) (rate(model_inference_latency_seconds_bucket{{status="ok",{_le(bound_s)}}}[5m]))
        """,
    )


def _le(bound_s: float) -> str:
    """OpenMetrics writes 1.0 where the older text format has 1, and Prometheus 2 keeps what it reads."""
    return f'le=~"{bound_s:.0f}(\\\\.0)?"' if bound_s.is_integer() else f'le="{bound_s!r}"'


def _ratios(objective: Objective) -> Iterator[Record]:
    bad, every = f"model:{objective.bad}:rate5m", f"model:{objective.all}:rate5m"
    yield Record(name=f"model:{objective.bad}:ratio_rate5m", expr=f"{bad} / ({every} > 0)")
    for window in WINDOWS:
        yield Record(
            name=f"model:{objective.bad}:ratio_rate{window}",
            expr=f"sum_over_time({bad}[{window}]) / (sum_over_time({every}[{window}]) > 0)",
        )


def _burns(objective: Objective) -> Iterator[Alert]:
    for burn in BURNS:
        limit = number(burn.rate * (1 - objective.share))
        yield Alert(
            name=objective.alert,
            expr=f"""
            model:{objective.bad}:ratio_rate{burn.long} > {limit}
              and model:{objective.bad}:ratio_rate{burn.short} > {limit}
            """,
            wait=burn.wait,
            severity=burn.severity,
            labels=(("over", burn.long),),
            summary=(
                "{{ $labels.model }} {{ $labels.version }}: {{ $value | humanizePercentage }} "
                f"{objective.what}: at this pace a budget of 30 days lasts {30 / burn.rate:.2g}"
            ),
        )


def _mean(plan: Plan) -> Rule:
    rate = "rate(model_inference_latency_seconds_{}[5m])".format
    return Alert(
        name="InferenceSlow",
        expr=f"{rate('sum')} / {rate('count')} > {number(plan.mean_latency_s)}",
        wait="10m",
        severity="warning",
        summary=(
            "{{ $labels.model }} {{ $labels.version }}: {{ $labels.operation }} takes "
            '{{ $value | printf "%.2f" }} s on average'
        ),
    )


def _percent(share: float) -> str:
    return f"{number(100 * share)} %"
