"""A listener's certificate, its key and the CA of its clients, taken anew when their files change."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field

from tidegauge.config import ConfigError, Problem, Tls
from tidegauge.small_file import read_small


@dataclass(frozen=True)
class Loaded:
    """What was read, as PEM, and a context made of it. Two are equal when the files' bytes are."""

    certificate: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None
    context: ssl.SSLContext = field(repr=False, compare=False)


class Certificate:
    """The files of `tls`, which stands at `setting` in the configuration.

    TLS 1.2 is the least. Sessions are not resumed: a ticket would let in a client whose CA is gone.

    Raises:
        ConfigError: naming the setting, where a file cannot be read or does not fit the others.
    """

    def __init__(self, tls: Tls, setting: str) -> None:
        self.setting = setting
        self._tls = tls
        self.current: Loaded = self.load(tls)

    def read(self) -> Loaded:
        """Read the files, and check what they say where it is new. Runs on any thread."""
        if self._bytes(self._tls) == (self.current.certificate, self.current.key, self.current.client_ca):
            return self.current
        return self.load(self._tls)

    def load(self, tls: Tls) -> Loaded:
        """Read the files of other settings of the same listener."""
        certificate, key, client_ca = self._bytes(tls)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
        try:
            # An encrypted key would be asked for on the terminal.
            context.load_cert_chain(str(tls.cert_file), str(tls.key_file), password="")
        except (OSError, ValueError) as error:
            raise self._wrong(
                "key_file", f"{tls.key_file} does not go with cert_file: {_why(error)}"
            ) from error
        if client_ca is not None:
            try:
                context.load_verify_locations(cadata=client_ca.decode())
            except (OSError, ValueError) as error:
                raise self._wrong(
                    "client_ca_file", f"no CA in {tls.client_ca_file}: {_why(error)}"
                ) from error
            context.verify_mode = ssl.CERT_REQUIRED
        if self._bytes(tls) != (certificate, key, client_ca):
            # The context is of the paths. A rotation in the midst of this shows a moment later.
            raise self._wrong("cert_file", "changed while it was read")
        return Loaded(certificate, key, client_ca, context)

    def take(self, loaded: Loaded, tls: Tls | None = None) -> None:
        """Use it from the next handshake on. Connections that are open stay so."""
        self._tls = self._tls if tls is None else tls
        self.current = loaded

    def context(self) -> ssl.SSLContext:
        """A context for a server, whose handshakes all use what is current.

        The callback is called for each ClientHello, also for one that names no server.
        """
        made = self.load(self._tls).context

        def switch(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            connection.context = self.current.context

        made.sni_callback = switch
        return made

    def _bytes(self, tls: Tls) -> tuple[bytes, bytes, bytes | None]:
        def content(name: str, path: str) -> bytes:
            try:
                return read_small(path)
            except OSError as error:
                raise self._wrong(name, f"{path} cannot be read: {error.strerror}") from error

        client_ca = None if tls.client_ca_file is None else content("client_ca_file", tls.client_ca_file)
        certificate = content("cert_file", str(tls.cert_file))
        return certificate, content("key_file", str(tls.key_file)), client_ca

    def _wrong(self, name: str, message: str) -> ConfigError:
        return ConfigError([Problem(f"{self.setting}.{name}", message)])


def _why(error: OSError | ValueError) -> str:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    return " ".join(str(reason).replace("_", " ").lower().split())
