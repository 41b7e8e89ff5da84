"""The commands. What a command needs is imported when it runs, so that `--help` is quick."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

import click

from tidegauge.cli.generate import generate

if TYPE_CHECKING:
    from tidegauge.config import Config, ConfigError

_EXPERIMENTS = "-event_engine_listener,-event_engine_client"
"""Has gRPC read sockets on the thread that waits for its events, not on a pool of its own: 7 context
switches a request instead of 21, and a tenth less CPU. gRPC reads this when it is imported; one that does
not know a name logs an error and goes on."""

_QUICK_S = 5.0
"""Importing takes 1 s from the cache, and 40 s of a core without."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def commands() -> None:
    """Tidegauge: a telemetry sidecar for ML model servers.

    \b
    Try:
      tidegauge run                         loopback endpoints, no collector
      tidegauge run --config agent.yaml
      tidegauge check agent.yaml
      tidegauge reference build train.parquet --model fraud --version 2.1 -o fraud.parquet
      tidegauge backtest june/ --reference fraud.parquet --threshold 0.05,0.1,0.2
      tidegauge explain --model fraud --feature age
      tidegauge generate rules -o rules/
    """


commands.add_command(generate)


@commands.command()
@click.option("--config", type=click.Path(path_type=Path), envvar="TIDEGAUGE_CONFIG", help="YAML file.")
@click.option("--demo-gpu", is_flag=True, help="GPU metrics from a recording, named demo; no GPU is read.")
def run(config: Path | None, demo_gpu: bool) -> None:
    """Run the agent until SIGTERM or Ctrl-C.

    Without a configuration it takes OTLP and Arrow Flight on 127.0.0.1:4317, OTLP/HTTP on
    127.0.0.1:4318 and serves /metrics on 127.0.0.1:9464. The environment variable TIDEGAUGE_CONFIG
    names a file as --config does; OTEL_EXPORTER_OTLP_ENDPOINT and its kin name a collector.

    \b
    Examples:
      tidegauge run
      tidegauge run --config /etc/tidegauge/agent.yaml
      OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4317 tidegauge run
      tidegauge run --demo-gpu
    """
    from tidegauge.config import ConfigError
    from tidegauge.config_file import ConfigFile

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it asks for a reload, of which there is no need yet
    # Its own allocator keeps 14 MB that are in no use, out of reach of `footprint`.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    os.environ.setdefault("GRPC_EXPERIMENTS", _EXPERIMENTS)
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # else whoever fails a handshake writes into the log

    try:
        file = ConfigFile(config, os.environ)
        settings = file.read()
        with _telling():
            _import_apart("tidegauge.cli.run")
        from tidegauge.cli.run import run_agent, with_demo_gpu

        dressed = with_demo_gpu if demo_gpu else (lambda one: one)
        run_agent(dressed(settings), lambda: dressed(file.read()))
    except ConfigError as error:
        _refuse(error)


def _import_apart(module: str) -> None:
    """Import on a thread of its own, for glibc gives each thread an arena of its own.

    Compiling and loading leave 6800 free pieces of all sizes behind. In the main thread's arena they would
    be searched for the room of every message: 7 to 15 % of the time of a batch of 4096 rows.
    """
    imported: Future[ModuleType] = Future()

    def work() -> None:
        try:
            imported.set_result(import_module(module))
        except BaseException as error:
            imported.set_exception(error)

    # A daemon: Ctrl-C need not wait for kernels that are being compiled.
    threading.Thread(target=work, name="import", daemon=True).start()
    imported.result()


@commands.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), metavar="OLD", help="What an agent runs with.")
def check(file: Path, against: Path | None) -> None:
    """Check a configuration: exit 0, or 2 with everything that is wrong and how to mend it.

    The references, certificates and secrets that it names are read too; secrets are not shown. With
    --against it tells what would change in an agent that runs with OLD: exit 0 where that can take it, 1
    where it has to be restarted.

    \b
    Examples:
      tidegauge check agent.yaml
      tidegauge check new.yaml --against agent.yaml
    """
    from tidegauge.config import ConfigError

    try:
        settings = _load(file)
        with _telling():
            from tidegauge.cli.check import check_files, tell_changes, warnings
        check_files(settings)
        running = None if against is None else _load(against)
    except ConfigError as error:
        _refuse(error)
    for warning in warnings(settings):
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"{file}: ok")
    if not tell_changes(settings, running):
        raise click.exceptions.Exit(1)


@commands.group()
def reference() -> None:
    """Make and show references: what a model's columns looked like when all was well."""


@reference.command()
@click.argument("data", nargs=-1, required=True)
@click.option("--model", required=True, help="The model's name, as its telemetry tells it.")
@click.option("--version", default="", help="The model's version.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Parquet file to write.")
@click.option("--bins", type=click.IntRange(2, 1024), default=20, show_default=True, help="Bins per number.")
@click.option("--max-categories", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--categorical", multiple=True, metavar="COLUMN", help="Count this column's numbers as codes.")
@click.option("--ignore", multiple=True, metavar="COLUMN", help="Leave this column out.")
@click.option("--partitions", is_flag=True, help="Folders called NAME=VALUE are columns of text.")
@click.option("--engine", type=click.Choice(["local", "dask"]), default="local", show_default=True)
@click.option("--scheduler", metavar="ADDRESS", help="A running Dask cluster; else this machine's cores.")
def build(
    data: tuple[str, ...],
    model: str,
    version: str,
    output: Path,
    bins: int,
    max_categories: int,
    categorical: tuple[str, ...],
    ignore: tuple[str, ...],
    partitions: bool,
    engine: str,
    scheduler: str | None,
) -> None:
    """Build a reference from Parquet, CSV, JSON, ORC or Arrow files.

    DATA are files, folders or quoted globs, on disk or under a URI: s3://, gs://, abfs://, hdfs://
    or file://. They are streamed once, so they may be larger than memory. Columns called prediction,
    score, label, timestamp, prediction_id or segment have those roles, as has the field metadata
    `role`; all others are features.

    With --engine dask the workers of a cluster read them, and the result is the same to the byte.

    \b
    Examples:
      tidegauge reference build train.parquet --model fraud --version 2.1 -o fraud.parquet
      tidegauge reference build 'day=*/*.csv' --model fraud -o fraud.parquet --categorical region
      tidegauge reference build 's3://lake/train/*.parquet?region=eu-west-1' --model fraud -o fraud.parquet
      tidegauge reference build s3://lake/train --model fraud -o fraud.parquet --engine dask
    """
    from tidegauge.cli.building import Recipe
    from tidegauge.cli.reference import build_reference

    if scheduler is not None and engine != "dask":
        raise click.UsageError("--scheduler goes with --engine dask")
    build_reference(
        data,
        Recipe(bins, max_categories, categorical, ignore),
        model=model,
        version=version,
        output=output,
        keys=partitions,
        dask=engine == "dask",
        scheduler=scheduler,
    )


@reference.command()
@click.argument("file", type=click.Path(path_type=Path))
def show(file: Path) -> None:
    """Show a reference's columns.

    \b
    Example:
      tidegauge reference show fraud.parquet
    """
    from tidegauge.cli.reference import show_reference

    show_reference(file)


@commands.command()
@click.argument("data", nargs=-1, required=True)
@click.option(
    "--reference", type=click.Path(path_type=Path), required=True, help="What `reference build` made."
)
@click.option("--config", type=click.Path(path_type=Path), help="YAML file, of which `drift` counts.")
@click.option("--timestamp", metavar="COLUMN", help="The event time; else the role or name `timestamp`.")
@click.option("--timestamp-unit", type=click.Choice(["s", "ms", "us", "ns"]), help="Of whole numbers.")
@click.option("--threshold", metavar="PSI[,PSI…]", help="Instead of drift.threshold; several are compared.")
@click.option("--ignore", multiple=True, metavar="COLUMN", help="Leave this column out.")
@click.option("--partitions", is_flag=True, help="Folders called NAME=VALUE are columns of text.")
@click.option("--output", type=click.Path(path_type=Path), metavar="DIR", help="For report.html and PNGs.")
@click.option("--format", "form", type=click.Choice(["table", "json", "csv"]), default="table")
def backtest(
    data: tuple[str, ...],
    reference: Path,
    config: Path | None,
    timestamp: str | None,
    timestamp_unit: str | None,
    threshold: str | None,
    ignore: tuple[str, ...],
    partitions: bool,
    output: Path | None,
    form: str,
) -> None:
    """Replay history and tell what would have alarmed, when and why.

    DATA are named as for `reference build`. The rows go through the agent's own drift processor in
    the order of their event time, at which they arrive; what is not in order is sorted first, in
    bounded memory. Episodes of alarm and of drift go to the standard output as a table, JSON lines
    or CSV. DIR gets report.html, which needs nothing else, every evaluation, and a PNG for each
    column (extra `plots`).

    \b
    Examples:
      tidegauge backtest june/ --reference fraud.parquet --timestamp created_at
      tidegauge backtest june/ --reference fraud.parquet --threshold 0.05,0.1,0.2 --output report
      tidegauge backtest s3://lake/june --reference fraud.parquet --config agent.yaml --format json
    """
    from tidegauge.backtest.history import Clock
    from tidegauge.cli.backtest import run_backtest
    from tidegauge.config import ConfigError

    try:
        settings = _load(config).drift
    except ConfigError as error:
        _refuse(error)
    run_backtest(
        data,
        reference,
        settings,
        clock=Clock(timestamp, timestamp_unit),
        thresholds=_thresholds(threshold),
        ignore=ignore,
        keys=partitions,
        output=output,
        form=form,
    )


def _thresholds(text: str | None) -> list[float]:
    try:
        found = [] if text is None else [float(one) for one in text.split(",")]
    except ValueError:
        found = [0.0]
    if not all(0 < one < float("inf") for one in found):
        raise click.BadParameter(
            f"{text!r} is not PSI[,PSI…], such as 0.05,0.1,0.2", param_hint="--threshold"
        )
    return found


@commands.command()
@click.option("--model", required=True, help="The model's name.")
@click.option("--version", help="Its version; else all of them.")
@click.option("--feature", metavar="COLUMN", help="A feature, prediction or score; else all of them.")
@click.option("--slice", "part", metavar="COLUMN=VALUE", help="A slice, such as region=eu; else the whole.")
@click.option(
    "--url", default="http://127.0.0.1:9464", show_default=True, help="Where the agent's pages are."
)
@click.option("--token-file", type=click.Path(path_type=Path), help="What opens the pages: a bearer token.")
@click.option("--ca-file", type=click.Path(path_type=Path), help="PEM that https:// pages are checked by.")
@click.option("--snapshot", type=click.Path(path_type=Path), help="A saved /api/v1/snapshot instead.")
def explain(
    model: str,
    version: str | None,
    feature: str | None,
    part: str | None,
    url: str,
    token_file: Path | None,
    ca_file: Path | None,
    snapshot: Path | None,
) -> None:
    """Explain why a model is drifted, or is not judged.

    Of a column: the histograms of reference and window side by side, with each bin's share of the
    PSI; all statistics, each with its p-value and what it stays below without drift; the other
    windows. Without --feature: all columns and the slices, worst first. Of a slice: its columns.

    \b
    Examples:
      tidegauge explain --model fraud
      tidegauge explain --model fraud --feature amount
      tidegauge explain --model fraud --slice region=eu
      curl -s http://127.0.0.1:9464/api/v1/snapshot > at-night.json
      tidegauge explain --model fraud --version 2.1 --snapshot at-night.json
    """
    from tidegauge.cli import snapshot as snapshots
    from tidegauge.cli.explain import explain as print_explanation

    body = snapshots.fetch(url, token_file, ca_file) if snapshot is None else snapshots.load(snapshot)
    print_explanation(snapshots.decode(body, str(snapshot or url)), model, version, feature, part)


@commands.group()
def gpu() -> None:
    """Look into the GPU metrics."""


@gpu.command("record")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="JSON file to write.")
@click.option("--polls", type=click.IntRange(2, 10_000), default=6, show_default=True)
@click.option("--interval", type=click.FloatRange(0.1), default=2.0, show_default=True, help="In seconds.")
def gpu_record(output: Path, polls: int, interval: float) -> None:
    """Record what NVML answers on this machine, and compare it with nvidia-smi.

    The file has GPU names, UUIDs and process ids in it, and nothing else of the machine. Tests play
    it in place of the library.

    \b
    Example:
      tidegauge gpu record -o h100.json
    """
    from tidegauge.cli.gpu import record_gpus

    record_gpus(output, polls, interval)


@commands.command()
def version() -> None:
    """Print the version."""
    from tidegauge import __version__

    click.echo(f"tidegauge {__version__}")


@contextmanager
def _telling() -> Iterator[None]:
    """Say why it takes so long, where it does."""
    what = "still loading: kernels that are not on disk yet are compiled, once, for up to a minute"
    timer = threading.Timer(_QUICK_S, click.echo, [what], {"err": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _load(path: Path | None) -> Config:
    from tidegauge import config_file

    return config_file.load(path, os.environ)


def _refuse(error: ConfigError) -> NoReturn:
    for problem in error.problems:
        click.echo(f"error: {problem}", err=True)
    raise click.exceptions.Exit(2)
