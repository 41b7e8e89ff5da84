"""What the agent shows to whom it sends, and checks them by: from files that may change."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field

from tidegauge.config import ConfigError, Destination, Problem, RemoteWrite
from tidegauge.small_file import read_small

Named = Destination | RemoteWrite
"""Settings that name the files."""

_SECRET = 4
"""Characters: what is shorter stands in any text by chance."""


@dataclass(frozen=True)
class Credentials:
    """What was read, and a context made of it where there is TLS. Two are equal when the files' bytes are."""

    files: tuple[bytes | None, ...] = field(repr=False)
    """PEM of the CA, of the client's certificate and of its key, and the token; None for what is not set."""
    context: ssl.SSLContext | None = field(repr=False, compare=False)

    def withheld(self, settings: Named, text: str) -> str:
        """A text of the receiver's, for the log: without what was shown to it, which it may say again."""
        for value in self.headers(settings).values():
            secret = value.removeprefix("Bearer ")
            if len(secret) >= _SECRET:
                text = text.replace(secret, "***")
        return text

    def headers(self, settings: Named) -> dict[str, str]:
        """Those of the settings, and the token's."""
        token = self.files[3]
        return settings.headers | ({} if token is None else {"authorization": f"Bearer {_text(token)}"})


def read(settings: Named, path: str, known: Credentials | None = None) -> Credentials:
    """Read the files that `settings`, which stand at `path`, name. Runs on any thread.

    Where they are as those of `known`, which were read for the same settings, that is returned: the
    system's CAs, which a context loads, take 30 ms.

    Raises:
        ConfigError: naming the setting, where one cannot be read or does not fit the others.
    """
    files = _files(settings, path)
    if known is not None and files == known.files:
        return known
    if files[3] is not None and not _is_token(_text(files[3])):
        raise ConfigError([Problem(f"{path}.bearer_token_file", "has no token, or more than one line")])
    context = None
    if str(settings.endpoint).startswith("https://"):
        context = _context(settings, path)
        if _files(settings, path) != files:
            # The context is of the paths. A rotation in the midst of this shows a moment later.
            raise ConfigError([Problem(f"{path}.client_certificate", "changed while it was read")])
    return Credentials(files, context)


def _text(token: bytes) -> str:
    return token.decode("latin-1").strip()


def _is_token(text: str) -> bool:
    return bool(text) and text.isascii() and text.isprintable()


def _files(settings: Named, path: str) -> tuple[bytes | None, ...]:
    def content(name: str) -> bytes | None:
        file = getattr(settings, name)
        try:
            return None if file is None else read_small(file)
        except OSError as error:
            raise _unread(path, name, file, error.strerror) from error

    return tuple(map(content, ("certificate", "client_certificate", "client_key", "bearer_token_file")))


def _context(settings: Named, path: str) -> ssl.SSLContext:
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
