"""Real processes for the e2e tests: the agent, a Prometheus, an OpenTelemetry Collector.

Each listens on loopback, on a port that was free, keeps its log, and is ended by its process id.
The logs of what is running are shown beneath a failure.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
import yaml
from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

T = TypeVar("T")
TOOLS = Path(__file__).with_name("tools.py")
STOP_S = 20.0
REQUESTS: dict[str, type[Message]] = {
    "traces": ExportTraceServiceRequest,
    "metrics": ExportMetricsServiceRequest,
    "logs": ExportLogsServiceRequest,
}


def until(condition: Callable[[], T], within_s: float = 30.0) -> T:
    """The first true value of `condition`, asked ten times a second; fails when none comes."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        for process in Process.running:
            process.check()
        assert time.monotonic() < deadline, f"not within {within_s:g} s: the last value was {value!r}"
        time.sleep(0.1)
    return value


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def get(url: str, headers: dict[str, str] | None = None) -> str:
    with urlopen(Request(url, headers=headers or {}), timeout=10) as answer:
        return str(answer.read().decode())


def responds(url: str) -> bool:
    try:
        get(url)
    except (URLError, ConnectionError, TimeoutError):  # nothing listens yet, or it answers 503
        return False
    return True


class Process:
    """A child with its own folder, where its log lies."""

    running: ClassVar[list[Process]] = []

    def __init__(
        self, name: str, command: list[str], folder: Path, environ: dict[str, str] | None = None
    ) -> None:
        self.name = name
        self._command = command
        self._environ = os.environ | (environ or {})
        self._log = folder / f"{name}.log"
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environ,
            )
        self.running.append(self)

    def check(self) -> None:
        """Fail where it has ended by itself."""
        assert self._child is not None
        status = self._child.poll()
        assert status is None, f"{self.name} ended with status {status}"

    def end(self) -> int:
        """Ask it to stop, wait for it, and return its exit status; killed where it does not stop."""
        if self._child is None:
            return 0  # never started
        if self in self.running:
            self.running.remove(self)
            self._child.terminate()
        try:
            return self._child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
            raise AssertionError(f"{self.name} did not stop in {STOP_S:g} s\n{self.log()}") from None

    def kill(self) -> None:
        """End it as the kernel's out-of-memory killer does: SIGKILL, at once."""
        assert self._child is not None
        self.running.remove(self)
        self._child.kill()
        self._child.wait()
        self._child = None

    def log(self) -> str:
        """The end of what it wrote."""
        return self._log.read_text(errors="replace")[-6000:]


class Agent(Process):
    """`python -m tidegauge run`, publishing twice a second; `settings` are merged over that."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.grpc, self.http, self.pages = free_port(), free_port(), free_port()
        config = {
            "receivers": {
                "grpc": {"endpoint": f"127.0.0.1:{self.grpc}"},
                "http": {"endpoint": f"127.0.0.1:{self.http}"},
            },
            "pipeline": {"publish_interval": "500ms"},
            **settings,
        }
        exporters = {"prometheus": {"endpoint": f"127.0.0.1:{self.pages}"}}
        config["exporters"] = exporters | settings.get("exporters", {})
        path = folder / "agent.yaml"
        path.write_text(yaml.safe_dump(config))
        super().__init__("agent", [sys.executable, "-m", "tidegauge", "run", "--config", str(path)], folder)

    def start(self) -> None:
        super().start()
        # The first start in a fresh checkout compiles the kernels: a minute, and more on a busy machine.
        until(lambda: responds(f"http://127.0.0.1:{self.pages}/readyz"), 300)

    def text(self, accept: str = "text/plain") -> str:
        return get(f"http://127.0.0.1:{self.pages}/metrics", {"Accept": accept})

    def total(self, sample: str, **labels: str) -> float:
        """The sum of a sample's series on /metrics that carry `labels`."""
        return sum(
            found.value
            for family in text_string_to_metric_families(self.text())
            for found in family.samples
            if found.name == sample and labels.items() <= found.labels.items()
        )

    def reaches(self, value: float, sample: str, **labels: str) -> None:
        """Wait until `total` is `value`."""
        until(lambda: self.total(sample, **labels) == value)


class Prometheus(Process):
    """A Prometheus that scrapes its targets every second, with some feature flags and files of rules."""

    def __init__(
        self,
        binary: Path,
        folder: Path,
        target_port: int,
        *features: str,
        rules: Iterable[Path] = (),
        options: Iterable[str] = (),
        replicas: Iterable[int] = (),
    ) -> None:
        self.port = free_port()
        targets = [f"127.0.0.1:{port}" for port in (target_port, *replicas)]
        scrape = {"job_name": "tidegauge", "static_configs": [{"targets": targets}]}
        timing = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        config = folder / "prometheus.yml"
        settings = {"global": timing, "rule_files": list(map(str, rules)), "scrape_configs": [scrape]}
        config.write_text(yaml.safe_dump(settings))
        command = [
            str(binary),
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            *([f"--enable-feature={','.join(features)}"] if features else []),
            *options,
        ]
        super().__init__("prometheus", command, folder)

    def start(self) -> None:
        super().start()
        until(lambda: responds(f"http://127.0.0.1:{self.port}/-/ready"))

    def api(self, path: str, **parameters: str) -> Any:
        answer = json.loads(get(f"http://127.0.0.1:{self.port}/api/v1/{path}?{urlencode(parameters)}"))
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str, by: str = "") -> dict[str, float]:
        """An instant vector: the value by that label, which must tell the series apart."""
        result = self.api("query", query=expression)["result"]
        values = {series["metric"].get(by, ""): float(series["value"][1]) for series in result}
        assert len(values) == len(result), f"{expression}: several series per {by!r}"
        return values

    def value(self, expression: str) -> float | None:
        """The only series' value, or None."""
        return self.query(expression).get("")


class Collector(Process):
    """A Collector that takes OTLP over gRPC and writes it to a file per signal, or to the exporters given."""

    def __init__(self, binary: Path, folder: Path, exporters: dict[str, Any], signals: Iterable[str]) -> None:
        self.grpc = free_port()
        self._files = {signal: folder / f"{signal}.otlp" for signal in signals}
        files = {
            f"file/{signal}": {
                # By default it would empty the file when it starts again.
                "path": str(path),
                "format": "proto",
                "flush_interval": "200ms",
                "append": True,
            }
            for signal, path in self._files.items()
        }
        config = {
            "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": f"127.0.0.1:{self.grpc}"}}}},
            "exporters": exporters or files,
            "service": {
                "pipelines": {
                    signal: {"receivers": ["otlp"], "exporters": list(exporters) or [f"file/{signal}"]}
                    for signal in signals
                },
                "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "warn"}},
            },
        }
        path = folder / "collector.yaml"
        path.write_text(yaml.safe_dump(config))
        super().__init__("collector", [str(binary), f"--config={path}"], folder)

    def start(self) -> None:
        super().start()
        until(self._listens)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.grpc)) == 0

    def written(self, signal: str) -> Message:
        """All that it has written of a signal, as one Export request."""
        raw = self._files[signal].read_bytes() if self._files[signal].exists() else b""
        whole, place = [], 0
        while place + 4 <= len(raw):
            end = place + 4 + int.from_bytes(raw[place : place + 4], "big")
            if end > len(raw):
                break  # it is being written
            whole.append(raw[place + 4 : end])
            place = end
        # Concatenated requests are one request: all their top fields are repeated.
        return REQUESTS[signal].FromString(b"".join(whole))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections += [(f"log of {process.name}", process.log()) for process in Process.running]
    return report


@pytest.fixture(scope="session")
def tool() -> Callable[[str, str], Path]:
    """The path of a tool's binary. Its absence skips the test by name, or fails it in CI."""
    listing = subprocess.run([sys.executable, str(TOOLS), "--where"], check=True, capture_output=True)
    found = json.loads(listing.stdout)

    def binary(name: str, file: str) -> Path:
        if "path" in found[name]:
            return Path(found[name]["path"], file)
        reason = f"no {name}: {found[name]['missing']}"
        if os.environ.get("CI") == "true" and found[name]["obtainable"]:
            pytest.fail(reason)
        pytest.skip(reason)

    return binary


@pytest.fixture(scope="session", name="until")
def _until() -> Callable[..., Any]:
    return until


@pytest.fixture(scope="session", name="get")
def _get() -> Callable[..., str]:
    return get


@pytest.fixture(name="free_port")
def _free_port() -> int:
    return free_port()


@pytest.fixture(name="ports")
def _ports() -> Callable[[], int]:
    """Another port that is free, each time."""
    return free_port


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes a new empty folder each time."""
    return lambda: tmp_path_factory.mktemp("process")


@pytest.fixture(scope="module")
def processes() -> Iterator[ExitStack]:
    """What a module started; ended after its last test, last started first."""
    with ExitStack() as started:
        yield started


@pytest.fixture
def start_process(folder: Callable[[], Path]) -> Iterator[Callable[..., Process]]:
    """Starts a child by name, command and environment; ended after the test."""
    with ExitStack() as started:

        def start(name: str, command: list[str], environ: dict[str, str]) -> Process:
            process = Process(name, command, folder(), environ)
            started.callback(process.end)
            process.start()
            return process

        yield start


@pytest.fixture(scope="module")
def start_agent(folder: Callable[[], Path], processes: ExitStack) -> Callable[..., Agent]:
    def start(**settings: Any) -> Agent:
        agent = Agent(folder(), settings)
        processes.callback(agent.end)
        agent.start()
        return agent

    return start


@pytest.fixture(scope="module")
def start_prometheus(
    tool: Callable[[str, str], Path], folder: Callable[[], Path], processes: ExitStack
) -> Callable[..., Prometheus]:
    def start(target_port: int, *features: str, **more: Any) -> Prometheus:
        binary = tool("prometheus", "prometheus")
        prometheus = Prometheus(binary, folder(), target_port, *features, **more)
        processes.callback(prometheus.end)
        prometheus.start()
        return prometheus

    return start


@pytest.fixture(scope="module")
def make_collector(
    tool: Callable[[str, str], Path], folder: Callable[[], Path], processes: ExitStack
) -> Callable[..., Collector]:
    """Makes a collector, not started yet, so that its port is known before it listens."""

    def make(exporters: dict[str, Any] | None = None, signals: Iterable[str] = REQUESTS) -> Collector:
        binary = tool("collector", "otelcol-tidegauge")
        made = Collector(binary, folder(), exporters or {}, signals)
        processes.callback(made.end)
        return made

    return make
