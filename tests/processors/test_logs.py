"""Log records, counted by identity and severity, against a plain count."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from tidegauge import config
from tidegauge.batch import Logs, Points
from tidegauge.identity import OVERFLOW
from tidegauge.metric import Attributes, Kind, Number
from tidegauge.processors.logs import LogRecords
from tidegauge.wire.attributes import Keys
from tidegauge.wire.counts import count_records
from tidegauge.wire.logs import scan
from tidegauge.wire.metrics import POINT

KEYS = Keys.of(config.IdentityAttributes(), config.Timings())
NAMES = ("trace", "debug", "info", "warn", "error", "fatal")


def batch(*records: tuple[str, int]) -> Logs:
    """A request of the records: the model that each names ("" for none) and its severity number."""
    request = ExportLogsServiceRequest()
    target = request.resource_logs.add().scope_logs.add().log_records
    for model, severity in records:
        record = target.add(severity_number=severity)  # type: ignore[arg-type]
        if model:
            record.attributes.add(key="model.name").value.string_value = model
    raw = request.SerializeToString()
    return Logs("otlp_grpc", raw, scan(raw, count_records(raw), KEYS))


def counts(logs: LogRecords) -> dict[Attributes, float]:
    (metric,) = logs.collect(0)
    return {point.attributes: point.value for point in metric.points if isinstance(point, Number)}


def key(model: str, severity: str) -> Attributes:
    return (("model", model), ("severity", severity))


def test_the_metric_s_name_unit_kind_and_start() -> None:
    (metric,) = LogRecords(config.Logs(), start_ns=5).collect(0)
    assert (metric.name, metric.unit, metric.kind, metric.start_ns, metric.points) == (
        "model.log.records",
        "{record}",
        Kind.COUNTER,
        5,
        (),
    )


def test_records_without_a_model_or_a_severity_count_too() -> None:
    logs = LogRecords(config.Logs())
    assert logs.update(batch(("fraud", 9), ("fraud", 12), ("", 24)), batch(("fraud", 13), ("", 0))) == {}
    assert counts(logs) == {
        key("fraud", "info"): 2,
        key("unknown", "fatal"): 1,
        key("fraud", "warn"): 1,
        key("unknown", "unspecified"): 1,
    }


def test_other_signals_are_ignored() -> None:
    logs = LogRecords(config.Logs())
    assert logs.update(Points("otlp_grpc", b"", np.zeros(3, POINT))) == {}
    assert counts(logs) == {}


def test_series_are_bounded_and_so_is_memory() -> None:
    logs = LogRecords(config.Logs(max_series=3))
    models = [f"m{number}" for number in range(500)]
    for order in (models, models[::-1]):
        logs.update(batch(*((model, 1) for model in order)))
    assert counts(logs) == {key(model, "trace"): 2 for model in models[:3]} | {OVERFLOW: 994}
    assert len(logs._table.entries) <= 64


@settings(deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from(["", "a", "b"]), st.integers(-2, 30)), max_size=6), max_size=4
    )
)
def test_every_record_is_counted_once(batches: list[list[tuple[str, int]]]) -> None:
    logs = LogRecords(config.Logs())
    logs.update(*(batch(*records) for records in batches))
    expected: Counter[Attributes] = Counter()
    for model, number in (record for records in batches for record in records):
        severity = NAMES[(number - 1) // 4] if 1 <= number <= 24 else "unspecified"
        expected[key(model or "unknown", severity)] += 1
    assert counts(logs) == expected
