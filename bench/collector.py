"""The OpenTelemetry Collector as a process that does the agent's work on spans."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import yaml

from bench.process import Child, free_port, responds

_TOOLS = Path(__file__).parents[1] / "tests" / "e2e" / "tools.py"
COUNT = "traces_span_metrics_duration_seconds_count"
"""How many spans its histograms hold."""

VARIANTS: dict[str, tuple[str, ...]] = {
    "lean": (),
    # What the Collector's own documentation recommends for production, in this order.
    "batch": ("memory_limiter", "batch"),
}


class MissingError(Exception):
    """The Collector cannot be had, and why."""


def binary() -> tuple[Path, str]:
    """The Collector's binary and its version, from the cache that `make tools` fills.

    Raises:
        MissingError: with the reason.
    """
    listing = subprocess.run([sys.executable, str(_TOOLS), "--where"], check=True, capture_output=True)
    found = json.loads(listing.stdout)["collector"]
    if "missing" in found:
        raise MissingError(f"no OpenTelemetry Collector: {found['missing']}")
    return Path(found["path"], "otelcol-tidegauge"), found["version"]


class Collector(Child):
    """OTLP in over gRPC, span metrics on a Prometheus page, OTLP out to `sink_port`; no compression.

    Span metrics have the default dimensions (service, operation, kind, status) and the model's name
    and version, in explicit buckets, and are flushed as often as the agent publishes.
    """

    name = "collector"

    def __init__(self, program: Path, folder: Path, sink_port: int, variant: str) -> None:
        self.grpc, self.pages, self._health = free_port(), free_port(), free_port()
        path = folder / "collector.yaml"
        path.write_text(yaml.safe_dump(self._config(sink_port, VARIANTS[variant])))
        super().__init__([str(program), f"--config={path}"], folder)

    def _config(self, sink_port: int, processors: tuple[str, ...]) -> dict[str, Any]:
        limits = {"check_interval": "1s", "limit_mib": 512, "spike_limit_mib": 128}
        grpc = {"endpoint": f"127.0.0.1:{self.grpc}", "max_recv_msg_size_mib": 64}
        metrics = {
            "histogram": {"unit": "s", "explicit": {}},
            "dimensions": [{"name": "model.name"}, {"name": "model.version"}],
            "exclude_dimensions": ["collector.instance.id"],
            "metrics_flush_interval": "5s",
        }
        out = {
            "endpoint": f"127.0.0.1:{sink_port}",
            "tls": {"insecure": True},
            "compression": "none",
        }
        return {
            "receivers": {"otlp": {"protocols": {"grpc": grpc}}},
            "processors": {"memory_limiter": limits, "batch": {}},
            "connectors": {"span_metrics": metrics},
            "exporters": {"prometheus": {"endpoint": f"127.0.0.1:{self.pages}"}, "otlp_grpc": out},
            "service": {
                "pipelines": {
                    "traces": {
                        "receivers": ["otlp"],
                        "processors": list(processors),
                        "exporters": ["span_metrics", "otlp_grpc"],
                    },
                    "metrics": {"receivers": ["span_metrics"], "exporters": ["prometheus"]},
                },
                "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "warn"}},
            },
        }

    def ready(self) -> bool:
        return responds(f"http://127.0.0.1:{self.pages}/metrics")

    def text(self) -> str:
        """Its Prometheus page."""
        with urlopen(f"http://127.0.0.1:{self.pages}/metrics", timeout=60) as answer:
            return str(answer.read().decode())
