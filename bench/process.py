"""The agent as a process: its CPU time, its memory, its counters."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.error import URLError
from urllib.request import Request, urlopen

import yaml
from prometheus_client.parser import text_string_to_metric_families

_SCRAPE = {
    # What Prometheus 3 sends.
    "Accept": "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
    "Accept-Encoding": "gzip",
}


class Agent:
    """`tidegauge run` on free ports, with the default configuration but for `settings`.

    A context manager: entering returns once /readyz says so, after `ready_s` seconds.
    """

    def __init__(self, settings: dict[str, Any] | None = None, environ: dict[str, str] | None = None) -> None:
        self.grpc, http, self.pages = _free_port(), _free_port(), _free_port()
        config = {
            "receivers": {
                "grpc": {"endpoint": f"127.0.0.1:{self.grpc}"},
                "http": {"endpoint": f"127.0.0.1:{http}"},
            },
            "exporters": {"prometheus": {"endpoint": f"127.0.0.1:{self.pages}"}},
            **(settings or {}),
        }
        self._folder = tempfile.TemporaryDirectory()
        self._config = Path(self._folder.name, "agent.yaml")
        self._config.write_text(yaml.safe_dump(config))
        self._log = Path(self._folder.name, "agent.log")
        self._environ = os.environ | (environ or {})
        self.ready_s = 0.0

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tidegauge", "run", "--config", str(self._config)]
        begin = time.monotonic()
        with self._log.open("wb") as log:
            self._child = subprocess.Popen(command, stdout=log, stderr=log, env=self._environ)
        while not self._ready():
            if self._child.poll() is not None or time.monotonic() > begin + 300:
                error = RuntimeError("the agent did not start")
                self.__exit__(RuntimeError, error, None)
                raise error
            time.sleep(0.005)
        self.ready_s = time.monotonic() - begin
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.terminate()
        try:
            self._child.wait(20)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        if error is not None:
            print(f"the agent's log:\n{self._log.read_text()[-3000:]}", file=sys.stderr)
        self._folder.cleanup()

    def _ready(self) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self.pages}/readyz", timeout=5):
                return True
        except (URLError, ConnectionError, TimeoutError):
            return False

    def cpu_s(self) -> float:
        """CPU seconds of all its threads, in user and system."""
        # Linux's clock of a process, as clock_getcpuclockid(3) makes its number; /proc has ticks of 10 ms.
        return time.clock_gettime(~self._child.pid << 3 | 2)

    def anonymous_mb(self) -> float:
        """Memory that is backed by no file, RssAnon, in MB."""
        for line in Path(f"/proc/{self._child.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024 / 1e6
        raise RuntimeError("no RssAnon: this needs Linux")

    def scrape(self) -> bytes:
        """/metrics as Prometheus asks for it; the body as it comes, compressed."""
        request = Request(f"http://127.0.0.1:{self.pages}/metrics", headers=_SCRAPE)
        with urlopen(request, timeout=60) as answer:
            return bytes(answer.read())

    def text(self, accept: str = "text/plain") -> str:
        """/metrics in the format asked for."""
        request = Request(f"http://127.0.0.1:{self.pages}/metrics", headers={"Accept": accept})
        with urlopen(request, timeout=60) as answer:
            return str(answer.read().decode())

    def wait_for(self, value: float, sample: str, **labels: str) -> None:
        """Wait, asking twice a second, until the sample's series that carry `labels` sum to `value`."""
        deadline = time.monotonic() + 60
        while (found := self._total(sample, labels)) != value:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{sample} is {found:g}, not {value:g}, after 60 s")
            time.sleep(0.5)

    def _total(self, sample: str, labels: dict[str, str]) -> float:
        lines = "\n".join(line for line in self.text().splitlines() if line.startswith(sample)) + "\n"
        return sum(
            found.value
            for family in text_string_to_metric_families(lines)
            for found in family.samples
            if found.name == sample and labels.items() <= found.labels.items()
        )


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
