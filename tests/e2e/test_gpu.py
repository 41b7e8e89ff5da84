"""What a Prometheus makes of GPU metrics: each is there, and the queries of docs/gpu.md find something."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tidegauge.exporters.naming import metric_name
from tidegauge.scrapers.family import FAMILIES

pytestmark = pytest.mark.e2e

PAGE = Path(__file__).parents[2] / "docs" / "gpu.md"
QUERIES = re.findall(r"^```promql\n(.*?)^```$", PAGE.read_text(), re.S | re.M)
NOT_IN_THE_DEMO = {"hw.gpu.io.rate", "hw.gpu.xid.time"}
NEEDS_MORE = ("model_inference_latency", "hw_gpu_xid_time")
"""Queries with these find nothing in the demo, which serves no requests and has no faults."""


@pytest.fixture(scope="module")
def prometheus(
    start_agent: Callable[..., Any], start_prometheus: Callable[..., Any], until: Callable[..., Any]
) -> Any:
    models = [{"gpu": 0, "model": "fraud", "version": "2.1"}]
    agent = start_agent(scrapers={"nvml": {"demo": True, "interval": "1s", "models": models}})
    started = start_prometheus(agent.pages)
    until(lambda: started.api("query", query="hw_gpu_activity_ratio")["result"])
    until(lambda: started.api("query", query="rate(hw_energy_joules_total[1m])")["result"])
    return started


def test_every_metric_of_a_gpu_is_scraped(prometheus: Any) -> None:
    names = {
        metric_name(name, one.unit, one.kind) for name, one in FAMILIES.items() if name not in NOT_IN_THE_DEMO
    }
    found = {
        series["metric"]["__name__"]
        for series in prometheus.api("query", query='{__name__=~"hw_.+|tidegauge_gpu_.+",hw_name="demo"}')[
            "result"
        ]
    }
    assert found == names


@pytest.mark.parametrize("query", QUERIES, ids=range(len(QUERIES)))
def test_the_queries_of_the_page_find_what_they_are_for(prometheus: Any, query: str) -> None:
    prometheus.api("query", query=query)
    if not any(name in query for name in NEEDS_MORE):
        unconditional = re.sub(r"\s[<>]\s[\d.]+\s*$", "", query)
        assert prometheus.api("query", query=unconditional)["result"]


def test_memory_is_found_by_model(prometheus: Any) -> None:
    used = prometheus.query("max by (model) (hw_gpu_memory_utilization_ratio)", by="model")
    assert used.keys() == {"fraud"}
    assert 0 < used["fraud"] < 1
