"""What differs between two configurations, and which of it a running agent can take."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from tidegauge.config import Config, Listener, Problem, Settings
from tidegauge.config_listeners import listeners

_COLLECTOR = (
    *("endpoint", "protocol", "headers", "compression", "timeout"),
    *("certificate", "client_certificate", "client_key", "bearer_token_file"),
)
_LISTENER = (
    *("tls.cert_file", "tls.key_file", "tls.client_ca_file"),
    *("auth.bearer_token_file", "auth.basic_auth_file"),
)

LIVE = frozenset(
    {
        *("log.level", "reload.interval"),
        *("pipeline.publish_interval", "pipeline.stall_timeout"),
        *("drift.threshold", "drift.significance", "drift.min_rows", "drift.quality_margin"),
        "drift.false_alarm_interval",
        *(f"receivers.grpc.{name}" for name in _LISTENER),
        *(f"receivers.http.{name}" for name in _LISTENER),
        *(f"exporters.prometheus.{name}" for name in _LISTENER),
        *(f"exporters.otlp.{name}" for name in (*_COLLECTOR, "interval")),
        *(f"exporters.collectors[].{name}" for name in _COLLECTOR),
    }
)
"""Settings that change without a loss: they are read anew each time, or are what a connection is made of.
All others are what state was made with (windows, bins, bounds on series) or what holds it (queues,
sockets)."""


def changes(old: Config, new: Config) -> list[str]:
    """The dotted paths of the settings that differ, a list's items by their place."""
    before, after = dict(leaves(old)), dict(leaves(new))
    return [path for path in {**before, **after} if before.get(path) != after.get(path)]


def restarts(old: Config, new: Config) -> list[Problem]:
    """Why a running agent with `old` cannot take `new`; nothing where it can."""
    fixed = [path for path in changes(old, new) if re.sub(r"\[\d+\]", "[]", path) not in LIVE]
    problems = [Problem(path, "cannot change while the agent runs", "restart it") for path in fixed]
    if (old.exporters.otlp.endpoint is None) != (new.exporters.otlp.endpoint is None):
        problems.append(Problem("exporters.otlp.endpoint", "a collector comes or goes with a restart only"))
    for path, before in listeners(old).items():
        if _kind(before) != _kind(listeners(new)[path]):
            message = "TLS, and asking clients for certificates, is switched on and off with a restart only"
            problems.append(Problem(f"{path}.tls", message))
    return problems


def _kind(listener: Listener) -> tuple[bool, bool]:
    return listener.tls.cert_file is not None, listener.tls.client_ca_file is not None


def fingerprint(config: Config) -> str:
    """16 hexadecimal digits that tell configurations apart, whatever file they stand in.

    The values of headers, which may be secrets that can be guessed, are not in it.
    """
    text = "\n".join(
        f"{path}={sorted(value) if path.endswith('.headers') else value!r}" for path, value in leaves(config)
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def leaves(settings: Settings, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting with its value, in the order of their definition."""
    for field in msgspec.structs.fields(settings):
        value: Any = getattr(settings, field.name)
        its = f"{path}.{field.name}" if path else field.name
        if isinstance(value, Settings):
            yield from leaves(value, its)
        elif isinstance(value, tuple) and value and isinstance(value[0], Settings):
            for index, one in enumerate(value):
                yield from leaves(one, f"{its}[{index}]")
        else:
            yield its, value
