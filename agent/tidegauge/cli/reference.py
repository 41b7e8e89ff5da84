"""`tidegauge reference`: references from files, and on the screen."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from tidegauge.layout import Kind, LayoutError, layout_of
from tidegauge.profile import Profile, ProfileError, Reference
from tidegauge.reference import ReferenceBuilder

_FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".arrow": "ipc",
    ".feather": "ipc",
    ".arrows": "stream",
}


def build_reference(
    data: Sequence[str],
    *,
    model: str,
    version: str,
    output: Path,
    bins: int,
    max_categories: int,
    categorical: Sequence[str],
    ignore: Sequence[str],
) -> None:
    """Stream the files into a reference and write it, with a progress bar on the terminal.

    Raises:
        click.ClickException: for files that cannot be found, read or profiled.
    """
    files = _files(data)
    builder = ReferenceBuilder(bins=bins, max_categories=max_categories, categorical=categorical)
    named = {*categorical, *ignore}
    try:
        with _progress() as progress:
            task = progress.add_task("reading", total=sum(file.stat().st_size for file in files), rows=0)
            for file in files:
                for rows in _batches(file):
                    named -= set(rows.schema.names)
                    kept = rows.select([name for name in rows.schema.names if name not in ignore])
                    builder.update(kept, layout_of(kept.schema))
                    progress.update(task, rows=builder.rows)
                progress.advance(task, file.stat().st_size)
        if named:
            raise click.ClickException(f"no column is called {min(named)!r}")
        made = builder.build(model, version, "file")
        made.save(output)
    except LayoutError as error:
        raise click.ClickException(f"{error}; or leave it out with --ignore COLUMN") from error
    except (ProfileError, pa.ArrowException, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{output}: {made.rows} rows, {len(made.profiles)} columns of {model} {version}".rstrip())


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


def _files(data: Sequence[str]) -> list[Path]:
    found: list[Path] = []
    for text in data:
        path = Path(text)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix in _FORMATS and p.is_file())
        elif path.exists():
            inside = [path]
        else:
            inside = [Path(match) for match in sorted(glob.glob(text, recursive=True))]
        if not inside:
            raise click.ClickException(f"{text}: no such file, and no {', '.join(_FORMATS)} files under it")
        found += inside
    unknown = [file for file in found if file.suffix not in _FORMATS]
    if unknown:
        raise click.ClickException(f"{unknown[0]}: the name must end in one of {', '.join(_FORMATS)}")
    return found


def _batches(file: Path) -> Iterator[pa.RecordBatch]:
    kind = _FORMATS[file.suffix]
    if kind == "stream":
        with pa.memory_map(str(file)) as source:
            yield from pa.ipc.open_stream(source)
        return
    formats: dict[str, Any] = {
        "parquet": ds.ParquetFileFormat(),
        "csv": ds.CsvFileFormat(),
        "ipc": ds.IpcFileFormat(),
    }
    dataset: Any = ds.dataset(file, format=formats[kind])
    # Few batches ahead: the memory stays that of a few row groups, however large the file.
    yield from dataset.to_batches(batch_size=65_536, batch_readahead=2, fragment_readahead=1)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %  {task.fields[rows]:,} rows"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
