"""The demo: a model server with Tidegauge beside it, and one feature that moves.

Exit status: 0 where the moved feature was flagged and no other, and what the server pushed came
through; 1 where not; 2 where something did not start, or ended on its own; 130 where it was
interrupted before its tables.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pyarrow.parquet as pq
import yaml
from model import FEATURES, NAME, VERSION, training_data
from processes import DEFAULT_PORTS, DemoError, Ports, choose_ports, process, until_ok
from report import Snapshot, drift_table, latency_table, misses, missing, pushed_lines, stage_table
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from traffic import Traffic

BIN = Path(sys.executable).parent
DEVIATIONS = 1.0
DEFAULT_SECONDS = 40
MIN_SECONDS = 20
"""Of which the window is a quarter: 5 s hold about 1400 rows."""
UNMOVED_SHARE = 0.4
PATIENCE_S = 60
"""How long a phase is drawn out on a machine too busy to fill the window in time."""

console = Console()


async def build_reference(folder: Path) -> None:
    """Write the training data, and let the command line make a reference of it."""
    await asyncio.to_thread(pq.write_table, training_data(), folder / "train.parquet")
    command = [
        *(f"{BIN}/tidegauge", "reference", "build", f"{folder}/train.parquet"),
        *("--model", NAME, "--version", VERSION, "-o", f"{folder}/reference.parquet"),
    ]
    async with process(folder, "reference", command, {}) as ended:
        if await ended:
            raise DemoError("`tidegauge reference build` failed")


def agent_command(folder: Path, ports: Ports, window_s: float) -> list[str]:
    """`tidegauge run`, with a window that forgets the first phase during the second."""
    config = {
        "receivers": {
            "grpc": {"endpoint": f"127.0.0.1:{ports.grpc}"},
            "http": {"endpoint": f"127.0.0.1:{ports.http}"},
        },
        "exporters": {"prometheus": {"endpoint": f"127.0.0.1:{ports.pages}"}},
        "pipeline": {"publish_interval": "1s"},
        "stages": {"linger": "1s"},
        "drift": {"window": f"{window_s:g}s", "panes": 5, "allowed_lateness": "2s"},
        "references": [{"model": NAME, "version": VERSION, "path": f"{folder}/reference.parquet"}],
    }
    path = folder / "agent.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return [f"{BIN}/tidegauge", "run", "--config", str(path)]


def server_command(ports: Ports) -> list[str]:
    uvicorn = [f"{BIN}/uvicorn", "server:app", "--port", str(ports.server), "--no-access-log"]
    return [f"{BIN}/opentelemetry-instrument", *uvicorn]


def server_environment(ports: Ports) -> dict[str, str]:
    """The OpenTelemetry SDK's own variables, and where the records go."""
    return {
        "OTEL_SERVICE_NAME": NAME,
        "OTEL_RESOURCE_ATTRIBUTES": f"service.version={VERSION}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{ports.grpc}",
        "OTEL_BSP_SCHEDULE_DELAY": "500",
        "OTEL_BLRP_SCHEDULE_DELAY": "500",
        "OTEL_METRIC_EXPORT_INTERVAL": "1000",
        "OTEL_PYTHON_EXCLUDED_URLS": "healthz",
        "RECORDS_LOCATION": f"grpc://127.0.0.1:{ports.grpc}",
    }


class Scene:
    """Everything running: the agent, the model server and the traffic."""

    def __init__(self, pages: str, session: aiohttp.ClientSession, traffic: Traffic) -> None:
        self.pages = pages
        self.traffic = traffic
        self._session = session
        self._watched: set[asyncio.Task[Any]] = set()

    def watch(self, task: asyncio.Task[Any]) -> None:
        """This must not end before the demo does."""
        self._watched.add(task)

    async def go_on(self, seconds: float | None = None) -> None:
        """Let time pass.

        Raises:
            DemoError: as soon as something ends that should not.
        """
        ended, _ = await asyncio.wait(self._watched, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            reason = task.exception() or f"exit status {task.result()}"
            raise DemoError(f"the {task.get_name()} ended on its own: {reason}")

    async def snapshot(self) -> Snapshot:
        url = f"{self.pages}/api/v1/snapshot"
        try:
            async with self._session.get(url, raise_for_status=True) as response:
                return Snapshot(await response.json(), NAME)
        except aiohttp.ClientError as error:
            raise DemoError(f"{url} cannot be read: {error}") from error

    async def play(self, title: str, seconds: float, feature: str) -> Snapshot:
        """Let traffic run for a while, and longer where features still lack an estimate."""
        clock = asyncio.get_running_loop().time
        start = clock()
        columns = (TextColumn("{task.description:<32}"), BarColumn(), TextColumn("{task.fields[note]}"))
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task(title, total=seconds, note="")
            while True:
                await self.go_on(0.5)
                snapshot = await self.snapshot()
                drifts = snapshot.features()
                note = f"{self.traffic.rows:,} rows"
                if feature in drifts:
                    note += f", {feature} at {drifts[feature].score:.3f}"
                progress.update(bar, completed=clock() - start, note=note)
                enough = len(drifts) >= len(FEATURES) or clock() - start > seconds + PATIENCE_S
                if clock() - start > seconds and enough:
                    return snapshot


@contextlib.asynccontextmanager
async def set_up(folder: Path, window_s: float, feature: str) -> AsyncIterator[Scene]:
    """Start everything, each part when the one before it is ready; stop it in reverse order."""
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        ports = choose_ports()
        pages, server = f"http://127.0.0.1:{ports.pages}", f"http://127.0.0.1:{ports.server}"
        if ports != DEFAULT_PORTS:
            console.print(f"Default ports are taken; using {', '.join(map(str, ports))}.")
        scene = Scene(pages, session, Traffic(server, feature, DEVIATIONS))
        with console.status("Making a reference of the training data"):
            await build_reference(folder)
        console.print("[green]✔[/] reference   tidegauge reference build train.parquet")
        with console.status("Starting the agent; the first time it compiles its kernels"):
            agent = await stack.enter_async_context(
                process(folder, "agent", agent_command(folder, ports, window_s), {})
            )
            scene.watch(agent)
            await until_ok(session, f"{pages}/readyz", agent)
        console.print(f"[green]✔[/] agent       tidegauge run, OTLP and Flight on 127.0.0.1:{ports.grpc}")
        with console.status("Starting the model server"):
            command, environ = server_command(ports), server_environment(ports)
            model_server = await stack.enter_async_context(process(folder, "server", command, environ))
            scene.watch(model_server)
            await until_ok(session, f"{server}/healthz", model_server)
        console.print(f"[green]✔[/] server      opentelemetry-instrument uvicorn server:app, :{ports.server}")
        traffic = asyncio.create_task(scene.traffic.run(), name="traffic")
        scene.watch(traffic)
        try:
            yield scene
        finally:
            traffic.cancel()
            await asyncio.wait({traffic})


def show(scene: Scene, before: Snapshot, after: Snapshot, moved: str) -> bool:
    """Print the tables; whether the agent was right about every feature, and nothing is missing."""
    console.print("", latency_table(after.latencies()), "", stage_table(after.stages()))
    console.print("\nWhat the server counts itself, and pushes\n", style="italic")
    console.print(*pushed_lines(after), sep="\n", highlight=False)
    console.print("", drift_table(before, after, moved), "")
    for signal_name in ("traces", "metrics", "logs", "records"):
        counts = {
            name: after.total(f"tidegauge.{name}", signal=signal_name)
            for name in ("received", "rejected", "folded", "dropped")
        }
        console.print(f"{signal_name:<8}", ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    console.print(f"metrics  {scene.pages}/metrics\nstatus   {scene.pages}/\n", highlight=False)
    wrong = [*misses(before.features(), after.features(), FEATURES, moved), *missing(after)]
    for miss in wrong:
        console.print(f"[red]✘[/] {miss}")
    if not wrong:
        others = len(FEATURES) - 1
        console.print(
            f"[green]✔[/] {moved} was flagged when it moved, and none of the {others} others ever was."
        )
    return not wrong


async def demo(folder: Path, seconds: float | None, feature: str) -> int:
    """Play it; 0 where the agent was right, 1 where not. Cancelling ends it, after the tables in peace."""
    length = seconds or DEFAULT_SECONDS
    async with set_up(folder, length / 4, feature) as scene:
        before = await scene.play("traffic as in training", length * UNMOVED_SHARE, feature)
        scene.traffic.move()
        title = f"{feature} + {DEVIATIONS:g} std"
        after = await scene.play(title, length * (1 - UNMOVED_SHARE), feature)
        status = 0 if show(scene, before, after, feature) else 1
        if seconds is None:
            console.print("Traffic goes on, still moved. Ctrl-C ends it.")
            with contextlib.suppress(asyncio.CancelledError):
                await scene.go_on()
        return status


async def interruptible(folder: Path, arguments: argparse.Namespace) -> int:
    """The demo, ended in order by SIGINT and SIGTERM."""
    playing = asyncio.create_task(demo(folder, arguments.seconds, arguments.feature))

    def end() -> None:
        if not playing.cancelling():  # a second one must not cut the ending short
            playing.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, end)
    try:
        return await playing
    except asyncio.CancelledError:
        return 130
    except DemoError as failure:
        console.print(f"[red]✘[/] {failure}")
        return 2


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument(
        "--seconds",
        type=float,
        help=f"end by itself after this much traffic, {MIN_SECONDS} or more; without it, the tables come "
        f"after {DEFAULT_SECONDS} s and traffic goes on until Ctrl-C",
    )
    parser.add_argument("--feature", default="mean texture", choices=FEATURES, help="the one to move")
    parsed = parser.parse_args(arguments)
    if parsed.seconds is not None and parsed.seconds < MIN_SECONDS:
        parser.error(f"--seconds must be at least {MIN_SECONDS}: the agent needs rows to judge by")
    return parsed


def main() -> int:
    arguments = parse(sys.argv[1:])
    folder = Path(tempfile.mkdtemp(prefix="tidegauge-demo-"))
    status = asyncio.run(interruptible(folder, arguments))
    if status in (0, 130):
        shutil.rmtree(folder)
    else:
        console.print(f"Logs and configuration are kept in {folder}", soft_wrap=True)
        for path in sorted(folder.glob("*.log")):
            lines = [f"--- {path.name} ends with", *path.read_text().splitlines()[-5:]]
            console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
