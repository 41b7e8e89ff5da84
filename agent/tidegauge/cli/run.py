"""`tidegauge run`: the process around the agent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable

import msgspec
import uvloop

from tidegauge import __version__, footprint
from tidegauge.app import Ports, run
from tidegauge.config import Config
from tidegauge.reload import Origin
from tidegauge.units import unix_path

log = logging.getLogger("tidegauge")


class OneLine(logging.Formatter):
    """A message as one printable line: names in it are senders', who must not write lines of their own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line, without the traceback that may follow."""
        line = super().formatMessage(record)
        return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in line)


def run_agent(config: Config, read: Callable[[], Config]) -> None:
    """Run until SIGTERM or SIGINT; returns when all is drained, and never later than drain_timeout.

    `read` gives the configuration as it stands then; SIGHUP has it read at once.

    Raises:
        ConfigError: for what only starting can show, such as a port that is taken.
    """
    lines = logging.StreamHandler()
    lines.setFormatter(OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=config.log.level.upper(), handlers=[lines])
    logging.captureWarnings(capture=True)
    footprint.keep_freed_memory()
    _allow_open_files()
    # The fold thread asks for the GIL after each kernel call; at the default 5 ms it would wait longer
    # for it than a batch takes to fold (1 ms), and the queue would fill.
    sys.setswitchinterval(0.0005)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        clean = runner.run(_until_stopped(config, read))
    log.info("stopped")
    if not clean:
        _leave()


def with_demo_gpu(config: Config) -> Config:
    """The configuration with a recording in place of the GPUs."""
    nvml = msgspec.structs.replace(config.scrapers.nvml, enabled=True, demo=True)
    return msgspec.structs.replace(config, scrapers=msgspec.structs.replace(config.scrapers, nvml=nvml))


async def _until_stopped(config: Config, read: Callable[[], Config]) -> bool:
    stop, asked = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def ask(number: signal.Signals) -> None:
        if stop.is_set():
            return
        log.info("%s: draining for at most %g s", number.name, config.pipeline.drain_timeout)
        stop.set()
        # A blocked loop cannot time itself out.
        deadline = threading.Timer(config.pipeline.drain_timeout, _leave)
        deadline.daemon = True
        deadline.start()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask, number)
    loop.add_signal_handler(signal.SIGHUP, asked.set)
    return await run(config, stop, lambda ports: _announce(config, ports), Origin(read, asked))


def _allow_open_files() -> None:
    """Raise the limit to what the system allows: two ports take 4096 connections each, and 1024 is usual."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS says "unlimited" and means 10240
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _announce(config: Config, ports: Ports) -> None:
    footprint.settle()

    def at(endpoint: str, port: int) -> str:
        return endpoint if unix_path(endpoint) else f"{endpoint.rpartition(':')[0]}:{port}"

    log.info(
        "tidegauge %s is ready: OTLP and Flight on %s, OTLP/HTTP on %s, /metrics on %s",
        __version__,
        at(config.receivers.grpc.endpoint, ports.grpc),
        at(config.receivers.http.endpoint, ports.http),
        at(config.exporters.prometheus.endpoint, ports.pages),
    )


def _leave() -> None:
    """End at once, without waiting for threads that hang."""
    logging.shutdown()
    os._exit(0)
