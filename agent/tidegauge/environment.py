"""The OpenTelemetry exporter's standard environment variables (OTLP exporter specification)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

SIGNALS = ("traces", "metrics", "logs")
_PROTOCOLS = ("grpc", "http/protobuf")
_FILES = {
    "certificate": "OTEL_EXPORTER_OTLP_CERTIFICATE",
    "client_certificate": "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
    "client_key": "OTEL_EXPORTER_OTLP_CLIENT_KEY",
}


class Environment(NamedTuple):
    """What the variables ask for.

    `otlp` are settings for `exporters.otlp`, empty without a collector; `collectors` one for each of
    `exporters.collectors`; `resource` the attributes of what the agent pushes.
    """

    otlp: dict[str, Any]
    collectors: tuple[dict[str, Any], ...]
    resource: dict[str, str]


def read(environ: Mapping[str, str]) -> Environment:
    """Settings from OTEL_* variables.

    A signal's own variable (OTEL_EXPORTER_OTLP_TRACES_ENDPOINT and its kin) comes before the common
    one. Signals that end up with the same settings share a collector. The agent's own metrics go
    where metrics go, and nowhere where no endpoint is theirs. OTEL_EXPORTER_OTLP_TIMEOUT is in
    milliseconds, as the specification has it; its default protocol, though, is the agent's own, grpc.

    Raises:
        ValueError: naming the variable that cannot be used.
    """
    groups: list[tuple[dict[str, Any], list[str]]] = []
    for signal in SIGNALS:
        settings = _settings(signal, environ)
        if settings is None:
            continue
        for known, signals in groups:
            if known == settings:
                signals.append(signal)
                break
        else:
            groups.append((settings, [signal]))
    otlp: dict[str, Any] = {}
    collectors = []
    for settings, signals in groups:
        its = settings | {"signals": tuple(signals)}
        if "metrics" in signals:
            otlp = its
        else:
            collectors.append(its | {"name": "-".join(signals)})
    resource = pairs(environ.get("OTEL_RESOURCE_ATTRIBUTES", ""), "OTEL_RESOURCE_ATTRIBUTES")
    if name := environ.get("OTEL_SERVICE_NAME"):
        resource["service.name"] = name
    return Environment(otlp, tuple(collectors), resource)


def _settings(signal: str, environ: Mapping[str, str]) -> dict[str, Any] | None:
    """Where a signal goes and how; None where no variable says so."""

    def given(common: str) -> tuple[str, str]:
        """The variable that counts, and its value."""
        own = common.replace("_OTLP_", f"_OTLP_{signal.upper()}_")
        variable = own if environ.get(own) else common
        return variable, environ.get(variable, "")

    variable, endpoint = given("OTEL_EXPORTER_OTLP_ENDPOINT")
    if not endpoint:
        return None
    if "://" not in endpoint:
        insecure = given("OTEL_EXPORTER_OTLP_INSECURE")[1].lower() == "true"
        endpoint = ("http://" if insecure else "https://") + endpoint
    settings: dict[str, Any] = {"endpoint": endpoint}
    named, protocol = given("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol:
        if protocol not in _PROTOCOLS:
            raise ValueError(f"{named}={protocol}: {' or '.join(_PROTOCOLS)}")
        settings["protocol"] = protocol
    if protocol == "http/protobuf" and variable != "OTEL_EXPORTER_OTLP_ENDPOINT":
        settings["endpoint"] = _base(endpoint, signal, variable)
    named, compression = given("OTEL_EXPORTER_OTLP_COMPRESSION")
    if compression:
        if compression not in ("gzip", "none"):
            raise ValueError(f"{named}={compression}: gzip or none")
        settings["compression"] = compression
    named, timeout = given("OTEL_EXPORTER_OTLP_TIMEOUT")
    if timeout:
        if not timeout.isdigit() or int(timeout) == 0:
            raise ValueError(f"{named}={timeout}: milliseconds, a whole number above zero")
        settings["timeout"] = int(timeout) / 1000
    named, headers = given("OTEL_EXPORTER_OTLP_HEADERS")
    if headers:
        settings["headers"] = pairs(headers, named)
    return settings | {name: file for name, variable in _FILES.items() if (file := given(variable)[1])}


def _base(endpoint: str, signal: str, variable: str) -> str:
    """A signal's own HTTP endpoint is its whole URL; the agent makes that of the part before /v1/SIGNAL."""
    base, found, rest = endpoint.rstrip("/").rpartition(f"/v1/{signal}")
    if not found or rest:
        raise ValueError(f"{variable}={endpoint}: the URL must end in /v1/{signal}")
    return base


def pairs(text: str, variable: str) -> dict[str, str]:
    """W3C baggage: `key=value,key=value`, values percent-encoded.

    Raises:
        ValueError: naming `variable` and what in it is no pair.
    """
    pairs = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        key, separator, value = part.partition("=")
        if not separator or not key.strip():
            raise ValueError(f"{variable}: a part of it is not key=value")  # and may be a secret
        pairs[unquote(key.strip())] = unquote(value.strip())
    return pairs
