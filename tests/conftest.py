"""The agent as a process of its own, for tests that talk to it as users do."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, settings
from prometheus_client.parser import text_string_to_metric_families

# Machines are shared and noisy: how long an example takes says nothing.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

READY = re.compile(r"OTLP and Flight on \S+:(\d+), OTLP/HTTP on \S+:(\d+), /metrics on \S+:(\d+)")


class Agent:
    """A running `tidegauge run` on free ports."""

    def __init__(self, folder: Path, settings: dict, environ: dict[str, str]) -> None:
        folder.mkdir(exist_ok=True)
        self.log = folder / "agent.log"
        config = folder / "agent.yaml"
        config.write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "tidegauge", "run", "--config", str(config)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stderr=log, env=os.environ | environ)
        # A first start compiles all kernels, 40 s of a core.
        found = self._wait(lambda: READY.search(self.log.read_text()), 300)
        self.grpc, self.http, self.pages = (int(port) for port in found.groups())

    def _wait(self, condition, seconds=60.0):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := condition():
                return found
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        raise AssertionError(f"not in {seconds} s:\n{self.log.read_text()}")

    def page(self, path: str) -> tuple[int, str]:
        """Status and text of one of the agent's pages."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.pages}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def samples(self, name: str, **labels: str) -> dict[tuple[tuple[str, str], ...], float]:
        """The samples of that name on /metrics that carry `labels`, by their labels."""
        families = text_string_to_metric_families(self.page("/metrics")[1])
        return {
            tuple(sorted(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        }

    def total(self, name: str, **labels: str) -> float:
        """The sum of those samples."""
        return sum(self.samples(name, **labels).values())

    def await_total(self, wanted: float, name: str, **labels: str) -> None:
        """Wait until the sum is what is wanted."""
        self._wait(lambda: self.total(name, **labels) == wanted, 60)

    def stop(self) -> int:
        """End it as Kubernetes does; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


FREE_PORTS = {
    "receivers": {"grpc": {"endpoint": "127.0.0.1:0"}, "http": {"endpoint": "127.0.0.1:0"}},
    "exporters": {"prometheus": {"endpoint": "127.0.0.1:0"}},
    "pipeline": {"publish_interval": "200ms"},
}


@pytest.fixture
def start_agent(tmp_path):
    """Starts agents with settings laid over FREE_PORTS, and ends them after the test."""
    agents = []

    def start(environ=None, **settings):
        merged = {key: dict(value) for key, value in FREE_PORTS.items()}
        for key, value in settings.items():
            merged[key] = merged.get(key, {}) | value if isinstance(value, dict) else value
        agents.append(Agent(tmp_path / f"agent{len(agents)}", merged, environ or {}))
        return agents[-1]

    yield start
    for agent in agents:
        agent.stop()
