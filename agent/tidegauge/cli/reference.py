"""`tidegauge reference`: references from files, and on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from tidegauge.cli import sources
from tidegauge.cli.building import Recipe, build_here
from tidegauge.cli.cluster import build_there
from tidegauge.layout import Kind
from tidegauge.profile import Profile, ProfileError, Reference


def build_reference(
    data: Sequence[str],
    recipe: Recipe,
    *,
    model: str,
    version: str,
    output: Path,
    keys: bool,
    dask: bool,
    scheduler: str | None,
) -> None:
    """Stream the files into a reference and write it, with a progress bar on the terminal.

    `keys`: folders called NAME=VALUE are columns. With `dask` the files are read by the workers of the
    cluster at `scheduler`, or by this machine's cores.

    Raises:
        click.ClickException: for files that cannot be found, read or profiled.
    """
    found = sources.find(data, keys=keys)
    part = build_there(found, recipe, scheduler) if dask else build_here(found, recipe)
    for name in sorted({*recipe.categorical, *recipe.ignore} - part.names):
        raise click.ClickException(f"no column is called {name!r}; there are {', '.join(sorted(part.names))}")
    try:
        made = part.builder.build(model, version, "file")
        made.save(output)
    except ProfileError as error:
        raise click.ClickException(str(error)) from error
    columns = len(made.profiles) + len(made.embeddings)
    click.echo(f"{output}: {made.rows} rows, {columns} columns of {model} {version}".rstrip())
    if not keys and (name := sources.untold_key(found)):
        click.echo(f"Hint: folders are called {name}=…; --partitions makes that a column too", err=True)


def show_reference(file: Path) -> None:
    """Print a reference's columns as a table.

    Raises:
        click.ClickException: where the file is none.
    """
    try:
        shown = Reference.load(file)
    except ProfileError as error:
        raise click.ClickException(str(error)) from error
    table = Table(title=f"{shown.model} {shown.version}: {shown.rows} rows".replace(" :", ":"))
    for heading in ("column", "role", "kind", "bins", "missing", "values"):
        table.add_column(heading, overflow="fold")
    for profile in shown.profiles:
        missing = f"{profile.missing / shown.rows:.2%}"
        table.add_row(
            profile.name, profile.role, profile.kind, str(len(profile.counts)), missing, _values(profile)
        )
    for embedding in shown.embeddings:
        its = embedding.summary
        missing = f"{embedding.missing / shown.rows:.2%}"
        told = f"{len(its.mean)} components, from {its.rows} rows, bandwidth {its.bandwidth:.6g}"
        table.add_row(embedding.name, embedding.role, Kind.EMBEDDING, "", missing, told)
    Console().print(table)


def _values(profile: Profile) -> str:
    if profile.kind is Kind.CATEGORICAL:
        shown = ", ".join(profile.categories[:5])
        more = len(profile.categories) - 5
        return f"{shown}, and {more} more" if more > 0 else shown
    if not profile.rows:
        return "none"
    middle = (
        profile.edges[np.searchsorted(np.cumsum(profile.counts), profile.rows / 2)]
        if len(profile.edges)
        else profile.center
    )
    return f"{profile.lowest:.6g} to {profile.highest:.6g}, median about {middle:.6g}"
