"""The dashboard of the agents: what arrives, what becomes of it, and what it costs."""

from __future__ import annotations

from tidegauge.generate import marks
from tidegauge.generate.dashboard import Dashboard, Row, Variable, chosen
from tidegauge.generate.marks import RATE
from tidegauge.generate.panel import Panel, Query
from tidegauge.generate.plan import Plan


def board(plan: Plan) -> Dashboard:
    """Of all agents, or those chosen."""
    return Dashboard(
        uid=marks.AGENT,
        title="Tidegauge: agent",
        about="Items received, folded, refused and forwarded; queues, memory and checkpoints.",
        variables=(Variable(name="instance", series="tidegauge_build_info"),),
        annotations=(marks.alarms('instance=~"$instance",alertname=~"Tidegauge.+"'),),
        rows=(
            Row("State", _state(plan)),
            Row("What arrives, and what becomes of it", _items()),
            Row("Queues and memory", _memory()),
            Row("Forwarding", _forwarding()),
            Row("Configuration, files and doors", _configuration()),
        ),
    )


def _of(metric: str, more: str = "") -> str:
    return chosen(f"tidegauge_{metric}", "instance", more=more)


def _rate(metric: str, by: str, more: str = "") -> Query:
    legend = " ".join(f"{{{{{name}}}}}" for name in by.split(", "))
    return Query(f"sum by ({by}) (rate({_of(metric, more)}[{RATE}]))", legend)


def _state(plan: Plan) -> tuple[Panel, ...]:
    return (
        Panel(
            title="Builds",
            queries=(Query(f"count by (version, python) ({_of('build_info')})"),),
            kind="table",
            columns=(("version", "Version"), ("python", "Python"), ("Value", "Agents")),
        ),
        Panel(
            title="Age of statistics",
            queries=(Query(_of("publication_age_seconds"), "{{instance}}"),),
            unit="s",
            limit=plan.stale_s,
        ),
        Panel(
            title="Samples on the page",
            queries=(Query(f"scrape_samples_scraped and on (instance) {_of('build_info')}", "{{instance}}"),),
        ),
    )


def _items() -> tuple[Panel, ...]:
    return (
        Panel(title="Received", queries=(_rate("received_total", "signal, receiver"),), unit="cps"),
        Panel(title="Refused", queries=(_rate("rejected_total", "signal, reason"),), unit="cps"),
        Panel(title="Left out", queries=(_rate("dropped_total", "signal, reason"),), unit="cps"),
        Panel(
            title="Spans and their requests",
            queries=(_rate("stages_spans_total", "outcome"), Query(f"sum({_of('stages_held')})", "waiting")),
            unit="short",
            width=12,
        ),
        Panel(
            title="Beyond limits of series",
            queries=(
                Query(f"sum(rate({_of('latency_overflow_total')}[{RATE}]))", "latency"),
                Query(f"sum(rate({_of('timings_overflow_total')}[{RATE}]))", "timings"),
                Query(f"sum(rate({_of('metrics_overflow_total')}[{RATE}]))", "pushed metrics"),
            ),
            unit="cps",
            width=12,
        ),
    )


def _memory() -> tuple[Panel, ...]:
    return (
        Panel(
            title="Queue to the processors",
            queries=(
                Query(f"{_of('queue_usage_bytes')} / {_of('queue_limit_bytes')}", "{{instance}}"),
                Query(f"sum by (instance) ({_of('pending')})", "items {{instance}}"),
            ),
            unit="percentunit",
        ),
        Panel(
            title="Memory",
            queries=(
                Query(_of("memory_usage_bytes"), "{{instance}}"),
                Query(_of("memory_limit_bytes"), "limit {{instance}}"),
            ),
            unit="bytes",
        ),
        Panel(
            title="Age of the checkpoint",
            queries=(Query(f"time() - ({_of('checkpoint_time_seconds')} > 0)", "{{instance}}"),),
            unit="s",
            about="Of the drift state, with state_dir.",
        ),
    )


def _forwarding() -> tuple[Panel, ...]:
    return (
        Panel(title="Taken by collectors", queries=(_rate("exported_total", "exporter, collector, signal"),)),
        Panel(
            title="Waiting",
            queries=(
                Query(
                    f"sum by (collector, signal) ({_of('export_pending')})",
                    "{{collector}} {{signal}}",
                ),
            ),
        ),
        Panel(
            title="Tried again, and given up",
            queries=(
                _rate("export_retries_total", "collector, signal"),
                _rate("export_dropped_total", "exporter, reason"),
            ),
        ),
        Panel(
            title="Queues to collectors",
            queries=(
                Query(
                    f"{_of('export_queue_usage_bytes')} / {_of('export_queue_limit_bytes')}",
                    "memory {{collector}}",
                ),
                Query(
                    f"{_of('export_disk_usage_bytes')} / ({_of('export_disk_limit_bytes')} > 0)",
                    "disk {{collector}}",
                ),
            ),
            unit="percentunit",
            at_most=1,
            width=12,
        ),
        Panel(
            title="Disk fails",
            queries=(Query(_of("export_disk_failing"), "{{collector}} {{instance}}"),),
            kind="state-timeline",
            limit=1,
            width=12,
        ),
    )


def _configuration() -> tuple[Panel, ...]:
    return (
        Panel(
            title="Configurations in force",
            queries=(Query(f"count by (hash) ({_of('config_info')})"),),
            kind="table",
            columns=(("hash", "Hash, as `tidegauge check` tells it"), ("Value", "Agents")),
        ),
        Panel(
            title="Files that will not do",
            queries=(Query(_of("reload_failing"), "{{setting}} {{instance}}"),),
            kind="state-timeline",
            limit=1,
            about="What was before is in force. config is the configuration.",
        ),
        Panel(
            title="Turned away at the door", queries=(_rate("denied_total", "listener, reason"),), unit="cps"
        ),
    )
