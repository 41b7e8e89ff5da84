"""The OpenTelemetry exporter's standard environment variables (OTLP exporter specification)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote


def otlp_from_environment(environ: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Settings for `exporters.otlp`, and the resource's attributes, from OTEL_* variables.

    OTEL_EXPORTER_OTLP_TIMEOUT is in milliseconds, as the specification has it.

    Raises:
        ValueError: naming the variable that cannot be used.
    """
    prefix = "OTEL_EXPORTER_OTLP_"
    settings: dict[str, Any] = {}
    if endpoint := environ.get(prefix + "ENDPOINT"):
        protocol = environ.get(prefix + "PROTOCOL", "grpc")
        if protocol != "grpc":
            raise ValueError(
                f"{prefix}PROTOCOL={protocol}: the agent exports over grpc only; "
                "set it to grpc with the collector's 4317 port"
            )
        settings["endpoint"] = endpoint if "://" in endpoint else _with_scheme(endpoint, environ)
        if compression := environ.get(prefix + "COMPRESSION"):
            if compression not in ("gzip", "none"):
                raise ValueError(f"{prefix}COMPRESSION={compression}: gzip or none")
            settings["compression"] = compression
        if timeout := environ.get(prefix + "TIMEOUT"):
            if not timeout.isdigit() or int(timeout) == 0:
                raise ValueError(f"{prefix}TIMEOUT={timeout}: milliseconds, a whole number above zero")
            settings["timeout"] = int(timeout) / 1000
        if headers := environ.get(prefix + "HEADERS"):
            settings["headers"] = _pairs(headers, prefix + "HEADERS")
        if certificate := environ.get(prefix + "CERTIFICATE"):
            settings["certificate"] = certificate
    resource = _pairs(environ.get("OTEL_RESOURCE_ATTRIBUTES", ""), "OTEL_RESOURCE_ATTRIBUTES")
    if name := environ.get("OTEL_SERVICE_NAME"):
        resource["service.name"] = name
    return settings, resource


def _with_scheme(endpoint: str, environ: Mapping[str, str]) -> str:
    insecure = environ.get("OTEL_EXPORTER_OTLP_INSECURE", "false").lower() == "true"
    return ("http://" if insecure else "https://") + endpoint


def _pairs(text: str, variable: str) -> dict[str, str]:
    """W3C baggage: `key=value,key=value`, values percent-encoded."""
    pairs = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        key, separator, value = part.partition("=")
        if not separator or not key.strip():
            raise ValueError(f"{variable}: {part!r} is not key=value")
        pairs[unquote(key.strip())] = unquote(value.strip())
    return pairs
