"""Names, units and labels against the table of the specification and the Collector's translator."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegauge.exporters.naming import labels, metric_name, unit_suffix
from tidegauge.metric import Kind

G, C, H, E = Kind.GAUGE, Kind.COUNTER, Kind.HISTOGRAM, Kind.EXPONENTIAL_HISTOGRAM


@pytest.mark.parametrize(
    ("name", "unit", "kind", "expected"),
    [
        ("model.inference.latency", "s", E, "model_inference_latency_seconds"),
        ("model.inference.latency", "s", H, "model_inference_latency_seconds"),
        ("feature.drift.score", "{score}", G, "feature_drift_score"),
        ("feature.missing", "1", G, "feature_missing_ratio"),
        ("feature.window.rows", "{row}", G, "feature_window_rows"),
        ("feature.drifted", "", G, "feature_drifted"),
        ("hw.gpu.utilization", "1", G, "hw_gpu_utilization_ratio"),
        ("hw.gpu.memory.usage", "By", G, "hw_gpu_memory_usage_bytes"),
        ("hw.temperature", "Cel", G, "hw_temperature_celsius"),
        ("hw.power", "W", G, "hw_power_watts"),
        ("hw.energy", "J", C, "hw_energy_joules_total"),
        ("hw.errors", "{error}", C, "hw_errors_total"),
        ("hw.gpu.clock", "Hz", G, "hw_gpu_clock_hertz"),
        ("tidegauge.received", "{item}", C, "tidegauge_received_total"),
        ("tidegauge.export.dropped", "{item}", C, "tidegauge_export_dropped_total"),
        # no suffix twice, and the type's comes last
        ("latency_seconds", "s", G, "latency_seconds"),
        ("requests_total", "", C, "requests_total"),
        ("bytes.total", "By", C, "bytes_total"),
        ("sent.total", "By", C, "sent_bytes_total"),
        ("missing.ratio", "1", G, "missing_ratio"),
        # a count of unit 1 is not a ratio
        ("requests", "1", C, "requests_total"),
        ("disk.io", "By/s", G, "disk_io_bytes_per_second"),
        ("rows", "{row}/s", G, "rows_per_second"),
        ("speed", "m/s", G, "speed_meters_per_second"),
        ("load", "%", G, "load_percent"),
        ("strange", "furlong", G, "strange_furlong"),
        # characters
        ("a..b--c__d", "", G, "a_b_c_d"),
        ("0day", "", G, "_0day"),
        ("température", "", G, "temp_rature"),
        ("ns:name", "", G, "ns:name"),
        ("", "", G, "_"),
        ("_total", "", C, "__total"),
    ],
)
def test_name(name: str, unit: str, kind: Kind, expected: str) -> None:
    assert metric_name(name, unit, kind) == expected


@pytest.mark.parametrize(
    ("unit", "expected"),
    [("d", "days"), ("min", "minutes"), ("ms", "milliseconds"), ("KiBy", "kibibytes"), ("{a}", ""), ("", "")],
)
def test_unit(unit: str, expected: str) -> None:
    assert unit_suffix(unit, G) == expected


@given(st.text(), st.text(max_size=6), st.sampled_from(Kind))
def test_every_name_is_valid(name: str, unit: str, kind: Kind) -> None:
    found = metric_name(name, unit, kind)
    assert re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", found)
    assert not found.endswith("_total_total")
    assert (kind is not C) or found.endswith("_total")


@given(st.lists(st.tuples(st.text(), st.text(st.characters(codec=None)))))
def test_every_label_is_valid_and_no_value_is_lost(pairs: list[tuple[str, str]]) -> None:
    found = labels(tuple(pairs))
    for key, value in found.items():
        assert re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", key)
        assert not key.startswith("__")
        value.encode()
    given_length = sum(len(value) for _, value in pairs)
    joined = sum(1 for _, value in pairs if value) - len(found)
    assert sum(map(len, found.values())) == given_length + joined


def test_colliding_keys_are_joined_in_the_order_of_the_keys() -> None:
    assert labels((("b_c", "2"), ("a", "x"), ("b.c", "1"))) == {"a": "x", "b_c": "1;2"}


def test_empty_values_are_absent() -> None:
    assert labels((("stage", ""), ("model", "m"))) == {"model": "m"}


def test_surrogates_cannot_break_the_page() -> None:
    assert labels((("a", "x\ud800y"),)) == {"a": "x?y"}
