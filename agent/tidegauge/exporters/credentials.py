"""What the agent shows to a collector, and checks the collector by: from files that may change."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from tidegauge.config import ConfigError, Destination, Problem


@dataclass(frozen=True)
class Credentials:
    """PEM of a CA, of the client's certificate and key, and a bearer token; None for what is not set.

    Two are equal when the files' bytes are. `context` is made of them, where there is TLS.
    """

    ca: bytes | None
    certificate: bytes | None
    key: bytes | None = field(repr=False)
    token: str | None = field(repr=False)
    context: ssl.SSLContext | None = field(repr=False, compare=False)

    def headers(self, settings: Destination) -> dict[str, str]:
        """Those of the settings, and the token's."""
        mine = {} if self.token is None else {"authorization": f"Bearer {self.token}"}
        return settings.headers | mine


def read(settings: Destination, path: str) -> Credentials:
    """Read the files that `settings`, which stand at `path`, name. Runs on any thread.

    Raises:
        ConfigError: naming the setting, where one cannot be read or does not fit the others.
    """
    found = _files(settings, path)
    context = None
    if str(settings.endpoint).startswith("https://"):
        context = _context(settings, path)
        if _files(settings, path) != found:
            # The context is of the paths. A rotation in the midst of this shows a moment later.
            raise ConfigError([Problem(f"{path}.client_certificate", "changed while it was read")])
    ca, certificate, key, token = found
    text = None if token is None else token.decode("latin-1").strip()
    if text is not None and not (text and text.isascii() and text.isprintable()):
        raise ConfigError([Problem(f"{path}.bearer_token_file", "has no token, or more than one line")])
    return Credentials(ca, certificate, key, text, context)


def _files(settings: Destination, path: str) -> tuple[bytes | None, ...]:
    def content(name: str) -> bytes | None:
        file = getattr(settings, name)
        try:
            return None if file is None else Path(file).read_bytes()
        except OSError as error:
            raise _unread(path, name, file, error.strerror) from error

    return tuple(map(content, ("certificate", "client_certificate", "client_key", "bearer_token_file")))


def _context(settings: Destination, path: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.certificate)
    except (OSError, ssl.SSLError) as error:
        raise _unread(path, "certificate", settings.certificate, error.strerror or str(error)) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.client_certificate is not None:
        try:
            # An encrypted key would be asked for on the terminal.
            context.load_cert_chain(settings.client_certificate, settings.client_key, password="")
        except (OSError, ValueError) as error:
            why = getattr(error, "reason", None) or str(error)
            message = f"{settings.client_key} does not go with client_certificate: {why}"
            raise ConfigError([Problem(f"{path}.client_key", message)]) from error
    return context


def _unread(path: str, name: str, file: str | None, reason: str | None) -> ConfigError:
    return ConfigError([Problem(f"{path}.{name}", f"{file} cannot be read: {reason}")])
