"""Reads a configuration, and tells everything that is wrong with it at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from datetime import date
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
import yaml

from tidegauge.config import (
    Baseline,
    Config,
    ConfigError,
    Destination,
    Drift,
    FurtherCollector,
    Problem,
    RemoteWrite,
    Settings,
)
from tidegauge.config_listeners import listener_problems
from tidegauge.environment import read
from tidegauge.small_file import read_small
from tidegauge.units import Allowance, Duration, Size, parse_endpoint, parse_period

S = TypeVar("S", bound=Settings)

_HEADER = re.compile("[A-Za-z0-9_.-]+")  # what gRPC takes; HTTP takes some more
_SECRETIVE = re.compile(r"\.(auth|headers)\b|token|password|key")  # settings whose values are not shown
_UNREADABLE = (yaml.YAMLError, ValueError, AttributeError, LookupError, RecursionError)
"""What yaml raises; the latter where a scalar is none of its tag's, as the date 2026-13-45 is none."""

_FRAMING = {"content-type", "content-length", "content-encoding", "transfer-encoding"}


class ConfigFile:
    """A configuration that is read again and again, and parsed where the file's bytes have changed.

    Parsing takes some 15 ms of the interpreter's lock, which every few seconds the event loop would miss.
    """

    def __init__(self, path: str | Path | None, environ: Mapping[str, str]) -> None:
        self._path = path
        self._environ = environ
        self._known: tuple[bytes, Config | ConfigError] | None = None

    def read(self) -> Config:
        """As `load`. Raises ConfigError."""
        if self._path is None:
            return load(None, self._environ)
        raw = _content(self._path, pipes=self._known is None)
        if self._known is None or self._known[0] != raw:
            self._known = (raw, self._parsed(raw))
        found = self._known[1]
        if isinstance(found, ConfigError):
            raise found.with_traceback(None)
        return found

    def _parsed(self, raw: bytes) -> Config | ConfigError:
        try:
            return parse(raw, str(self._path), self._environ)
        except ConfigError as error:
            return error


def load(path: str | Path | None, environ: Mapping[str, str]) -> Config:
    """Read the configuration from a YAML file, or the defaults where `path` is None.

    The standard OTEL_* variables in `environ` fill what the file leaves unset.

    Raises:
        ConfigError: with every problem found, not only the first.
    """
    return parse(b"" if path is None else _content(path, pipes=True), str(path), environ)


def parse(text: bytes, path: str, environ: Mapping[str, str]) -> Config:
    """As `load`, of a file that has been read. Raises ConfigError, which names its `path`."""
    try:
        raw: Any = yaml.safe_load(text.decode())
    except _UNREADABLE as error:
        raise ConfigError([Problem(path, f"is not YAML: {_place(error)}")]) from None
    problems: list[Problem] = []
    config = _build(Config, {} if raw is None else raw, "", problems)
    if not problems:
        try:
            config = _with_environment(config, environ)
        except ValueError as error:
            problems.append(Problem("environment", str(error)))
    problems.extend(_contradictions(config))
    if problems:
        raise ConfigError(problems)
    return config


def _build(cls: type[S], raw: Any, path: str, problems: list[Problem]) -> S:
    if not isinstance(raw, Mapping):
        problems.append(Problem(path or "file", f"must be a mapping, not {_shown(raw, path)}"))
        raw = {}
    hints = get_type_hints(cls, include_extras=True)
    for key in raw:
        if key not in hints:
            close = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(hints)}"
            problems.append(Problem(_join(path, key), "is not a setting", hint))
    values = {}
    for field in msgspec.structs.fields(cls):
        if field.name in raw:
            values[field.name] = _value(hints[field.name], raw[field.name], _join(path, field.name), problems)
        elif field.required:
            problems.append(Problem(_join(path, field.name), "is required"))
            values[field.name] = ""
    return cls(**values)


def _value(kind: Any, raw: Any, path: str, problems: list[Problem]) -> Any:
    if isinstance(kind, type) and issubclass(kind, Settings):
        # `receivers:` with nothing below it reads as null and means the defaults.
        return _build(kind, {} if raw is None else raw, path, problems)
    item = get_args(kind)[0] if get_origin(kind) is tuple else None
    if isinstance(item, type) and issubclass(item, Settings):
        if not isinstance(raw, list):
            problems.append(Problem(path, f"must be a list, not {_shown(raw, path)}"))
            return ()
        return tuple(_build(item, one, f"{path}[{index}]", problems) for index, one in enumerate(raw))
    try:
        return _plain(kind, raw)
    except (msgspec.ValidationError, ValueError) as error:
        problems.append(Problem(path, f"{_shown(raw, path)} will not do: {error}", _hint(kind, raw)))
        return None


def _plain(kind: Any, raw: Any) -> Any:
    if kind in (Allowance, Duration, Size):
        return kind(raw)
    if get_origin(kind) is tuple and get_args(kind)[0] is Duration:
        return tuple(map(Duration, msgspec.convert(raw, list[Any])))
    return msgspec.convert(raw, kind)


def _hint(kind: Any, raw: Any) -> str:
    if str in (kind, *get_args(kind)) and isinstance(raw, int | float | date):
        return "put it in quotes"
    options = ", ".join(_options(kind))
    if get_origin(kind) is tuple and not isinstance(raw, list):
        return f"a list is written [A, B]{f', of: {options}' if options else ''}"
    return f"one of: {options}" if options else ""


def _options(kind: Any) -> Iterator[str]:
    if get_origin(kind) is Literal:
        yield from map(str, get_args(kind))
    elif isinstance(kind, type) and issubclass(kind, Enum):
        yield from map(str, kind)
    else:
        for part in get_args(kind):
            yield from _options(part)


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _content(path: str | Path, *, pipes: bool) -> bytes:
    try:
        return read_small(path, pipes=pipes)
    except OSError as error:
        raise ConfigError([Problem(str(path), f"cannot be read: {error.strerror}")]) from error


def _place(error: Exception) -> str:
    """What is wrong with a file and in which line, without the line: it may be one with a secret."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return getattr(error, "reason", type(error).__name__)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def _shown(raw: Any, path: str) -> str:
    if _SECRETIVE.search(path):
        return "what stands there"
    text = str(raw) if isinstance(raw, date) else repr(raw)
    return text if len(text) <= 40 else text[:37] + "..."


def _with_environment(config: Config, environ: Mapping[str, str]) -> Config:
    found = read(environ)
    exporters = config.exporters
    # Where the file names collectors, the variables belong to some other ones.
    if exporters.otlp.endpoint is None and not exporters.collectors:
        exporters = msgspec.structs.replace(
            exporters,
            otlp=msgspec.structs.replace(exporters.otlp, **found.otlp),
            collectors=tuple(FurtherCollector(**settings) for settings in found.collectors),
        )
    return msgspec.structs.replace(config, exporters=exporters, resource=found.resource | config.resource)


def _contradictions(config: Config) -> list[Problem]:
    problems, taken = listener_problems(config)
    drift = config.drift
    if drift.window and drift.other_windows:
        ascending = sorted({drift.window, *drift.other_windows})
        for shorter, longer in pairwise(ascending):
            if int(longer * 1e9) % int(shorter * 1e9):
                message = f"{longer:g} s is no multiple of the next shorter window, {shorter:g} s"
                problems.append(Problem("drift.other_windows", message, "for instance 5m, 1h and 24h"))
    problems.extend(_period_problems(drift))
    if drift.allowed_lateness and drift.window and drift.allowed_lateness > drift.window:
        problems.append(
            Problem("drift.allowed_lateness", "is longer than drift.window", "such rows have left the window")
        )
    health = config.health
    if health.step and health.window and not 20 <= health.window / health.step <= 5760:
        message = f"has {health.window / health.step:.0f} steps (health.step)"
        problems.append(Problem("health.window", message, "20 to 5760 of them, for instance 1h of 15s"))
    if health.max_lag > health.window / 2:
        problems.append(Problem("health.max_lag", "is longer than half of health.window"))
    names = [(reference.model, reference.version) for reference in config.references]
    for index, name in enumerate(names):
        if name in names[:index]:
            problems.append(Problem(f"references[{index}]", f"{name[0]} {name[1]} has a reference already"))
    problems.extend(_collector_problems(config, taken))
    problems.extend(_write_problems(config.exporters.remote_write, taken))
    return problems


def _period_problems(drift: Drift) -> Iterator[Problem]:
    if drift.fixed_period is not None:
        try:
            parse_period(drift.fixed_period)
        except ValueError as error:
            yield Problem("drift.fixed_period", str(error))
    elif Baseline.FIXED in (drift.other_baselines or ()):
        hint = "for instance 2026-03-02/2026-03-09"
        yield Problem("drift.fixed_period", "is to be set, as drift.other_baselines has fixed", hint)


def _collector_problems(config: Config, own: Mapping[tuple[str, int], str]) -> list[Problem]:
    problems: list[Problem] = []
    if config.exporters.otlp.endpoint is not None:
        problems += _destination_problems("exporters.otlp", config.exporters.otlp, own)
    names = ["default"]
    for index, one in enumerate(config.exporters.collectors):
        path = f"exporters.collectors[{index}]"
        if one.name in names:
            problems.append(Problem(f"{path}.name", f"{one.name} is taken", "give each collector its own"))
        names.append(one.name)
        if one.endpoint is None:
            problems.append(Problem(f"{path}.endpoint", "is required"))
        else:
            problems += _destination_problems(path, one, own)
    return problems


def _write_problems(settings: RemoteWrite, own: Mapping[tuple[str, int], str]) -> Iterator[Problem]:
    path = "exporters.remote_write"
    if settings.endpoint is not None:
        where = Destination(
            endpoint=settings.endpoint,
            protocol="http/protobuf",
            headers=settings.headers,
            bearer_token_file=settings.bearer_token_file,
        )
        hint = "write http://HOST:9090/api/v1/write, or https:// for TLS"
        for one in _destination_problems(path, where, own):
            yield one._replace(hint=hint) if one.path.endswith(".endpoint") else one
    for name in settings.labels:
        if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", name) or name.startswith("__"):
            yield Problem(f"{path}.labels", f"{name!r} is no name of a label", "letters, digits and _")
    if settings.client_key is not None and settings.client_certificate is None:
        yield Problem(f"{path}.client_key", "has no client_certificate beside it")


def _destination_problems(
    path: str, settings: Destination, own: Mapping[tuple[str, int], str]
) -> list[Problem]:
    endpoint, http = str(settings.endpoint), settings.protocol == "http/protobuf"
    scheme, separator, rest = endpoint.partition("://")
    problem, hint = "", f"write http://HOST:{4318 if http else 4317}, or https:// for TLS"
    if "@" in endpoint.removeprefix(f"{scheme}://").partition("/")[0]:
        problem = "a URL with a user and a password will not do: it would be shown"
        hint = "there are headers and bearer_token_file"
    elif not separator or scheme not in ("http", "https"):
        problem = f"{endpoint} is not a URL"
    else:
        # Over HTTP the collector may be somewhere below a path.
        authority = rest.partition("/")[0] if http else rest.rstrip("/")
        default_port = (443 if scheme == "https" else 80) if http else 4317
        try:
            host, port = parse_endpoint(authority, default_port)
        except ValueError as error:
            problem = str(error)
        else:
            if ("127.0.0.1" if host == "localhost" else host, port) in own:
                problem, hint = f"{endpoint} is this agent itself", "name the collector behind it"
    problems = [Problem(f"{path}.endpoint", problem, hint)] if problem else []
    return [*problems, *_header_problems(path, settings.headers), *_identity_problems(path, settings)]


def _identity_problems(path: str, settings: Destination) -> Iterator[Problem]:
    if (settings.client_certificate is None) != (settings.client_key is None):
        yield Problem(f"{path}.client_key", "a client certificate and its key go together")
    if settings.bearer_token_file is not None and "authorization" in map(str.lower, settings.headers):
        yield Problem(f"{path}.bearer_token_file", "authorization stands in the headers too")


def _header_problems(path: str, headers: Mapping[str, str]) -> Iterator[Problem]:
    """What would fail with each request. The values may be secrets, and are not shown."""
    for name, value in headers.items():
        if not _HEADER.fullmatch(name) or name.lower().endswith("-bin"):
            hint = "letters, digits and . _ -, not ending with -bin"
            yield Problem(f"{path}.headers", f"{name!r} is no name of a header", hint)
        elif name.lower() in _FRAMING:
            yield Problem(f"{path}.headers", f"{name} is set by the agent itself")
        elif not value.isascii() or not value.isprintable():
            yield Problem(f"{path}.headers", f"the value of {name} is not all printable ASCII")
