"""A snapshot of a running agent, or a saved one, as metrics again."""

from __future__ import annotations

import math
import ssl
from collections.abc import Iterable
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import click
import msgspec

from tidegauge.metric import Attributes, Kind, Metric, Number, Table
from tidegauge.snapshot import Snapshot

PAGE = "/api/v1/snapshot"

_PREFIXES = ("feature.", "prediction.", "model.", "reference.")


class _Number(msgspec.Struct):
    attributes: Attributes
    value: float | None  # null is NaN or an infinity, for which JSON has no word


class _Metric(msgspec.Struct):
    name: str
    kind: Kind
    unit: str
    description: str
    points: msgspec.Raw


class _Table(msgspec.Struct):
    attributes: Attributes
    columns: tuple[str, ...]
    values: dict[str, tuple[float | None, ...]]


class _Snapshot(msgspec.Struct):
    generation: int
    time_ns: int
    metrics: list[_Metric]
    tables: list[_Metric] = []


def fetch(url: str, token_file: Path | None = None, ca_file: Path | None = None) -> bytes:
    """The snapshot of the agent whose pages are at `url`, shown a token where they want one.

    Raises:
        click.ClickException: where none answers, or a file cannot be read.
    """
    if not url.startswith(("http://", "https://")):
        raise click.ClickException(f"{url}: a URL starts with http:// or https://")
    address = url if url.endswith(PAGE) else url.rstrip("/") + PAGE
    request = Request(address)  # noqa: S310 - the scheme was looked at
    try:
        context = None if ca_file is None else ssl.create_default_context(cafile=ca_file)
        if token_file is not None:
            # The token's last one, which is the newest where an old one is still good.
            request.add_header("Authorization", f"Bearer {token_file.read_text().split()[-1]}")
    except (OSError, IndexError) as error:
        raise click.ClickException(f"--token-file or --ca-file cannot be read: {error}") from error
    try:
        with urlopen(request, timeout=10, context=context) as answer:  # noqa: S310 - as above
            return bytes(answer.read())
    except HTTPError as error:
        with error:
            if error.code == HTTPStatus.UNAUTHORIZED:
                raise click.ClickException(f"{address} wants a token: --token-file names its file") from error
            raise click.ClickException(
                f"{address} answers {error.code}: no agent's pages are there"
            ) from error
    except (URLError, HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise click.ClickException(
                f"{url} shows a certificate that is not trusted here ({reason.verify_message}): --ca-file "
                "names the PEM of its CA"
            ) from error
        raise click.ClickException(
            f"no agent answers at {url} ({reason}); is it running? --url takes where its pages are, "
            "exporters.prometheus.endpoint in its configuration"
        ) from error


def load(path: Path) -> bytes:
    """A saved snapshot.

    Raises:
        click.ClickException: where it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise click.ClickException(f"{path} cannot be read: {error.strerror}") from error


def decode(body: bytes, where: str) -> Snapshot:
    """What a snapshot says of drift: its gauges and its tables.

    Raises:
        click.ClickException: where it is none.
    """
    try:
        told = msgspec.json.decode(body, type=_Snapshot)
        metrics = tuple(
            Metric(one.name, one.kind, one.unit, one.description, _numbers(one.points))
            for one in told.metrics
            if one.kind is Kind.GAUGE and one.name.startswith(_PREFIXES)
        )
        tables = tuple(
            Metric(one.name, one.kind, one.unit, one.description, _tables(one.points)) for one in told.tables
        )
    except msgspec.DecodeError as error:
        raise click.ClickException(
            f"{where} is no snapshot: {error}; save one with `curl -s http://127.0.0.1:9464{PAGE}`"
        ) from error
    return Snapshot(told.generation, told.time_ns, metrics, tables)


def _tables(points: msgspec.Raw) -> tuple[Table, ...]:
    told: Iterable[_Table] = msgspec.json.decode(points, type=list[_Table])
    return tuple(
        Table(
            one.attributes, one.columns, {name: tuple(map(_number, row)) for name, row in one.values.items()}
        )
        for one in told
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _numbers(points: msgspec.Raw) -> tuple[Number, ...]:
    told: Iterable[_Number] = msgspec.json.decode(points, type=list[_Number])
    return tuple(Number(one.attributes, _number(one.value)) for one in told)
