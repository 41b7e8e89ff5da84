"""What users set: typed, strict, and explained when wrong."""

from __future__ import annotations

import difflib
import enum
import types
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
import yaml

from tidegauge.environment import read
from tidegauge.units import Allowance, Duration, Size, parse_endpoint

Positive = Annotated[int, msgspec.Meta(ge=1)]
Fraction = Annotated[float, msgspec.Meta(gt=0, lt=1)]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A block of settings."""


class GrpcReceiver(Settings, frozen=True, kw_only=True):
    endpoint: str = "127.0.0.1:4317"
    max_message_size: Size = Size("64MiB")
    max_receiving: Size = Size("256MiB")
    max_connections: Positive = 4_096
    timeout: Duration = Duration("30s")
    idle_timeout: Duration = Duration("10m")


class HttpReceiver(Settings, frozen=True, kw_only=True):
    endpoint: str = "127.0.0.1:4318"
    max_message_size: Size = Size("64MiB")
    max_receiving: Size = Size("128MiB")
    max_connections: Positive = 4_096
    timeout: Duration = Duration("30s")
    idle_timeout: Duration = Duration("10m")


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


class OtlpSignal(enum.StrEnum):
    TRACES = "traces"
    METRICS = "metrics"
    LOGS = "logs"


class DiskQueue(Settings, frozen=True, kw_only=True):
    """What waits for a collector, on disk: on where `state_dir` is set and `size` is not zero."""

    size: Allowance = Allowance("1GiB")
    when_full: Literal["drop_oldest", "drop_newest"] = "drop_oldest"
    sync: Literal["interval", "never"] = "interval"
    sync_interval: Duration = Duration("1s")
    max_elapsed: Duration = Duration("1d")


class Destination(Settings, frozen=True, kw_only=True):
    """A collector that received OTLP is forwarded to."""

    endpoint: str | None = None
    protocol: Literal["grpc", "http/protobuf"] = "grpc"
    signals: tuple[OtlpSignal, ...] = tuple(OtlpSignal)
    headers: dict[str, str] = {}
    compression: Literal["gzip", "none"] = "none"
    certificate: str | None = None
    timeout: Duration = Duration("10s")
    queue_size: Size = Size("64MiB")
    batch_size: Size = Size("4MiB")
    in_flight: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    max_elapsed: Duration = Duration("5m")
    disk_queue: DiskQueue = DiskQueue()


class OtlpExporter(Destination, frozen=True, kw_only=True):
    """The collector that the agent's own metrics go to as well."""

    forward: bool = True
    interval: Duration = Duration("15s")


class FurtherCollector(Destination, frozen=True, kw_only=True):
    name: Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9_-]{0,62}$")]


class Exporters(Settings, frozen=True, kw_only=True):
    prometheus: Prometheus = Prometheus()
    otlp: OtlpExporter = OtlpExporter()
    collectors: tuple[FurtherCollector, ...] = ()


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


class Timings(Settings, frozen=True, kw_only=True):
    """Span attributes that tell parts of a request: the first one present counts. One for each Mark."""

    time_to_first_token: tuple[str, ...] = (
        "gen_ai.latency.time_to_first_token",
        "gen_ai.response.time_to_first_chunk",
    )
    time_per_output_token: tuple[str, ...] = ("time_per_token",)
    queue: tuple[str, ...] = ("gen_ai.latency.time_in_queue", "queue_time")
    prefill: tuple[str, ...] = ("gen_ai.latency.time_in_model_prefill",)
    decode: tuple[str, ...] = ("gen_ai.latency.time_in_model_decode",)
    inference: tuple[str, ...] = ("gen_ai.latency.time_in_model_inference", "inference_time")
    validation: tuple[str, ...] = ("validation_time",)
    total: tuple[str, ...] = ("gen_ai.latency.e2e", "total_time")
    input_tokens: tuple[str, ...] = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
    output_tokens: tuple[str, ...] = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
    cold_start: tuple[str, ...] = ("faas.coldstart",)


class Latency(Settings, frozen=True, kw_only=True):
    spans: Literal["requests", "all"] = "requests"
    max_series: Positive = 2_000
    exemplars: bool = True
    timings: Timings = Timings()


class ReceivedMetrics(Settings, frozen=True, kw_only=True):
    enabled: bool = True
    max_series: Positive = 10_000
    max_metrics: Positive = 1_000
    stale_after: Duration = Duration("5m")


class Stages(Settings, frozen=True, kw_only=True):
    enabled: bool = True
    linger: Duration = Duration("5s")
    max_duration: Duration = Duration("1m")
    max_spans: Annotated[int, msgspec.Meta(ge=1024, le=2**24)] = 65_536
    max_series: Positive = 2_000
    cold_start_spans: tuple[str, ...] = ("model.load", "load_model")


class Logs(Settings, frozen=True, kw_only=True):
    max_series: Positive = 1_000


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
    quality_margin: Fraction = 0.01
    stale_after: Duration = Duration("1m")
    remembered_ids: Annotated[int, msgspec.Meta(ge=0)] = 65_536
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
    metrics: ReceivedMetrics = ReceivedMetrics()
    stages: Stages = Stages()
    logs: Logs = Logs()
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
    if kind in (Allowance, Duration, Size):
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


def _destination_problems(
    path: str, settings: Destination, own: Mapping[tuple[str, int], str]
) -> list[Problem]:
    endpoint, http = str(settings.endpoint), settings.protocol == "http/protobuf"
    scheme, separator, rest = endpoint.partition("://")
    problem, hint = "", f"write http://HOST:{4318 if http else 4317}, or https:// for TLS"
    if not separator or scheme not in ("http", "https"):
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
    return [Problem(f"{path}.endpoint", problem, hint)] if problem else []
