"""Rules for GPUs: faults first, then what slows a model down."""

from __future__ import annotations

from tidegauge.generate.plan import Plan, number
from tidegauge.generate.rule import Alert, Group, RuleFile, rising

HEAD = """\
Alerts on GPUs. docs/runbooks has a page on each. `promtool test rules gpu.test.yaml` tests them."""

_NAMED = "{{ $labels.hw_name }} {{ $labels.hw_id }}"


def rules(plan: Plan) -> RuleFile:
    """One group."""
    alerts = (
        Alert(
            name="GpuLost",
            expr='hw_status{hw_state="failed"} == 1',
            wait="1m",
            severity="critical",
            summary=f"{_NAMED}: the driver has lost the GPU",
        ),
        Alert(
            name="GpuDegraded",
            expr='hw_status{hw_state="degraded"} == 1',
            wait="10m",
            severity="warning",
            summary=f"{_NAMED}: a reading of the GPU fails",
        ),
        Alert(
            name="GpuMemoryErrors",
            expr=rising('hw_errors_total{error_type="uncorrected"}'),
            severity="critical",
            summary=f"{_NAMED}: errors in the GPU's memory that ECC could not correct",
        ),
        Alert(
            name="GpuXidErrors",
            expr='increase(hw_gpu_xid_events_total{hw_gpu_xid_kind=~"memory|link|firmware"}[10m]) > 0',
            severity="warning",
            summary=f"{_NAMED}: the driver reports an error of its {{{{ $labels.hw_gpu_xid_kind }}}} (XID)",
        ),
        Alert(
            name="GpuResetDue",
            expr="hw_gpu_memory_remap_pending == 1 or hw_gpu_memory_retirement_pending == 1",
            wait="15m",
            severity="info",
            summary=f"{_NAMED}: memory is to be replaced by spare one, at the next reset",
        ),
        Alert(
            name="GpuReplacementDue",
            expr="hw_gpu_memory_remap_failed == 1",
            wait="1m",
            severity="critical",
            summary=f"{_NAMED}: memory could not be replaced by spare one",
        ),
        Alert(
            name="GpuHeldDown",
            expr="""
            max without (hw_gpu_clock_reason) (avg_over_time(
              hw_gpu_clock_held{hw_gpu_clock_reason=~"hardware_thermal|software_thermal|power_brake|hardware_slowdown"}[5m]
            )) > 0.1
            """,
            wait="10m",
            severity="warning",
            summary=f"{_NAMED}: heat or power holds its clocks down, {{{{ $value | humanizePercentage }}}} of the time",
        ),
        Alert(
            name="GpuHot",
            expr=f"hw_temperature_celsius > {number(plan.gpu_celsius)}",
            wait="10m",
            severity="warning",
            summary=f"{_NAMED}: {{{{ $value }}}} degrees",
        ),
        Alert(
            name="GpuMemoryFull",
            expr=f"hw_gpu_memory_usage_bytes / hw_gpu_memory_limit_bytes > {number(plan.gpu_memory)}",
            wait="15m",
            severity="warning",
            summary=f"{_NAMED}: {{{{ $value | humanizePercentage }}}} of the GPU's memory is in use",
        ),
    )
    return RuleFile(HEAD, (Group("gpu", alerts),))
