"""`tidegauge gpu record`: what NVML answers on this machine, in a file."""

from __future__ import annotations

from pathlib import Path

import click

from tidegauge.scrapers.nvidia_smi import Difference
from tidegauge.scrapers.recorded import record
from tidegauge.scrapers.recording import Recording, save


def record_gpus(output: Path, polls: int, interval_s: float) -> None:
    """Record and write, and print how nvidia-smi and the readings agree.

    Exits with 1 where there is nothing to record.
    """
    differences: list[Difference] = []
    try:
        recording = record(polls, interval_s, differences.extend)
    except Exception as error:
        # pynvml's errors have no home here.
        if not isinstance(error, OSError) and type(error).__module__ != "pynvml":
            raise
        click.echo(f"error: nothing to record: {error}", err=True)
        raise click.exceptions.Exit(1) from None
    save(recording, output)
    click.echo(f"{output}: {_size(recording)}, {recording.polls} polls, origin {recording.origin}")
    if recording.origin == "stub":
        click.echo("this is the C library of the tests: the recording is of no GPU", err=True)
    _print(differences)


def _size(recording: Recording) -> str:
    answers = sum(one.times for answers in recording.calls.values() for one in answers)
    return f"{len(recording.calls)} calls, {answers} answers"


def _print(differences: list[Difference]) -> None:
    if not differences:
        click.echo("nvidia-smi is not there, or told nothing to compare with")
        return
    click.echo(f"{'nvidia-smi':40} {'it said':>12} {'was read':>12}   (furthest apart, by GPU)")
    worst: dict[tuple[str, str], Difference] = {}
    for one in differences:
        key = (one.uuid, one.column)
        if key not in worst or abs(one.told - one.read) > abs(worst[key].told - worst[key].read):
            worst[key] = one
    for one in worst.values():
        mark = "" if one.agrees else "   DIFFERS"
        click.echo(f"{one.column:40} {one.told:12.6g} {one.read:12.6g}   {one.uuid}{mark}")
