"""The connection to a remote write receiver, and what its answers mean."""

from __future__ import annotations

import time
from http import HTTPStatus
from types import TracebackType
from typing import Self

import aiohttp

from tidegauge import __version__
from tidegauge.config import RemoteWrite
from tidegauge.exporters.credentials import Credentials, read
from tidegauge.exporters.http_channel import retry_after_s
from tidegauge.exporters.outcome import Outcome, Verdict
from tidegauge.exporters.write_request import Version

CONTENT_TYPES: dict[Version, str] = {
    "1.0": "application/x-protobuf",
    "2.0": "application/x-protobuf;proto=io.prometheus.write.v2.Request",
}
VERSIONS: dict[Version, str] = {"1.0": "0.1.0", "2.0": "2.0.0"}
"""What X-Prometheus-Remote-Write-Version says."""

WRITTEN = "X-Prometheus-Remote-Write-Samples-Written"

_ANSWER_BYTES, _SHOWN = 4096, 512


class WriteChannel:
    """Connections to the receiver, kept alive. Watched: its files count from the next request on.

    Raises:
        ConfigError: where a certificate or the token's file cannot be read.
    """

    setting = "exporters.remote_write"

    def __init__(self, settings: RemoteWrite) -> None:
        assert settings.endpoint is not None
        self.endpoint = settings.endpoint
        self._settings = settings
        self.current: Credentials = read(settings, self.setting)

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers={"User-Agent": f"tidegauge/{__version__}"},
            timeout=aiohttp.ClientTimeout(total=self._settings.timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    def read(self) -> Credentials:
        """Read the files that the settings name. Runs on any thread."""
        return read(self._settings, self.setting, self.current)

    def take(self, credentials: Credentials) -> None:
        """Use these from the next request on: connections are kept apart by their contexts."""
        self.current = credentials

    async def send(self, request: bytes, version: Version) -> Outcome:
        """Send a compressed request once. Never raises for what the receiver does.

        A receiver of 1.0 alone answers 415 to 2.0, or takes it for a request without series and says
        nothing of samples: both are `about_content`.
        """
        headers = {
            "Content-Type": CONTENT_TYPES[version],
            "Content-Encoding": "snappy",
            "X-Prometheus-Remote-Write-Version": VERSIONS[version],
        }
        try:
            async with self._session.post(
                self.endpoint,
                data=request,
                headers=headers | self.current.headers(self._settings),
                ssl=self.current.context or True,
                allow_redirects=False,
            ) as response:
                answer = await response.content.read(_ANSWER_BYTES)
        except TimeoutError:
            message = f"no answer within {self._settings.timeout:g} s"
            return Outcome(Verdict.RETRY, message=message, timed_out=True)
        except aiohttp.ClientError as error:
            return Outcome(Verdict.RETRY, message=" ".join(f"{type(error).__name__} {error}".split()))
        status = response.status
        said = self.current.withheld(self._settings, answer.decode(errors="replace"))
        message = f"{status} {' '.join(said.split())}".strip()[:_SHOWN]
        if 200 <= status < 300:
            if version == "2.0" and WRITTEN not in response.headers:
                return Outcome(Verdict.REJECTED, about_content=True, message="it knows remote write 1.0 only")
            return Outcome(Verdict.DELIVERED)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS:
            delay_s = retry_after_s(response.headers.get("Retry-After"), time.time())
            return Outcome(Verdict.RETRY, delay_s=delay_s, message=message)
        unknown = status == HTTPStatus.UNSUPPORTED_MEDIA_TYPE and version == "2.0"
        return Outcome(Verdict.REJECTED, about_content=unknown, message=message)
