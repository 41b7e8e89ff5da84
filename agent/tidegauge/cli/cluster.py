"""A reference built by the workers of a Dask cluster, which alone know of the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import click

from tidegauge.cli.building import Part, Recipe, progress_bar
from tidegauge.cli.sources import Source
from tidegauge.profile import ProfileError

_AHEAD = 2
"""Pieces in work for each thread: enough that none waits, few enough that memory stays bounded."""

ANSWER_S = 10.0
"""How long a scheduler may take to answer, seconds."""


def build_there(sources: Sequence[Source], recipe: Recipe, scheduler: str | None) -> Part:
    """Fold pieces of the files on a running cluster, or on one of this machine's cores, and merge them.

    Pieces are merged as they come, on the workers, so that one part is all that travels here.

    Raises:
        click.ClickException: where dask is not installed, no cluster answers, or as `Part.fold`.
    """
    try:
        from dask.distributed import Client, as_completed
    except ImportError as error:
        raise click.ClickException(
            "--engine dask needs dask: pip install 'tidegauge[dask]', here and on the workers"
        ) from error
    pieces = [piece for source in sources for piece in source.pieces()]
    with _client(Client, scheduler) as client, progress_bar() as progress:
        total = sum(piece.nbytes for piece in pieces)
        threads = sum(client.nthreads().values())
        task = progress.add_task("reading", total=total, detail=f"on {threads} threads")
        waiting = iter(pieces)
        nbytes: dict[Any, int] = {}
        running = as_completed()

        def submit(count: int) -> None:
            for piece in islice(waiting, count):
                future = client.submit(_fold, piece, recipe, pure=False)
                nbytes[future.key] = piece.nbytes
                running.add(future)

        submit(_AHEAD * max(threads, 1))
        whole = None
        for future in running:
            if future.status == "error":
                raise _told(future.exception())
            if future.key in nbytes:
                progress.advance(task, nbytes.pop(future.key))
                submit(1)
            if whole is None:
                whole = future
            else:
                running.add(client.submit(_merge, whole, future, pure=False))
                whole = None
        if whole is None:
            raise click.ClickException("there is nothing to read")
        made: Part = whole.result()
    return made


def _fold(piece: Source, recipe: Recipe) -> Part:
    part = Part(recipe)
    part.fold(piece)
    return part


def _merge(one: Part, other: Part) -> Part:
    # Dask may hand the same object to a task twice: what it gave is not to be changed.
    merged = Part(one.recipe)
    merged.merge(one)
    merged.merge(other)
    return merged


@contextmanager
def _client(client: Any, scheduler: str | None) -> Iterator[Any]:
    if scheduler is None:
        from dask.distributed import LocalCluster

        # A process for each core: counting texts holds the GIL.
        with (
            LocalCluster(threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
            client(cluster) as connected,
        ):
            yield connected
        return
    try:
        connected = client(scheduler, timeout=ANSWER_S)
    except (OSError, ValueError) as error:
        raise click.ClickException(
            f"no Dask scheduler answers at {scheduler}: {error}; start one with `dask scheduler`, or leave "
            "--scheduler out for a cluster of this machine's cores"
        ) from error
    with connected:
        if not connected.nthreads():
            raise click.ClickException(f"the cluster at {scheduler} has no workers; start `dask worker`")
        yield connected


def _told(error: BaseException) -> click.ClickException:
    if isinstance(error, click.ClickException):
        return error
    if isinstance(error, ProfileError):
        return click.ClickException(str(error))
    if isinstance(error, ImportError):
        return click.ClickException(f"the workers need tidegauge too, of this version: {error}")
    return click.ClickException(f"a worker failed: {type(error).__name__}: {error}")
