"""Files of rows, wherever pyarrow can read them: folders, globs and object stores, one batch at a time."""

from __future__ import annotations

import fnmatch
import glob
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

import click
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pyarrow import csv, json, orc

FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".json": "json",
    ".ndjson": "json",
    ".jsonl": "json",
    ".orc": "orc",
    ".arrow": "ipc",
    ".feather": "ipc",
    ".arrows": "stream",
}
SCHEMES = ("s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss", "file")

BATCH_ROWS = 65_536
PIECE_BYTES = 64 << 20
"""How much of a Parquet file is one piece of work, compressed; one row group at least."""

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+)://")
_WILD = re.compile(r"[*?\[]")
_NULL = "__HIVE_DEFAULT_PARTITION__"

_REMEDIES = (
    (r"libjvm|libhdfs", "HDFS needs a Java runtime and Hadoop: set JAVA_HOME, HADOOP_HOME and CLASSPATH"),
    (
        r"ACCESS.?DENIED|HTTP status 403|InvalidAccessKeyId|SignatureDoesNotMatch|UNAUTHENTICATED",
        "check the credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE for s3://, "
        "GOOGLE_APPLICATION_CREDENTIALS for gs:// (gs://anonymous@BUCKET for a public one)",
    ),
    (r"HTTP status 301|PermanentRedirect|different region", "name the bucket's region: s3://…?region=REGION"),
    (
        r"NETWORK_CONNECTION|[Cc]onnection refused|[Cc]ould not resolve|curlCode",
        "is the endpoint right? Another one is named as s3://…?endpoint_override=HOST:PORT&scheme=http",
    ),
    (r"CSV conversion error", "a type is guessed from a file's first MiB; write the rows as Parquet instead"),
)


@dataclass(frozen=True, slots=True)
class Source:
    """A file of rows, or some row groups of one. `keys` are columns that its folders tell: NAME=VALUE."""

    filesystem: Any
    path: str
    kind: str
    nbytes: int
    keys: tuple[tuple[str, str | None], ...] = ()
    row_groups: tuple[int, ...] | None = None

    def batches(self, only: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows, at most BATCH_ROWS at a time; of the columns `only` those that it has.

        Held at once is one row group, stripe, batch or block of the file, whichever its format has:
        pyarrow's scanner, which reads ahead, was seen to hold a whole file.
        """
        with self._told():
            for rows in _READERS[self.kind](self, only):
                for start in range(0, rows.num_rows, BATCH_ROWS):
                    whole = self._with_keys(rows.slice(start, BATCH_ROWS))
                    names = [name for name in whole.schema.names if only is None or name in only]
                    yield whole.select(names)

    def pieces(self) -> list[Source]:
        """Itself in parts of about PIECE_BYTES that can be read apart from each other."""
        if self.kind != "parquet" or self.nbytes < 2 * PIECE_BYTES:
            return [self]
        with self._told(), self._open() as file:
            about = pq.ParquetFile(file).metadata
            sizes = [about.row_group(group).total_byte_size for group in range(about.num_row_groups)]
        # Row groups tell their size before compression.
        wanted = sum(sizes) * PIECE_BYTES / self.nbytes
        ends = np.cumsum(sizes) // wanted
        groups = [np.flatnonzero(ends == piece).tolist() for piece in np.unique(ends)]
        return [
            replace(self, nbytes=self.nbytes // len(groups), row_groups=tuple(inside)) for inside in groups
        ]

    def rows(self) -> int | None:
        """How many, where the format tells without reading them."""
        if self.kind != "parquet":
            return None
        with self._told(), self._open() as file:
            return pq.ParquetFile(file).metadata.num_rows

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise refusal(error, self.path) from error

    def _open(self) -> Any:
        return self.filesystem.open_input_file(self.path)

    def _stream(self) -> Any:
        """Its bytes from the start, inflated where the name says that they are compressed."""
        return self.filesystem.open_input_stream(self.path)

    def _with_keys(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        for name, text in self.keys:
            if name not in rows.schema.names:
                codes = pa.repeat(pa.scalar(None if text is None else 0, pa.int32()), rows.num_rows)
                values = pa.array([text or ""])
                rows = rows.append_column(name, pa.DictionaryArray.from_arrays(codes, values))
        return rows


Rows = Iterator[pa.RecordBatch]


def _parquet(source: Source, only: Sequence[str] | None) -> Rows:
    with source._open() as file:
        # Reading a row group's columns in one go spares an object store many small requests.
        parquet = pq.ParquetFile(file, pre_buffer=True)
        names = None if only is None else list(only)
        groups = range(parquet.num_row_groups) if source.row_groups is None else source.row_groups
        for group in groups:
            yield from parquet.iter_batches(batch_size=BATCH_ROWS, row_groups=[group], columns=names)


def _orc(source: Source, only: Sequence[str] | None) -> Rows:
    with source._open() as file:
        stripes = orc.ORCFile(file)
        columns = None if only is None else [name for name in stripes.schema.names if name in only]
        for number in range(stripes.nstripes):
            yield stripes.read_stripe(number, columns)


def _ipc(source: Source, only: Sequence[str] | None) -> Rows:
    with source._open() as file:
        batches = pa.ipc.open_file(file)
        for number in range(batches.num_record_batches):
            yield batches.get_batch(number)


def _arrow_stream(source: Source, only: Sequence[str] | None) -> Rows:
    with source._stream() as file:
        yield from pa.ipc.open_stream(file)


def _csv(source: Source, only: Sequence[str] | None) -> Rows:
    with source._stream() as file:
        yield from csv.open_csv(file)


def _json(source: Source, only: Sequence[str] | None) -> Rows:
    with source._stream() as file:
        yield from json.open_json(file)


_READERS: dict[str, Callable[[Source, Sequence[str] | None], Rows]] = {
    "parquet": _parquet,
    "orc": _orc,
    "ipc": _ipc,
    "stream": _arrow_stream,
    "csv": _csv,
    "json": _json,
}


def find(data: Sequence[str], *, keys: bool = False) -> list[Source]:
    """The files that paths, folders, globs and URIs name, in the order of `data` and of their paths.

    With `keys` each folder called NAME=VALUE, as Hive and Spark write them, is a column of text.

    Raises:
        click.ClickException: for what cannot be found or read, with what to do about it.
    """
    found: list[Source] = []
    for text in data:
        scheme = _URI.match(text)
        try:
            inside = _remote(text, scheme[1]) if scheme else _local(text)
        except (pa.ArrowException, OSError) as error:
            raise refusal(error, text) from error
        if not inside:
            raise click.ClickException(
                f"{safe(text)}: no such file, and no {', '.join(FORMATS)} files under it"
            )
        found += inside
    for source in found:
        if not source.kind:
            raise click.ClickException(f"{source.path}: the name must end in one of {', '.join(FORMATS)}")
    return [replace(source, keys=_keys(source.path)) for source in found] if keys else found


def safe(text: str) -> str:
    """The text without the keys that a URI may hold.

    >>> safe("s3://ME:SECRET@lake/train")
    's3://…@lake/train'
    """
    return re.sub(r"(?<=://)[^/@\s]+:[^/@\s]*@", "…@", text)


def refusal(error: Exception, where: str = "") -> click.ClickException:
    """An error of pyarrow's as one line, with its remedy where one is known."""
    text = safe(" ".join(str(error).split("\n")[0].split()) or type(error).__name__)
    remedy = next((hint for sign, hint in _REMEDIES if re.search(sign, str(error))), "")
    start = f"{safe(where)}: " if where and where not in text else ""
    return click.ClickException(f"{start}{text}" + (f"\nHint: {remedy}" if remedy else ""))


def untold_key(found: Sequence[Source]) -> str:
    """The name in a folder NAME=VALUE that was not asked to be a column; "" where there is none."""
    return next((name for source in found for name, _ in _keys(source.path)), "")


def _local(text: str) -> list[Source]:
    filesystem = pafs.LocalFileSystem()
    paths = [text] if filesystem.get_file_info(text).type != pafs.FileType.NotFound else None
    return _expand(filesystem, paths or sorted(glob.glob(text, recursive=True)))


def _remote(text: str, scheme: str) -> list[Source]:
    if scheme.lower() not in SCHEMES:
        known = ", ".join(f"{one}://" for one in SCHEMES)
        raise click.ClickException(
            f"{safe(text)}: {scheme}:// is not known; there are {known} and local paths"
        )
    # A glob's signs mean something in a URI: they stay aside while pyarrow reads the rest.
    base, mark, query = text.partition("?") if re.search(r"\?[\w]+=", text) else (text, "", "")
    wild = _WILD.search(base)
    stem = base[: base.rfind("/", 0, wild.start())] if wild else base
    filesystem, root = pafs.FileSystem.from_uri(stem + mark + query)
    if not wild:
        return _expand(filesystem, [root])
    pattern = root.rstrip("/") + base[len(stem) :]
    inside = filesystem.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
    return _expand(filesystem, sorted(one.path for one in inside if _matches(one.path, pattern)))


def _matches(path: str, pattern: str) -> bool:
    """As `glob` does: a star stays within a folder, two stars are any folders."""
    return _walk(path.split("/"), pattern.split("/"))


def _walk(parts: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_walk(parts[skipped:], patterns[1:]) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], patterns[0]) and _walk(parts[1:], patterns[1:])


def _expand(filesystem: Any, paths: Sequence[str]) -> list[Source]:
    found = []
    for info in filesystem.get_file_info(list(paths)) if paths else ():
        if info.type == pafs.FileType.File:
            found.append(_source(filesystem, info))
        elif info.type == pafs.FileType.Directory:
            under = filesystem.get_file_info(pafs.FileSelector(info.path, recursive=True))
            named = [_source(filesystem, one) for one in under if _is_data(one, info.path)]
            found += sorted((one for one in named if one.kind), key=lambda one: one.path)
    return found


def _is_data(info: Any, root: str) -> bool:
    """Not what other programs leave beside the rows: _SUCCESS, .crc, _temporary/…"""
    parts = info.path[len(root) :].split("/")
    return info.type == pafs.FileType.File and not any(part.startswith(("_", ".")) for part in parts)


def _source(filesystem: Any, info: Any) -> Source:
    kind = next((kind for ending, kind in FORMATS.items() if info.path.lower().endswith(ending)), "")
    return Source(filesystem, info.path, kind, info.size or 0)


def _keys(path: str) -> tuple[tuple[str, str | None], ...]:
    pairs = (part.split("=", 1) for part in path.split("/")[:-1] if "=" in part)
    return tuple((unquote(name), None if text == _NULL else unquote(text)) for name, text in pairs)
