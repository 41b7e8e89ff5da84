"""Rows into a reference: here, or on the workers of a cluster, with the same result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tidegauge.cli.sources import Source
from tidegauge.layout import LayoutError, layout_of
from tidegauge.profile import ProfileError
from tidegauge.reference import ReferenceBuilder


class Recipe(NamedTuple):
    """How the columns are profiled, and which are not."""

    bins: int
    max_categories: int
    categorical: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()


class Part:
    """What came of some of the rows: their counts, and the columns met by name."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.builder = ReferenceBuilder(
            bins=recipe.bins, max_categories=recipe.max_categories, categorical=recipe.categorical
        )
        self.names: set[str] = set()

    def fold(self, source: Source, told: Callable[[int], None] = lambda rows: None) -> None:
        """Add the rows of a file; `told` hears how many there are in all after each batch.

        Raises:
            click.ClickException: for what cannot be read or profiled.
        """
        try:
            for rows in source.batches():
                self.names.update(rows.schema.names)
                kept = rows.select([name for name in rows.schema.names if name not in self.recipe.ignore])
                self.builder.update(kept, layout_of(kept.schema))
                told(self.builder.rows)
        except LayoutError as error:
            raise click.ClickException(
                f"{source.path}: {error}; or leave it out with --ignore COLUMN"
            ) from error
        except ProfileError as error:
            raise click.ClickException(f"{source.path}: {error}") from error

    def merge(self, other: Part) -> None:
        """Add what another part has; it is not to be used any more."""
        self.builder.merge(other.builder)
        self.names |= other.names


def build_here(sources: Sequence[Source], recipe: Recipe) -> Part:
    """Fold the files one after the other, with a progress bar.

    Raises:
        click.ClickException: as `Part.fold`.
    """
    part = Part(recipe)
    with progress_bar() as progress:
        task = progress.add_task("reading", total=sum(source.nbytes for source in sources), detail="")
        done = 0
        for source in sources:
            before, rows = part.builder.rows, source.rows()

            def told(now: int, done: int = done, before: int = before, rows: int | None = rows) -> None:
                share = (now - before) / rows if rows else 0.0
                progress.update(task, completed=done + share * source.nbytes, detail=f"{now:,} rows")  # noqa: B023

            part.fold(source, told)
            done += source.nbytes
            progress.update(task, completed=done)
    return part


def progress_bar() -> Progress:
    """On the standard error, so that the output stays what was asked for."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %  {task.fields[detail]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
