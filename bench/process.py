"""Processes that are measured, the agent first: CPU time, memory, counters."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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


class Child:
    """A process that is measured: its own folder, where its log lies, its CPU time and its memory.

    A context manager: entering returns once `ready` says so, after `ready_s` seconds.
    """

    name = "process"

    def __init__(self, command: list[str], folder: Path, environ: dict[str, str] | None = None) -> None:
        self._command = command
        self._log = folder / f"{self.name}.log"
        self._environ = os.environ | (environ or {})
        self.ready_s = 0.0

    def ready(self) -> bool:
        """Whether it serves."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        begin = time.monotonic()
        with self._log.open("wb") as log:
            self._child = subprocess.Popen(self._command, stdout=log, stderr=log, env=self._environ)
        while not self.ready():
            if self._child.poll() is not None or time.monotonic() > begin + 300:
                error = RuntimeError(f"the {self.name} did not start")
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
            print(f"the {self.name}'s log:\n{self.log()[-3000:]}", file=sys.stderr)

    def log(self) -> str:
        """What it wrote."""
        return self._log.read_text(errors="replace")

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


class Agent(Child):
    """`tidegauge run` on free ports, with the default configuration but for `settings`."""

    name = "agent"

    def __init__(self, settings: dict[str, Any] | None = None, environ: dict[str, str] | None = None) -> None:
        self.grpc, http, self.pages = free_port(), free_port(), free_port()
        settings = dict(settings or {})
        config = {
            "receivers": {
                "grpc": {"endpoint": f"127.0.0.1:{self.grpc}"},
                "http": {"endpoint": f"127.0.0.1:{http}"},
            },
            "exporters": {"prometheus": {"endpoint": f"127.0.0.1:{self.pages}"}}
            | settings.pop("exporters", {}),
            **settings,
        }
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        path = folder / "agent.yaml"
        path.write_text(yaml.safe_dump(config))
        super().__init__([sys.executable, "-m", "tidegauge", "run", "--config", str(path)], folder, environ)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._folder.cleanup()

    def ready(self) -> bool:
        return responds(f"http://127.0.0.1:{self.pages}/readyz")

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
        wait_for(self.text, value, sample, **labels)

    def total(self, sample: str, **labels: str) -> float:
        """The sum of the sample's series that carry `labels`."""
        return total(self.text(), sample, **labels)


def wait_for(page: Callable[[], str], value: float, sample: str, **labels: str) -> None:
    """Ask for a page of text format twice a second until the sample's series sum to `value`.

    Raises:
        RuntimeError: where they do not within 60 s.
    """
    deadline = time.monotonic() + 60
    while (found := total(page(), sample, **labels)) != value:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{sample} is {found:g}, not {value:g}, after 60 s")
        time.sleep(0.5)


def total(page: str, sample: str, **labels: str) -> float:
    """The sum of a sample's series on a page of text format that carry `labels`."""
    lines = "\n".join(line for line in page.splitlines() if line.startswith(sample)) + "\n"
    return sum(
        found.value
        for family in text_string_to_metric_families(lines)
        for found in family.samples
        if found.name == sample and labels.items() <= found.labels.items()
    )


def responds(url: str) -> bool:
    """Whether a page is there, with status 200."""
    try:
        with urlopen(url, timeout=5):
            return True
    except (URLError, ConnectionError, TimeoutError):
        return False


def free_port() -> int:
    """A port of loopback that was free a moment ago."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
