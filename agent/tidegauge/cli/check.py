"""`tidegauge check`: what a configuration comes to with the files that it names, and as a reload."""

from __future__ import annotations

import click

from tidegauge.app import destinations, load_references
from tidegauge.changes import changes, fingerprint, restarts
from tidegauge.config import Config, Problem
from tidegauge.config_listeners import listeners
from tidegauge.exporters.channel import Collector
from tidegauge.exporters.write_channel import WriteChannel
from tidegauge.listening.door import Door, exposed


def check_files(config: Config) -> None:
    """Read the files that a configuration names.

    Raises:
        ConfigError: with those that cannot be read.
    """
    load_references(config)
    for path, listener in listeners(config).items():
        Door(listener, path)
    for path, settings in destinations(config).values():
        Collector(settings, path)
    if config.exporters.remote_write.endpoint is not None:
        WriteChannel(config.exporters.remote_write)


def warnings(config: Config) -> list[Problem]:
    """What holds, and is worth a second thought."""
    return exposed(listeners(config))


def tell_changes(config: Config, running: Config | None) -> bool:
    """Print the hash of a configuration, and what it changes; whether an agent could take it as it runs."""
    click.echo(f"hash: {fingerprint(config)}")
    if running is None:
        return True
    problems = restarts(running, config)
    fixed = {problem.path for problem in problems}
    for path in changes(running, config):
        if path not in fixed:
            click.echo(f"changes: {path}")
    for problem in problems:
        click.echo(f"needs a restart: {problem.path}: {problem.message}")
    return not problems
