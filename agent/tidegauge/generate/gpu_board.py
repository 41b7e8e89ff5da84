"""The dashboard of GPUs, with the latency of what runs beside them."""

from __future__ import annotations

from tidegauge.generate import marks
from tidegauge.generate.dashboard import Dashboard, Row, Variable, chosen
from tidegauge.generate.marks import RATE
from tidegauge.generate.panel import Panel, Query
from tidegauge.generate.plan import Plan

_NAMED = "{{hw_name}} {{hw_id}}"


def board(plan: Plan) -> Dashboard:
    """Of all GPUs that agents see."""
    variables = (
        Variable(name="instance", series="hw_status"),
        Variable(name="hw_id", series='hw_status{instance=~"$instance"}', title="GPU"),
    )
    return Dashboard(
        uid=marks.GPU,
        title="Tidegauge: GPU",
        about="What NVML tells of each GPU, and how requests fare on the same instance.",
        variables=variables,
        annotations=(marks.alarms('hw_id=~"$hw_id"'),),
        rows=(
            Row("State", _state(plan)),
            Row("Load", _load(plan)),
            Row("Inside", _activity()),
            Row("Power and clocks", _power(plan)),
            Row("Requests beside it", _requests()),
        ),
    )


def _of(metric: str, more: str = "") -> str:
    return chosen(metric, "instance", "hw_id", more=more)


def _state(plan: Plan) -> tuple[Panel, ...]:
    xids = _of("hw_gpu_xid_events_total")
    return (
        Panel(
            title="State",
            queries=(Query(f"{_of('hw_status')} == 1", f"{{{{hw_state}}}} {_NAMED}"),),
            kind="state-timeline",
            width=12,
        ),
        Panel(
            title="Memory errors and XIDs",
            queries=(
                Query(
                    f"sum by (hw_name, hw_id, error_type) (increase({_of('hw_errors_total')}[{RATE}]))",
                    f"{{{{error_type}}}} {_NAMED}",
                ),
                Query(
                    f"sum by (hw_name, hw_id, hw_gpu_xid_kind) (increase({xids}[{RATE}]))",
                    f"XID, {{{{hw_gpu_xid_kind}}}} {_NAMED}",
                ),
            ),
            width=12,
        ),
        Panel(
            title="Why clocks are held down",
            queries=(Query(_of("hw_gpu_clock_held"), f"{{{{hw_gpu_clock_reason}}}} {_NAMED}"),),
            kind="state-timeline",
            limit=1,
            width=12,
        ),
        Panel(
            title="Rows replaced, and waiting for a reset",
            queries=(
                Query(_of("hw_gpu_memory_remapped_rows"), f"{{{{error_type}}}} {_NAMED}"),
                Query(_of("hw_gpu_memory_remap_pending"), f"waiting {_NAMED}"),
            ),
            width=12,
        ),
    )


def _load(plan: Plan) -> tuple[Panel, ...]:
    memory = f"{_of('hw_gpu_memory_usage_bytes')} / {_of('hw_gpu_memory_limit_bytes')}"
    return (
        Panel(
            title="Utilisation",
            queries=(Query(_of("hw_gpu_utilization_ratio"), f"{{{{hw_gpu_task}}}} {_NAMED}"),),
            unit="percentunit",
            at_most=1,
        ),
        Panel(
            title="Memory in use",
            queries=(Query(_of("hw_gpu_memory_usage_bytes"), _NAMED),),
            unit="bytes",
        ),
        Panel(
            title="Memory, share",
            queries=(Query(memory, _NAMED),),
            unit="percentunit",
            at_most=1,
            limit=plan.gpu_memory,
        ),
    )


def _activity() -> tuple[Panel, ...]:
    return (
        Panel(
            title="Activity of units",
            queries=(
                Query(_of("hw_gpu_activity_ratio"), f"{{{{hw_gpu_unit}}}} {_NAMED}"),
                Query(_of("hw_gpu_sm_occupancy_ratio"), f"SM occupancy {_NAMED}"),
            ),
            unit="percentunit",
            at_most=1,
            about="Hopper and newer.",
        ),
        Panel(
            title="PCIe and NVLink",
            queries=(
                Query(
                    f"rate({_of('hw_gpu_io_bytes_total')}[{RATE}])",
                    f"{{{{hw_gpu_link}}}} {{{{network_io_direction}}}} {_NAMED}",
                ),
            ),
            unit="Bps",
        ),
        Panel(
            title="Memory of processes",
            queries=(
                Query(
                    _of("hw_gpu_process_memory_usage_bytes"),
                    "{{process_executable_name}} {{process_pid}} {{model}}",
                ),
            ),
            unit="bytes",
        ),
    )


def _power(plan: Plan) -> tuple[Panel, ...]:
    return (
        Panel(
            title="Temperature",
            queries=(Query(_of("hw_temperature_celsius"), _NAMED),),
            unit="celsius",
            limit=plan.gpu_celsius,
        ),
        Panel(
            title="Power",
            queries=(
                Query(_of("hw_power_watts"), _NAMED),
                Query(f"rate({_of('hw_energy_joules_total')}[{RATE}])", f"from energy {_NAMED}"),
            ),
            unit="watt",
        ),
        Panel(
            title="Clocks",
            queries=(Query(_of("hw_gpu_clock_hertz"), f"{{{{hw_gpu_clock_domain}}}} {_NAMED}"),),
            unit="hertz",
        ),
    )


def _requests() -> tuple[Panel, ...]:
    on = chosen("model_inference_latency_seconds_{}", "instance")
    buckets, count = on.replace("{}", "bucket"), on.replace("{}", "count")
    return (
        Panel(
            title="p99 of requests",
            queries=(
                Query(
                    f"histogram_quantile(0.99, sum by (instance, model, le) (rate({buckets}[{RATE}])))",
                    "{{model}} {{instance}}",
                ),
            ),
            unit="s",
            width=12,
        ),
        Panel(
            title="Joules per request",
            queries=(
                Query(
                    f"sum by (instance) (rate({_of('hw_energy_joules_total')}[{RATE}]))"
                    f" / sum by (instance) (rate({count}[{RATE}]))",
                    "{{instance}}",
                ),
            ),
            unit="joule",
            width=12,
        ),
    )
