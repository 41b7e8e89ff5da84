"""What can be wrong with the settings of everything that listens."""

from __future__ import annotations

from collections.abc import Iterator

from tidegauge.config import Config, Listener, Problem
from tidegauge.units import parse_endpoint, unix_path


def listeners(config: Config) -> dict[str, Listener]:
    """Everything that listens, by the path of its settings."""
    return {
        "receivers.grpc": config.receivers.grpc,
        "receivers.http": config.receivers.http,
        "exporters.prometheus": config.exporters.prometheus,
    }


def listener_problems(config: Config) -> tuple[list[Problem], dict[tuple[str, int], str]]:
    """What contradicts itself, and which addresses are taken by which endpoint."""
    problems: list[Problem] = []
    taken: dict[tuple[str, int], str] = {}
    for name, settings in listeners(config).items():
        path, text = f"{name}.endpoint", settings.endpoint
        problems += _tls_problems(name, settings)
        if text is None:
            continue  # reported already
        try:
            socket = unix_path(text)
            address = parse_endpoint(text) if socket is None else (socket, 0)
        except ValueError as error:
            problems.append(Problem(path, str(error), "write HOST:PORT, for instance 127.0.0.1:4317"))
            continue
        if (socket or address[1]) and address in taken:
            problems.append(Problem(path, f"{text} is taken by {taken[address]}", "give each its own port"))
        taken[address] = path
    return problems, taken


def _tls_problems(path: str, settings: Listener) -> Iterator[Problem]:
    tls = settings.tls
    if tls.cert_file and not tls.key_file:
        yield Problem(f"{path}.tls.key_file", "is required beside cert_file")
    elif tls.key_file and not tls.cert_file:
        yield Problem(f"{path}.tls.cert_file", "is required beside key_file")
    elif tls.client_ca_file and not tls.cert_file:
        yield Problem(f"{path}.tls.cert_file", "is required: clients have certificates with TLS only")
