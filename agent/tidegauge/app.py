"""The whole agent: every component, built and wired in one place, started sinks first."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tidegauge.checkpointer import Checkpointer
from tidegauge.config import Config, ConfigError, Destination, OtlpExporter, PipelineSettings, Problem
from tidegauge.config_listeners import listeners
from tidegauge.exporters.channel import Collector
from tidegauge.exporters.fanout import Fanout
from tidegauge.exporters.forward import DEFAULT, Forwarder
from tidegauge.exporters.otlp import OtlpPush, default_resource
from tidegauge.exporters.pages import Pages
from tidegauge.exporters.remote_write import RemoteWriter
from tidegauge.health.health import Health
from tidegauge.listening.door import Door, exposed
from tidegauge.lock import StateLock
from tidegauge.pipeline import Pipeline, Processor
from tidegauge.processors.drift.checkpoint import DriftState
from tidegauge.processors.drift.drift import Drift, Prepared
from tidegauge.processors.latency import Latency
from tidegauge.processors.logs import LogRecords
from tidegauge.processors.received import Received
from tidegauge.processors.stages import Stages
from tidegauge.processors.timings import Timings
from tidegauge.profile import ProfileError, Reference
from tidegauge.publisher import Publisher
from tidegauge.receivers.flight import FlightReceiver
from tidegauge.receivers.grpc_server import GrpcServer
from tidegauge.receivers.http import HttpReceiver
from tidegauge.receivers.otlp import OtlpReceiver
from tidegauge.reference_files import ReferenceFiles
from tidegauge.reload import Commit, Origin, Prepare, Reload
from tidegauge.scrapers.nvml import Nvml
from tidegauge.shelf import Shelf
from tidegauge.snapshot import Snapshots
from tidegauge.statefile import StateFile
from tidegauge.telemetry import Telemetry
from tidegauge.watched import FileWatch, Watched

log = logging.getLogger(__name__)


class Ports(NamedTuple):
    """Where the agent listens, also where an endpoint's port was 0."""

    grpc: int
    http: int
    pages: int


async def run(
    config: Config,
    stop: asyncio.Event,
    started: Callable[[Ports], None],
    origin: Origin | None = None,
) -> bool:
    """Run until `stop` is set, then drain within `pipeline.drain_timeout`.

    `started` is called once everything listens. With an `origin` the configuration is taken anew when it
    reads differently; certificates and secrets are in any case. Returns False where a processor never
    came back, so that a thread is left that the interpreter must not wait for.

    Raises:
        ConfigError: for an endpoint that cannot be listened on, or a reference that cannot be read.
    """
    drift = _drift(config)
    telemetry, snapshots = Telemetry(), Snapshots()
    # Leaving takes at most: receivers 2 x 10 %, GPU poll 1 s, queue 30 %, state 10 %, collector 2 x 15 %,
    # remote write 10 %.
    drain_s = float(config.pipeline.drain_timeout)
    pipeline = Pipeline(
        _processors(config, drift), telemetry, queue_bytes=config.pipeline.queue_size, drain_s=0.3 * drain_s
    )
    publisher: Publisher | None = None
    state = ["starting"]
    doors = {path: Door(settings, path, telemetry) for path, settings in listeners(config).items()}
    for problem in exposed(listeners(config)):
        log.warning("unguarded: %s", problem)
    reload = Reload(config, (lambda: config) if origin is None else origin.read, telemetry)
    watched: list[Watched] = [reload, *(file for door in doors.values() for file in door.watched)]

    async with AsyncExitStack() as stack:
        if config.state_dir is not None:
            lock = StateLock(Path(config.state_dir), needed=bool(_queue_folders(config)))
            stack.enter_context(lock)
        pages = await stack.enter_async_context(
            Pages(
                config.exporters.prometheus.endpoint,
                snapshots,
                health=lambda: faults(reload.current.pipeline, pipeline, publisher),
                ready=lambda: state,
                door=doors["exporters.prometheus"],
            )
        )
        # Who exports, and under one name wherever it goes.
        resource = default_resource() | config.resource
        writer = await _write(config, stack, telemetry, snapshots, resource, 0.1 * drain_s)
        fanout, collectors = await _export(
            config, stack, telemetry, snapshots, resource, 0.15 * drain_s, reload.parts
        )
        watched += (*collectors, *(one.channel for one in writer))
        checkpointer = _keep(config, drift, pipeline, telemetry, 0.1 * drain_s)
        publisher = await stack.enter_async_context(
            Publisher(
                pipeline,
                telemetry,
                snapshots,
                interval_s=config.pipeline.publish_interval,
                observe=(
                    fanout.observe,
                    reload.observe,
                    *(one.observe for one in writer),
                    *(one.observe for one in checkpointer),
                ),
            )
        )
        for one in checkpointer:
            await stack.enter_async_context(one)
        await stack.enter_async_context(pipeline)
        await stack.enter_async_context(_reference_files(config, drift, pipeline))
        await _look(config, stack, snapshots)
        http, grpc = await _receive(config, stack, pipeline, telemetry, fanout, doors, 0.1 * drain_s)
        watch = FileWatch(
            watched,
            telemetry,
            interval_s=config.reload.interval,
            asked=None if origin is None else origin.asked,
        )
        reload.parts += [*map(_prepare_door, doors.values()), *_live(watch, publisher, pipeline, drift)]
        await stack.enter_async_context(watch)
        state.clear()
        started(Ports(grpc.port, http.port, pages.port))
        await stop.wait()
        state.append("stopping")
    return pipeline.stalled_s == 0.0


async def _look(config: Config, stack: AsyncExitStack, snapshots: Snapshots) -> None:
    """Start what looks at the machine, and at all that is known of it and the models together."""
    if config.scrapers.nvml.enabled:
        await stack.enter_async_context(Nvml(snapshots, config.scrapers.nvml, config.identity))
    if config.health.enabled:
        await stack.enter_async_context(Health(config.health, snapshots))


async def _receive(
    config: Config,
    stack: AsyncExitStack,
    pipeline: Pipeline,
    telemetry: Telemetry,
    fanout: Fanout,
    doors: Mapping[str, Door],
    grace_s: float,
) -> tuple[HttpReceiver, GrpcServer]:
    """Start the receivers, last of all: what they take has somewhere to go."""
    otlp = OtlpReceiver(
        pipeline, telemetry, config.identity, fanout.offer, config.latency.timings, fanout.keeps_up
    )
    flight = FlightReceiver(pipeline, telemetry, config.receivers.records)
    http = await stack.enter_async_context(
        HttpReceiver(config.receivers.http, otlp, grace_s=grace_s, door=doors["receivers.http"])
    )
    door = doors["receivers.grpc"]
    server = GrpcServer(config.receivers.grpc, otlp, (flight.service(),), grace_s=grace_s, door=door)
    return http, await stack.enter_async_context(server)


def _prepare_door(door: Door) -> Prepare:
    return lambda config: door.prepare(listeners(config)[door.setting])


def _live(watch: FileWatch, publisher: Publisher, pipeline: Pipeline, drift: Drift) -> list[Prepare]:
    """What takes another configuration without files of its own."""

    def pace(config: Config) -> Commit:
        def commit() -> None:
            watch.interval_s = config.reload.interval
            publisher.interval_s = config.pipeline.publish_interval

        return commit

    def thresholds(config: Config) -> Commit:
        return lambda: pipeline.ask(lambda: drift.retune(config.drift))

    return [pace, thresholds]


def _drift(config: Config) -> Drift:
    """With the references that are configured, and of other models those that were made and kept before."""
    references = load_references(config)
    if config.state_dir is None:
        return Drift(config.drift, references)
    shelf = Shelf(config.state_dir)
    named = {(one.model, one.version) for one in references}
    references += [one for one in shelf.load() if (one.model, one.version) not in named]
    return Drift(config.drift, references, shelf.keep)


def _reference_files(config: Config, drift: Drift, pipeline: Pipeline) -> ReferenceFiles[Prepared]:
    """What has a model compared with a reference that has changed on disk."""

    async def switch(prepared: Prepared) -> None:
        await pipeline.ask(lambda: drift.switch(prepared, time.time_ns()))

    interval_s = config.drift.reference_poll
    return ReferenceFiles(config.references, drift.prepare, switch, interval_s=interval_s)


def _processors(config: Config, drift: Drift) -> list[Processor]:
    """All that fold, in the order of their metrics on the page."""
    processors: list[Processor] = [Latency(config.latency), Timings(config.latency)]
    if config.stages.enabled:
        processors.append(Stages(config.stages))
    processors += [drift, LogRecords(config.logs)]
    if config.metrics.enabled:
        processors.append(Received(config.metrics))
    return processors


def _keep(
    config: Config, drift: Drift, pipeline: Pipeline, telemetry: Telemetry, last_s: float
) -> tuple[Checkpointer, ...]:
    """Go on from the drift state in `state_dir`; returns what writes it from now on, if there is such."""
    if config.state_dir is None:
        return ()
    file = StateFile(config.state_dir, "drift")
    complete = file.take()
    if problems := drift.restore(file.read(), complete=complete):
        file.set_aside(problems)

    async def capture() -> DriftState | None:
        return await pipeline.ask(drift.capture)

    interval_s = config.drift.checkpoint_interval
    return (Checkpointer(file, capture, telemetry, interval_s=interval_s, last_s=last_s),)


def faults(settings: PipelineSettings, pipeline: Pipeline, publisher: Publisher | None) -> list[str]:
    """Why the agent is not healthy: data must be moving, and statistics be published."""
    if publisher is None:
        return ["starting"]
    reasons = []
    if not pipeline.alive:
        reasons.append("the consumer is not running")
    if pipeline.stalled_s > settings.stall_timeout:
        reasons.append(f"the consumer has been on one step for {pipeline.stalled_s:.0f} s")
    if publisher.age_s > settings.stall_timeout + settings.publish_interval:
        reasons.append(f"no statistics were published for {publisher.age_s:.0f} s")
    return reasons


async def _write(
    config: Config,
    stack: AsyncExitStack,
    telemetry: Telemetry,
    snapshots: Snapshots,
    resource: Mapping[str, str],
    drain_s: float,
) -> tuple[RemoteWriter, ...]:
    """Start what writes the page to a Prometheus, if there is such."""
    settings = config.exporters.remote_write
    if settings.endpoint is None:
        return ()
    writer = RemoteWriter(settings, snapshots, telemetry, resource=resource, drain_s=drain_s)
    return (await stack.enter_async_context(writer),)


async def _export(
    config: Config,
    stack: AsyncExitStack,
    telemetry: Telemetry,
    snapshots: Snapshots,
    resource: Mapping[str, str],
    drain_s: float,
    parts: list[Prepare],
) -> tuple[Fanout, list[Collector]]:
    """Start what talks to collectors; returns what passes received OTLP on to them, and them.

    What takes other settings for them is added to `parts`.
    """
    forwarders, collectors = [], []
    folders = _queue_folders(config)
    for name, (path, settings) in destinations(config).items():
        collector = await stack.enter_async_context(Collector(settings, path))
        collectors.append(collector)
        parts.append(_prepare_collector(name, collector))
        if isinstance(settings, OtlpExporter):
            push = OtlpPush(
                collector,
                snapshots,
                telemetry,
                resource=resource,
                interval_s=settings.interval,
                last_push_s=drain_s,
            )
            await stack.enter_async_context(push)
            parts.append(_prepare_push(push))
            if not settings.forward:
                continue
        folder = folders.get(name)
        forwarders.append(
            Forwarder(collector, telemetry, settings, name=name, folder=folder, drain_s=drain_s)
        )
    return await stack.enter_async_context(Fanout(forwarders)), collectors


def _prepare_collector(name: str, collector: Collector) -> Prepare:
    return lambda config: collector.prepare(destinations(config)[name][1])


def _prepare_push(push: OtlpPush) -> Prepare:
    return lambda config: lambda: setattr(push, "interval_s", config.exporters.otlp.interval)


def destinations(config: Config) -> dict[str, tuple[str, Destination]]:
    """The collectors by name, each with the path of its settings in the configuration."""
    found: dict[str, tuple[str, Destination]] = {}
    if config.exporters.otlp.endpoint is not None:
        found[DEFAULT] = ("exporters.otlp", config.exporters.otlp)
    for index, one in enumerate(config.exporters.collectors):
        found[one.name] = (f"exporters.collectors[{index}]", one)
    return found


def _queue_folders(config: Config) -> dict[str, Path]:
    """The folders of the disk queues that are to be, by the collector's name."""
    if config.state_dir is None:
        return {}
    queues = Path(config.state_dir, "queue")
    wanted = {
        name: queues / name
        for name, (_, settings) in destinations(config).items()
        if settings.disk_queue.size and not (isinstance(settings, OtlpExporter) and not settings.forward)
    }
    for path in sorted(queues.glob("*/*.*")):
        if path.parent not in wanted.values():
            log.warning("%s is left from earlier, and no collector is named so now", path.parent)
            break
    return wanted


def load_references(config: Config) -> list[Reference]:
    """The references that the configuration names, under the names that it gives them.

    Raises:
        ConfigError: with every one that cannot be read.
    """
    references, problems = [], []
    for index, wanted in enumerate(config.references):
        try:
            reference = Reference.load(wanted.path)
        except ProfileError as error:
            problems.append(Problem(f"references[{index}].path", str(error)))
            continue
        references.append(replace(reference, model=wanted.model, version=wanted.version))
    if problems:
        raise ConfigError(problems)
    return references
