"""Rules on the agent itself: is it there, does it fold, does it refuse, does it forward."""

from __future__ import annotations

from tidegauge.generate.plan import Plan, number
from tidegauge.generate.rule import Alert, Group, RuleFile

HEAD = """\
Alerts on the agent's own metrics. docs/runbooks has a page on each. They are made for a scrape every 15 s, and good
for up to one a minute; labels of the target (job, instance, pod, namespace) stay on them.
`promtool test rules tidegauge.test.yaml` tests them."""

_PRESENCE = (
    Alert(
        name="TidegaugeDown",
        expr="up == 0 and on (job, instance) last_over_time(tidegauge_build_info[1d])",
        wait="2m",
        severity="critical",
        summary="{{ $labels.instance }}: the agent cannot be scraped",
    ),
    Alert(
        name="TidegaugeRestarts",
        expr="max without (receiver, signal) (resets(tidegauge_received_total[1h])) > 2",
        severity="warning",
        summary="{{ $labels.instance }}: the agent began anew {{ $value }} times within an hour",
    ),
)

_FOLDING = (
    Alert(
        name="TidegaugeMiscounts",
        expr="""
            tidegauge_received_total
              - (tidegauge_accepted_total or 0 * tidegauge_received_total)
              - (sum without (reason) (tidegauge_rejected_total) or 0 * tidegauge_received_total)
              != 0
            or
            tidegauge_accepted_total
              - (tidegauge_folded_total or 0 * tidegauge_accepted_total)
              - (sum without (reason) (tidegauge_dropped_total) or 0 * tidegauge_accepted_total)
              - tidegauge_pending
              != 0
        """,
        wait="5m",
        severity="warning",
        summary="{{ $labels.instance }}: {{ $value }} items of {{ $labels.signal }} are unaccounted for",
    ),
    Alert(
        name="TidegaugeMiscountsForwarding",
        expr="""
            tidegauge_export_pending
              + (tidegauge_exported_total or 0 * tidegauge_export_pending)
              + (sum without (reason) (tidegauge_export_dropped_total) or 0 * tidegauge_export_pending)
              - (tidegauge_export_restored_total or 0 * tidegauge_export_pending)
              - ignoring (exporter, collector) group_left ()
            sum without (receiver) (tidegauge_accepted_total)
              != 0
        """,
        wait="5m",
        severity="warning",
        summary="{{ $labels.instance }}: {{ $value }} items of {{ $labels.signal }} are unaccounted for on their way to {{ $labels.collector }}",
    ),
    Alert(
        name="TidegaugeMemory",
        expr="tidegauge_memory_usage_bytes / (tidegauge_memory_limit_bytes > 0) > 0.9",
        wait="5m",
        severity="warning",
        summary="{{ $labels.instance }}: {{ $value | humanizePercentage }} of the container's memory is in use",
    ),
    Alert(
        name="TidegaugeQueueFilling",
        expr="tidegauge_queue_usage_bytes / tidegauge_queue_limit_bytes > 0.8",
        wait="2m",
        severity="warning",
        summary="{{ $labels.instance }}: folding does not keep up, the queue is at {{ $value | humanizePercentage }}",
    ),
    Alert(
        name="TidegaugeOverloaded",
        expr='rate(tidegauge_rejected_total{reason=~"queue_full|overload"}[5m]) > 0',
        wait="5m",
        severity="warning",
        summary="{{ $labels.instance }}: {{ $labels.signal }} are refused ({{ $labels.reason }})",
    ),
    Alert(
        name="TidegaugeSlowSenders",
        expr='rate(tidegauge_rejected_total{reason=~"slow|abandoned"}[5m]) > 0',
        wait="15m",
        severity="info",
        summary="{{ $labels.instance }}: messages of {{ $labels.signal }} do not come whole ({{ $labels.reason }})",
    ),
    Alert(
        name="TidegaugeUnusable",
        expr='rate(tidegauge_rejected_total{reason=~"too_large|undecodable|compressed|invalid"}[5m]) > 0',
        wait="5m",
        severity="warning",
        summary="{{ $labels.instance }}: a sender's {{ $labels.signal }} cannot be taken ({{ $labels.reason }})",
    ),
    Alert(
        name="TidegaugeFoldingFails",
        expr="""
            increase(tidegauge_dropped_total{reason="error"}[15m]) > 0
            or
            (tidegauge_dropped_total{reason="error"} unless tidegauge_dropped_total offset 15m) > 0
        """,
        severity="warning",
        summary="{{ $labels.instance }}: {{ $labels.signal }} could not be folded, the log says why",
    ),
    Alert(
        name="TidegaugeLeavesOut",
        expr="""
            sum without (reason) (rate(tidegauge_dropped_total{reason!~"error|shutdown|identity_limit|metric_limit|overflow"}[15m]))
              / rate(tidegauge_accepted_total[15m])
              > 0.01
        """,
        wait="15m",
        severity="info",
        summary="{{ $labels.instance }}: {{ $value | humanizePercentage }} of {{ $labels.signal }} are left out",
    ),
    Alert(
        name="TidegaugeAtLimit",
        expr="""
            label_replace(increase(tidegauge_latency_overflow_total[15m]) > 0, "limit", "latency.max_series", "", "")
            or
            label_replace(increase(tidegauge_timings_overflow_total[15m]) > 0, "limit", "latency.max_series (timings)", "", "")
            or
            label_replace(increase(tidegauge_metrics_overflow_total[15m]) > 0, "limit", "metrics.max_series", "", "")
            or
            label_replace(increase(model_log_records_total{otel_metric_overflow="true"}[15m]) > 0, "limit", "logs.max_series", "", "")
            or
            label_replace(increase(model_inference_stage_requests_total{otel_metric_overflow="true"}[15m]) > 0, "limit", "stages.max_series", "", "")
            or
            label_replace(increase(tidegauge_dropped_total{reason="identity_limit"}[15m]) > 0, "limit", "drift.max_identities", "", "")
            or
            label_replace(increase(tidegauge_dropped_total{reason="metric_limit"}[15m]) > 0, "limit", "metrics.max_metrics", "", "")
        """,
        severity="warning",
        summary="{{ $labels.instance }}: {{ $labels.limit }} is reached",
    ),
    Alert(
        name="TidegaugeTracesPassedOver",
        expr="""
            sum without (outcome) (rate(tidegauge_stages_spans_total{outcome=~"sampled|orphaned|too_large|too_long"}[15m]))
              / sum without (outcome) (rate(tidegauge_stages_spans_total[15m]))
              > 0.1
        """,
        wait="15m",
        severity="info",
        summary="{{ $labels.instance }}: {{ $value | humanizePercentage }} of spans are not in the stages of requests",
    ),
    Alert(
        name="TidegaugeCheckpointFails",
        expr="tidegauge_checkpoint_failing == 1",
        wait="5m",
        severity="warning",
        summary="{{ $labels.instance }}: the drift state cannot be written",
    ),
)

_CONFIGURATION = (
    Alert(
        name="TidegaugeConfigRefused",
        expr="tidegauge_config_last_reload_successful == 0",
        wait="5m",
        severity="warning",
        summary="{{ $labels.instance }}: the configuration was refused, the one before is in force",
    ),
    Alert(
        name="TidegaugeReloadFails",
        expr='tidegauge_reload_failing{setting!="config"} == 1',
        wait="5m",
        severity="warning",
        summary="{{ $labels.instance }}: the files of {{ $labels.setting }} will not do, those before are in force",
    ),
    Alert(
        name="TidegaugeDenied",
        expr="rate(tidegauge_denied_total[5m]) > 0",
        wait="10m",
        severity="warning",
        summary="{{ $labels.instance }}: somebody is turned away from {{ $labels.listener }} ({{ $labels.reason }})",
    ),
)

_FORWARDING = (
    Alert(
        name="TidegaugeCollectorAway",
        expr="""
            tidegauge_export_pending > 0
              and rate(tidegauge_export_retries_total[15m]) > 0
              unless rate(tidegauge_exported_total[5m]) > 0
        """,
        wait="5m",
        severity="warning",
        summary="{{ $labels.instance }}: collector {{ $labels.collector }} takes no {{ $labels.signal }}, {{ $value }} items wait",
    ),
    Alert(
        name="TidegaugeForwardingLoses",
        expr="""
            increase(tidegauge_export_dropped_total{exporter="forwarder"}[15m]) > 0
            or
            (tidegauge_export_dropped_total{exporter="forwarder"} unless tidegauge_export_dropped_total offset 15m) > 0
        """,
        severity="critical",
        summary="{{ $labels.instance }}: {{ $labels.signal }} for collector {{ $labels.collector }} are lost ({{ $labels.reason }})",
    ),
    Alert(
        name="TidegaugeQueueNearlyFull",
        expr="""
            tidegauge_export_disk_usage_bytes / (tidegauge_export_disk_limit_bytes > 0) > 0.8
            or
            (tidegauge_export_queue_usage_bytes / tidegauge_export_queue_limit_bytes > 0.8
              unless tidegauge_export_disk_limit_bytes > 0)
        """,
        wait="5m",
        severity="warning",
        summary="{{ $labels.instance }}: {{ $value | humanizePercentage }} of the queue for collector {{ $labels.collector }} is in use",
    ),
    Alert(
        name="TidegaugeDiskFails",
        expr="tidegauge_export_disk_failing == 1",
        wait="1m",
        severity="critical",
        summary="{{ $labels.instance }}: the disk queue of collector {{ $labels.collector }} cannot be written or read",
    ),
    Alert(
        name="TidegaugeUnsaved",
        expr="""
            increase(tidegauge_export_unsaved_total[15m]) > 0
            or
            (tidegauge_export_unsaved_total unless tidegauge_export_unsaved_total offset 15m) > 0
        """,
        severity="warning",
        summary="{{ $labels.instance }}: {{ $labels.signal }} were answered for and are not on disk",
    ),
    Alert(
        name="TidegaugePushFails",
        expr='rate(tidegauge_export_dropped_total{exporter!="forwarder",reason!="shutdown"}[5m]) > 0',
        wait="10m",
        severity="warning",
        summary="{{ $labels.instance }}: the agent's metrics do not reach the collector ({{ $labels.reason }})",
    ),
)


def rules(plan: Plan) -> RuleFile:
    """Groups of the agent, of its configuration and doors, and of its forwarding."""
    groups = (
        Group("tidegauge", (*_PRESENCE, _stale(plan), *_FOLDING)),
        Group("tidegauge-configuration", _CONFIGURATION),
        Group("tidegauge-forwarding", _FORWARDING),
    )
    return RuleFile(HEAD, groups)


def _stale(plan: Plan) -> Alert:
    return Alert(
        name="TidegaugeStale",
        expr=f"tidegauge_publication_age_seconds > {number(plan.stale_s)}",
        wait="1m",
        severity="critical",
        summary="{{ $labels.instance }}: statistics are {{ $value | humanizeDuration }} old",
    )
