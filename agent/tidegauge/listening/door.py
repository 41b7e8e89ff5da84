"""Where something listens, and what guards it."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

from tidegauge.config import ConfigError, Listener, Problem, Tls
from tidegauge.listening.certificate import Certificate
from tidegauge.listening.gate import Gate
from tidegauge.telemetry import Telemetry
from tidegauge.units import parse_endpoint, unix_path


class Door:
    """A listener's endpoint, certificate and gate; `setting` is where its settings stand.

    What is turned away here is counted as `denied`, by listener and reason, and is not an item of any
    signal: nobody has looked at it.

    Raises:
        ConfigError: for a certificate or a secret that cannot be read.
    """

    def __init__(self, settings: Listener, setting: str, telemetry: Telemetry | None = None) -> None:
        self.settings = settings
        self.setting = setting
        self.path = unix_path(settings.endpoint)
        self.certificate = certificate_of(settings.tls, setting)
        self.gate = Gate(settings.auth, f"{setting}.auth")
        self._telemetry = telemetry or Telemetry()

    @property
    def mode(self) -> int:
        """Of a Unix socket."""
        return int(self.settings.socket_mode, 8)

    @property
    def watched(self) -> tuple[Certificate | Gate, ...]:
        """What comes from files."""
        return (self.gate,) if self.certificate is None else (self.gate, self.certificate)

    def deny(self, reason: str) -> None:
        """Count what is turned away: unauthenticated, or peer_ and what its address has too much of."""
        self._telemetry.add("denied", 1, listener=self.setting, reason=reason)

    def admits(self, authorization: str | bytes | None) -> bool:
        """Whether a request with this header may come in. Counts those that may not."""
        if self.gate.opens(authorization):
            return True
        self.deny("unauthenticated")
        return False

    def cannot_listen(self, error: OSError | RuntimeError) -> ConfigError:
        """What to say where the endpoint is taken, or not ours."""
        endpoint = self.settings.endpoint
        why = getattr(error, "strerror", None)
        hint = "the port is taken, or the address is not this machine's"
        if self.path is not None:
            hint = "the folder must be there and be writable"
        message = f"cannot listen on {endpoint}" + (f": {why}" if why else "")
        return ConfigError([Problem(f"{self.setting}.endpoint", message, hint)])

    def prepare(self, settings: Listener) -> Callable[[], None]:
        """Read the files of other settings; what is returned puts them in force.

        Raises:
            ConfigError: for those that cannot be read.
        """
        digests = self.gate.load(settings.auth)
        certificate = self.certificate
        loaded = None if certificate is None else certificate.load(settings.tls)

        def commit() -> None:
            self.gate.take(digests, settings.auth)
            if certificate is not None and loaded is not None:
                certificate.take(loaded, settings.tls)

        return commit


def certificate_of(tls: Tls, setting: str) -> Certificate | None:
    """The certificate of a listener, where it has one."""
    return None if tls.cert_file is None else Certificate(tls, f"{setting}.tls")


def is_local(endpoint: str) -> bool:
    """Whether only this machine, or this pod, can come there.

    >>> is_local("127.0.0.1:4317"), is_local("unix:/run/x"), is_local("0.0.0.0:4317"), is_local("localhost:1")
    (True, True, False, True)
    """
    if unix_path(endpoint) is not None:
        return True
    host, _ = parse_endpoint(endpoint)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def exposed(listeners: dict[str, Listener]) -> list[Problem]:
    """What of them stands open to the network: no error, but worth saying."""
    found = []
    for setting, one in listeners.items():
        if is_local(one.endpoint):
            continue
        missing = [] if one.tls.cert_file else ["TLS"]
        if not (one.tls.client_ca_file or one.auth.bearer_token_file or one.auth.basic_auth_file):
            missing.append("authentication")
        if missing:
            message = f"{one.endpoint} is open to the network without {' and '.join(missing)}"
            found.append(Problem(f"{setting}.endpoint", message, "see docs/threat-model.md"))
    return found
