"""Who may come in: a bearer token, or a user and a password, from files that may change."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

from tidegauge.config import Auth, ConfigError, Problem
from tidegauge.small_file import read_small

_LEAST = 8
"""Characters of a secret: a shorter one is a slip, such as an empty file."""

Digests = tuple[tuple[str, bytes], ...]
"""For each secret its scheme and SHA-256: lengths do not show in the time that comparing takes."""


class Gate:
    """Opens to any of the secrets in the files of `auth`, which stands at `setting`.

    Each line is one, so that an old and a new one can hold at the same time; empty lines and those that
    begin with # are skipped. Without files it is open to all. Neither secrets nor what was presented
    show in a message or a repr.

    Raises:
        ConfigError: naming the setting, where a file cannot be read or has no secret in it.
    """

    def __init__(self, auth: Auth, setting: str) -> None:
        self.setting = setting
        self._auth = auth
        self.current: Digests = self.read()

    @property
    def guarded(self) -> bool:
        """Whether anything is asked for at all."""
        return bool(self.current)

    @property
    def challenge(self) -> str:
        """What to answer in WWW-Authenticate (RFC 9110, 11.6.1)."""
        schemes = {scheme for scheme, _ in self.current}
        return ", ".join(f'{scheme} realm="tidegauge"' for scheme in ("Bearer", "Basic") if scheme in schemes)

    def read(self) -> Digests:
        """Read the files. Runs on any thread."""
        return self.load(self._auth)

    def load(self, auth: Auth) -> Digests:
        """Read the files of other settings of the same listener."""
        found = [("Bearer", line) for line in self._lines("bearer_token_file", auth.bearer_token_file)]
        for line in self._lines("basic_auth_file", auth.basic_auth_file):
            if not all(line.partition(":")[::2]):
                raise self._wrong("basic_auth_file", "a line is not USER:PASSWORD")
            found.append(("Basic", line))
        return tuple((scheme, hashlib.sha256(line.encode()).digest()) for scheme, line in found)

    def take(self, digests: Digests, auth: Auth | None = None) -> None:
        """Ask for these from the next request on."""
        self._auth = self._auth if auth is None else auth
        self.current = digests

    def opens(self, authorization: str | bytes | None) -> bool:
        """Whether an Authorization header does, in a time that does not tell which secret is near."""
        if not self.current:
            return True
        scheme, secret = _presented(authorization)
        digest = hashlib.sha256(secret).digest()
        found = False
        for known, expected in self.current:
            found |= hmac.compare_digest(digest, expected) and scheme == known
        return found

    def _lines(self, name: str, path: str | None) -> list[str]:
        if path is None:
            return []
        try:
            text = read_small(path).decode()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", "it is not text")
            raise self._wrong(name, f"{path} cannot be read: {reason}") from None
        lines = [line.strip() for line in text.splitlines()]
        secrets = [line for line in lines if line and not line.startswith("#")]
        if not secrets or min(map(len, secrets)) < _LEAST:
            raise self._wrong(name, f"{path} has no secret, or one of fewer than {_LEAST} characters")
        return secrets

    def _wrong(self, name: str, message: str) -> ConfigError:
        return ConfigError([Problem(f"{self.setting}.{name}", message, "one secret a line")])


def _presented(authorization: str | bytes | None) -> tuple[str, bytes]:
    """Scheme and secret of a header (RFC 6750, 2.1; RFC 7617, 2); empty where it is none."""
    text = authorization.decode("latin-1") if isinstance(authorization, bytes) else authorization or ""
    scheme, _, secret = text.partition(" ")
    scheme = scheme.capitalize()
    try:
        if scheme != "Basic":
            # Bytes that are no UTF-8 stand in aiohttp's headers as lone surrogates.
            return scheme, secret.strip().encode(errors="surrogateescape")
        return scheme, base64.b64decode(secret.strip(), validate=True)
    except (binascii.Error, ValueError):
        return "", b""
