"""Formats by the headers that scrapers really send."""

from __future__ import annotations

import pytest

from tidegauge.exporters.exposition import Format
from tidegauge.exporters.negotiation import PROTOBUF_TYPE, TEXT_TYPE, accepts_gzip, negotiate

PROTOBUF = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
# As 3.5, 2.53 and 2.42 send them, without native histograms and with.
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROMETHEUS_3_NATIVE = (
    f"{PROTOBUF};q=0.6,application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)
PROMETHEUS_2_53_NATIVE = (
    f"{PROTOBUF};q=0.5,application/openmetrics-text;version=1.0.0;q=0.4,"
    "application/openmetrics-text;version=0.0.1;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)
PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_2_NATIVE = (
    f"{PROTOBUF},application/openmetrics-text;version=1.0.0;q=0.8,"
    "application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
OPENMETRICS_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping="
TEXT_1_TYPE = "text/plain; version=1.0.0; charset=utf-8; escaping="


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", TEXT_TYPE),
        ("*/*", TEXT_TYPE),
        ("text/html,application/xhtml+xml,*/*;q=0.8", TEXT_TYPE),
        ("text/plain;version=0.0.4", TEXT_TYPE),
        ("text/plain", TEXT_TYPE),
        ("text/*;q=0.9,application/openmetrics-text;q=0.1", TEXT_TYPE),
        ("text/plain;version=1.0.0;escaping=allow-utf-8", TEXT_1_TYPE + "allow-utf-8"),
        ("text/plain; version=1.0.0; escaping=values", TEXT_1_TYPE + "underscores"),
        ("text/plain;version=3.0.0", TEXT_TYPE),
        ("application/openmetrics-text", OPENMETRICS_TYPE + "underscores"),
        ('Application/OpenMetrics-Text; Version="1.0.0"', OPENMETRICS_TYPE + "underscores"),
        ("application/openmetrics-text;version=1.0.0;escaping=values", OPENMETRICS_TYPE + "underscores"),
        ("application/openmetrics-text;version=1.0.0;escaping=dots", OPENMETRICS_TYPE + "underscores"),
        (PROMETHEUS_3, OPENMETRICS_TYPE + "allow-utf-8"),
        (PROMETHEUS_2, OPENMETRICS_TYPE + "underscores"),
        (PROMETHEUS_3_NATIVE, PROTOBUF_TYPE),
        (PROMETHEUS_2_53_NATIVE, PROTOBUF_TYPE),
        (PROMETHEUS_2_NATIVE, PROTOBUF_TYPE),
        (
            "application/openmetrics-text;version=0.0.1",
            "application/openmetrics-text; version=0.0.1; charset=utf-8",
        ),
        ("application/openmetrics-text;version=2.0.0", TEXT_TYPE),
        ("text/plain;q=0.9,application/openmetrics-text;version=1.0.0;q=0.5", TEXT_TYPE),
        # of equal qualities the first
        (f"{PROTOBUF},application/openmetrics-text", PROTOBUF_TYPE),
        (f"application/openmetrics-text,{PROTOBUF}", OPENMETRICS_TYPE + "underscores"),
        # protobuf only as it is served: that message, delimited
        ("application/vnd.google.protobuf", TEXT_TYPE),
        (PROTOBUF.replace("delimited", "text"), TEXT_TYPE),
        (PROTOBUF.replace("MetricFamily", "Other"), TEXT_TYPE),
        ("application/openmetrics-text;version=1.0.0;q=0", TEXT_TYPE),
        ("application/openmetrics-text;version=1.0.0;q=nonsense", TEXT_TYPE),
        ("application/openmetrics-text;version=1.0.0;q=inf,text/plain", TEXT_TYPE),
        (";;,,=", TEXT_TYPE),
    ],
)
def test_negotiation(accept: str, expected: str) -> None:
    form, content_type = negotiate(accept)
    assert content_type == expected
    kinds = {"text/plain": Format.TEXT, "application/openmetrics-text": Format.OPENMETRICS}
    assert form is kinds.get(expected.partition(";")[0], Format.PROTOBUF)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", False),
        ("gzip", True),
        ("deflate, GZIP ;q=0.1", True),
        ("gzip;q=0", False),
        ("*", True),
        ("br", False),
    ],
)
def test_gzip_only_where_it_is_accepted(header: str, expected: bool) -> None:
    assert accepts_gzip(header) is expected
