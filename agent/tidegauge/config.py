"""What users set: typed, strict, and explained when wrong."""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
import yaml

from tidegauge.environment import otlp_from_environment
from tidegauge.units import Duration, Size, parse_endpoint

Positive = Annotated[int, msgspec.Meta(ge=1)]
Fraction = Annotated[float, msgspec.Meta(gt=0, lt=1)]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A block of settings."""


class GrpcReceiver(Settings, frozen=True, kw_only=True):
    endpoint: str = "127.0.0.1:4317"
    max_message_size: Size = Size("64MiB")


class HttpReceiver(Settings, frozen=True, kw_only=True):
    endpoint: str = "127.0.0.1:4318"
    max_message_size: Size = Size("64MiB")


class RecordLimits(Settings, frozen=True, kw_only=True):
    max_rows: Positive = 1_000_000
    max_columns: Positive = 2_000
    max_name_length: Positive = 256
    max_dictionary_size: Size = Size("16MiB")


class Receivers(Settings, frozen=True, kw_only=True):
    grpc: GrpcReceiver = GrpcReceiver()
    http: HttpReceiver = HttpReceiver()
    records: RecordLimits = RecordLimits()


class Nvml(Settings, frozen=True, kw_only=True):
    enabled: bool = True
    interval: Duration = Duration("10s")


class Scrapers(Settings, frozen=True, kw_only=True):
    nvml: Nvml = Nvml()


class Prometheus(Settings, frozen=True, kw_only=True):
    endpoint: str = "127.0.0.1:9464"


class OtlpExporter(Settings, frozen=True, kw_only=True):
    endpoint: str | None = None
    forward: bool = True
    headers: dict[str, str] = {}
    compression: Literal["gzip", "none"] = "none"
    certificate: str | None = None
    timeout: Duration = Duration("10s")
    interval: Duration = Duration("15s")
    queue_size: Size = Size("64MiB")
    batch_size: Size = Size("4MiB")
    max_elapsed: Duration = Duration("5m")


class Exporters(Settings, frozen=True, kw_only=True):
    prometheus: Prometheus = Prometheus()
    otlp: OtlpExporter = OtlpExporter()


class PipelineSettings(Settings, frozen=True, kw_only=True):
    queue_size: Size = Size("128MiB")
    publish_interval: Duration = Duration("5s")
    stall_timeout: Duration = Duration("30s")
    drain_timeout: Duration = Duration("10s")


class IdentityAttributes(Settings, frozen=True, kw_only=True):
    """Span and resource attributes that name the model: the first one present counts."""

    model: tuple[str, ...] = (
        "model.name",
        "gen_ai.response.model",
        "gen_ai.request.model",
        "triton.model_name",
    )
    version: tuple[str, ...] = ("model.version", "triton.model_version")
    stage: tuple[str, ...] = ("deployment.environment.name", "model.stage")
    data_source: tuple[str, ...] = ("data_source", "model.data_source")


class Latency(Settings, frozen=True, kw_only=True):
    spans: Literal["requests", "all"] = "requests"
    max_series: Positive = 2_000


class Drift(Settings, frozen=True, kw_only=True):
    window: Duration = Duration("1h")
    other_windows: tuple[Duration, ...] = (Duration("5m"), Duration("24h"))
    panes: Positive = 12
    allowed_lateness: Duration = Duration("10m")
    max_future: Duration = Duration("1m")
    bins: Annotated[int, msgspec.Meta(ge=2, le=1024)] = 20
    reference_rows: Annotated[int, msgspec.Meta(ge=100)] = 5_000
    reference_memory: Size = Size("64MiB")
    min_rows: Positive = 200
    threshold: Annotated[float, msgspec.Meta(gt=0)] = 0.1
    significance: Fraction = 0.01
    false_alarm_interval: Duration = Duration("30d")
    max_identities: Positive = 100
    max_features: Positive = 1_000
    max_categories: Positive = 100


class Reference(Settings, frozen=True, kw_only=True):
    model: str
    version: str = ""
    path: str


class Log(Settings, frozen=True, kw_only=True):
    level: Literal["debug", "info", "warning", "error"] = "info"


class Config(Settings, frozen=True, kw_only=True):
    """The whole configuration; `configs/agent.yaml` shows every setting with its default."""

    receivers: Receivers = Receivers()
    scrapers: Scrapers = Scrapers()
    exporters: Exporters = Exporters()
    pipeline: PipelineSettings = PipelineSettings()
    identity: IdentityAttributes = IdentityAttributes()
    latency: Latency = Latency()
    drift: Drift = Drift()
    references: tuple[Reference, ...] = ()
    resource: dict[str, str] = {}
    state_dir: str | None = None
    log: Log = Log()


class Problem(NamedTuple):
    """One thing wrong: where (a dotted path), what, and how to mend it."""

    path: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" + (f" ({self.hint})" if self.hint else "")


class ConfigError(Exception):
    """Everything wrong with a configuration, at once."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


S = TypeVar("S", bound=Settings)


def load(path: str | Path | None, environ: Mapping[str, str]) -> Config:
    """Read the configuration from a YAML file, or the defaults where `path` is None.

    The standard OTEL_* variables in `environ` fill what the file leaves unset.

    Raises:
        ConfigError: with every problem found, not only the first.
    """
    raw: Any = {}
    if path is not None:
        try:
            raw = yaml.safe_load(Path(path).read_text())
        except OSError as error:
            raise ConfigError([Problem(str(path), f"cannot be read: {error.strerror}")]) from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError([Problem(str(path), f"is not YAML: {' '.join(str(error).split())}")]) from error
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
        problems.append(Problem(path or "file", f"must be a mapping, not {_shown(raw)}"))
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
    if get_origin(kind) is tuple and issubclass(get_args(kind)[0], Settings):
        if not isinstance(raw, list):
            problems.append(Problem(path, f"must be a list, not {_shown(raw)}"))
            return ()
        return tuple(
            _build(get_args(kind)[0], one, f"{path}[{index}]", problems) for index, one in enumerate(raw)
        )
    try:
        return _plain(kind, raw)
    except (msgspec.ValidationError, ValueError) as error:
        hint = "put it in quotes" if kind is str and isinstance(raw, int | float) else _choices(kind)
        problems.append(Problem(path, f"{_shown(raw)} will not do: {error}", hint))
        return None


def _plain(kind: Any, raw: Any) -> Any:
    if kind in (Duration, Size):
        return kind(raw)
    if get_origin(kind) is tuple and get_args(kind)[0] is Duration:
        return tuple(map(Duration, msgspec.convert(raw, list[Any])))
    return msgspec.convert(raw, kind)


def _choices(kind: Any) -> str:
    options = get_args(kind) if get_origin(kind) is Literal else ()
    if get_origin(kind) in (Union, types.UnionType):
        options = tuple(option for part in get_args(kind) for option in get_args(part))
    return f"one of: {', '.join(map(str, options))}" if options else ""


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _shown(raw: Any) -> str:
    text = repr(raw)
    return text if len(text) <= 40 else text[:37] + "..."


def _with_environment(config: Config, environ: Mapping[str, str]) -> Config:
    otlp, resource = otlp_from_environment(environ)
    given = config.exporters.otlp
    if given.endpoint is not None:
        # The file names a collector: the variables belong to some other one.
        otlp = {}
    exporters = msgspec.structs.replace(config.exporters, otlp=msgspec.structs.replace(given, **otlp))
    return msgspec.structs.replace(config, exporters=exporters, resource=resource | config.resource)


def _contradictions(config: Config) -> list[Problem]:
    problems = []
    endpoints = {
        "receivers.grpc.endpoint": config.receivers.grpc.endpoint,
        "receivers.http.endpoint": config.receivers.http.endpoint,
        "exporters.prometheus.endpoint": config.exporters.prometheus.endpoint,
    }
    taken: dict[tuple[str, int], str] = {}
    for path, text in endpoints.items():
        if text is None:
            continue  # reported already
        try:
            address = parse_endpoint(text)
        except ValueError as error:
            problems.append(Problem(path, str(error), "write HOST:PORT, for instance 127.0.0.1:4317"))
            continue
        if address[1] and address in taken:
            problems.append(Problem(path, f"{text} is taken by {taken[address]}", "give each its own port"))
        taken[address] = path
    drift = config.drift
    if drift.window and drift.other_windows:
        ascending = sorted({drift.window, *drift.other_windows})
        for shorter, longer in pairwise(ascending):
            if int(longer * 1e9) % int(shorter * 1e9):
                message = f"{longer:g} s is no multiple of the next shorter window, {shorter:g} s"
                problems.append(Problem("drift.other_windows", message, "for instance 5m, 1h and 24h"))
    if drift.allowed_lateness and drift.window and drift.allowed_lateness > drift.window:
        problems.append(
            Problem("drift.allowed_lateness", "is longer than drift.window", "such rows have left the window")
        )
    names = [(reference.model, reference.version) for reference in config.references]
    for index, name in enumerate(names):
        if name in names[:index]:
            problems.append(Problem(f"references[{index}]", f"{name[0]} {name[1]} has a reference already"))
    problems.extend(_collector_problems(config, taken))
    return problems


def _collector_problems(config: Config, own: Mapping[tuple[str, int], str]) -> list[Problem]:
    endpoint = config.exporters.otlp.endpoint
    if endpoint is None:
        return []
    path = "exporters.otlp.endpoint"
    scheme, separator, rest = endpoint.partition("://")
    if not separator or scheme not in ("http", "https"):
        return [Problem(path, f"{endpoint} is not a URL", "write http://HOST:4317, or https:// for TLS")]
    try:
        host, port = parse_endpoint(rest.rstrip("/"), default_port=4317)
    except ValueError as error:
        return [Problem(path, str(error), "write http://HOST:4317")]
    if ("127.0.0.1" if host == "localhost" else host, port) in own:
        return [Problem(path, f"{endpoint} is this agent itself", "name the collector behind it")]
    return []
