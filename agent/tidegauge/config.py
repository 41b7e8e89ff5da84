"""What users set, typed and strict, and what can be wrong with it."""

from __future__ import annotations

import enum
from typing import Annotated, Literal, NamedTuple

import msgspec

from tidegauge.units import Allowance, Duration, Size

Positive = Annotated[int, msgspec.Meta(ge=1)]
Natural = Annotated[int, msgspec.Meta(ge=0)]
Fraction = Annotated[float, msgspec.Meta(gt=0, lt=1)]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A block of settings."""


class Tls(Settings, frozen=True, kw_only=True):
    """PEM files of a listener: TLS where there is a certificate, mTLS where there is a CA of clients."""

    cert_file: str | None = None
    key_file: str | None = None
    client_ca_file: str | None = None


class Auth(Settings, frozen=True, kw_only=True):
    """Files of what opens a listener: a token a line, and USER:PASSWORD a line."""

    bearer_token_file: str | None = None
    basic_auth_file: str | None = None


class Listener(Settings, frozen=True, kw_only=True):
    """What everything that listens has."""

    endpoint: str
    socket_mode: Annotated[str, msgspec.Meta(pattern="^0?[0-7]{3}$")] = "0660"
    tls: Tls = Tls()
    auth: Auth = Auth()


class GrpcReceiver(Listener, frozen=True, kw_only=True):
    endpoint: str = "127.0.0.1:4317"
    max_message_size: Size = Size("64MiB")
    max_receiving: Size = Size("256MiB")
    max_connections: Positive = 4_096
    max_connections_per_peer: Natural = 0
    max_calls_per_peer: Natural = 0
    timeout: Duration = Duration("30s")
    idle_timeout: Duration = Duration("10m")


class HttpReceiver(Listener, frozen=True, kw_only=True):
    endpoint: str = "127.0.0.1:4318"
    max_message_size: Size = Size("64MiB")
    max_receiving: Size = Size("128MiB")
    max_receiving_per_peer: Allowance = Allowance("0B")
    max_connections: Positive = 4_096
    max_connections_per_peer: Natural = 0
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


class GpuModel(Settings, frozen=True, kw_only=True):
    """The model that runs on a GPU: on that with this UUID, or with this index in NVML's order."""

    gpu: int | str
    model: str
    version: str = ""


class Nvml(Settings, frozen=True, kw_only=True):
    enabled: bool = True
    interval: Duration = Duration("10s")
    max_processes: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 32
    models: tuple[GpuModel, ...] = ()
    demo: bool = False


class Scrapers(Settings, frozen=True, kw_only=True):
    nvml: Nvml = Nvml()


class Prometheus(Listener, frozen=True, kw_only=True):
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
    client_certificate: str | None = None
    client_key: str | None = None
    bearer_token_file: str | None = None
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


class RemoteWrite(Settings, frozen=True, kw_only=True):
    """A Prometheus, or a long-term storage, that the agent's page is written to."""

    endpoint: str | None = None
    version: Literal["1.0", "2.0"] = "1.0"
    interval: Duration = Duration("15s")
    timeout: Duration = Duration("10s")
    labels: dict[str, str] = {}
    headers: dict[str, str] = {}
    bearer_token_file: str | None = None
    certificate: str | None = None
    client_certificate: str | None = None
    client_key: str | None = None
    queue_size: Size = Size("16MiB")
    native_histograms: bool = False
    stale_markers: bool = True


class Exporters(Settings, frozen=True, kw_only=True):
    prometheus: Prometheus = Prometheus()
    otlp: OtlpExporter = OtlpExporter()
    collectors: tuple[FurtherCollector, ...] = ()
    remote_write: RemoteWrite = RemoteWrite()


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


class Multivariate(Settings, frozen=True, kw_only=True):
    """What is told of several columns together, and of embeddings."""

    sample_rows: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 1_000
    interval: Duration = Duration("1m")
    auc_threshold: Annotated[float, msgspec.Meta(ge=0.5, lt=1)] = 0.6
    correlation: Fraction = 0.7
    outliers: bool = False
    max_embeddings: Positive = 8
    mmd_threshold: Annotated[float, msgspec.Meta(gt=0)] = 0.1


class Health(Settings, frozen=True, kw_only=True):
    enabled: bool = True
    step: Duration = Duration("15s")
    window: Duration = Duration("1h")
    max_lag: Duration = Duration("5m")
    max_models: Positive = 20


class Detector(enum.StrEnum):
    ADWIN = "adwin"
    PAGE_HINKLEY = "page_hinkley"
    DDM = "ddm"
    EDDM = "eddm"
    HDDM_A = "hddm_a"


class Baseline(enum.StrEnum):
    """Rows of the stream itself that a window is compared with, beside its reference."""

    FIXED = "fixed"
    ROLLING = "rolling"
    SEASONAL = "seasonal"


class Adaptive(Settings, frozen=True, kw_only=True):
    """Thresholds that a column's own scores give."""

    use: Literal["none", "show", "verdict"] = "none"
    quantile: Fraction = 0.99
    period: Duration = Duration("7d")


Statistic = Literal[
    "psi",
    "js",
    "hellinger",
    "total_variation",
    "l_infinity",
    "chi2",
    "g",
    "ks",
    "cramer_von_mises",
    "anderson_darling",
    "wasserstein",
    "wasserstein_normed",
    "mean_shift",
    "variance_shift",
]
"""As `stats.comparison.STATISTICS`, which takes numba to import."""


class Slices(Settings, frozen=True, kw_only=True):
    columns: tuple[str, ...] = ()
    max_columns: Annotated[int, msgspec.Meta(ge=0)] = 3
    max_values: Positive = 10
    worst: Annotated[int, msgspec.Meta(ge=0)] = 5
    panes: Positive = 4


class Drift(Settings, frozen=True, kw_only=True):
    window: Duration = Duration("1h")
    other_windows: tuple[Duration, ...] = ()
    other_windows_statistics: tuple[Statistic, ...] = ("psi",)
    panes: Positive = 12
    slices: Slices = Slices()
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
    detectors: tuple[Detector, ...] = (Detector.ADWIN,)
    unseen_categories: Annotated[int, msgspec.Meta(ge=0, le=32)] = 5
    remembered_ids: Annotated[int, msgspec.Meta(ge=0)] = 65_536
    max_identities: Positive = 100
    max_features: Positive = 1_000
    max_categories: Positive = 100
    checkpoint_interval: Duration = Duration("1m")
    other_baselines: tuple[Baseline, ...] = ()
    fixed_period: str | None = None
    rolling_period: Duration = Duration("7d")
    seasonal_weeks: Annotated[int, msgspec.Meta(ge=2, le=26)] = 4
    adaptive: Adaptive = Adaptive()
    reference_poll: Duration = Duration("30s")
    reference_overlap: Duration = Duration("1h")
    multivariate: Multivariate = Multivariate()


class Reference(Settings, frozen=True, kw_only=True):
    model: str
    version: str = ""
    path: str


class Log(Settings, frozen=True, kw_only=True):
    level: Literal["debug", "info", "warning", "error"] = "info"


class Reload(Settings, frozen=True, kw_only=True):
    """How files are watched that may change under a running agent."""

    interval: Duration = Duration("5s")


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
    health: Health = Health()
    references: tuple[Reference, ...] = ()
    resource: dict[str, str] = {}
    state_dir: str | None = None
    reload: Reload = Reload()
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
