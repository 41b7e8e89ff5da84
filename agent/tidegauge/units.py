"""Durations, sizes and endpoints as people write them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Self

_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


class Duration(float):
    """Seconds, written with a unit.

    >>> Duration("15s"), Duration("1h30m")
    (15.0, 5400.0)
    """

    def __new__(cls, text: Any) -> Self:
        """Raises ValueError for anything but one or more NUMBER UNIT that add up to more than zero."""
        if not isinstance(text, str) or not re.fullmatch(r"(?:\d+(?:\.\d+)?(?:ns|us|ms|s|m|h|d))+", text):
            raise ValueError("a duration is a number and a unit, such as 500ms, 15s, 10m, 1h or 7d")
        parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h|d)", text)
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
        if seconds <= 0:
            raise ValueError("a duration must be longer than zero")
        return super().__new__(cls, seconds)


def duration_text(seconds: float) -> str:
    """A duration as people write it, in the largest unit that divides it, of those up to hours.

    >>> duration_text(300.0), duration_text(86400.0), duration_text(0.25)
    ('5m', '24h', '250ms')
    """
    nanoseconds = round(seconds * 1e9)
    for unit in ("h", "m", "s", "ms", "us"):
        size = round(_SECONDS[unit] * 1e9)
        if nanoseconds % size == 0:
            return f"{nanoseconds // size}{unit}"
    return f"{nanoseconds}ns"


class Size(int):
    """Bytes, written with a unit.

    >>> Size("64MiB"), Size("10kB")
    (67108864, 10000)
    """

    def __new__(cls, text: Any) -> Self:
        """Raises ValueError for anything but a NUMBER UNIT above zero."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(B|[kMG]B|[KMG]iB)", text) if isinstance(text, str) else None
        if match is None:
            raise ValueError("a size is a number and a unit, such as 512KiB, 64MiB or 1GiB")
        size = int(float(match[1]) * _BYTES[match[2]])
        if size <= 0:
            raise ValueError("a size must be larger than zero")
        return super().__new__(cls, size)


class Allowance(Size):
    """Bytes, written with a unit; `0B` for nothing at all.

    >>> Allowance("1GiB"), Allowance("0B")
    (1073741824, 0)
    """

    def __new__(cls, text: Any) -> Self:
        """Raises ValueError for anything but a NUMBER UNIT, 0B or 0."""
        return int.__new__(cls, 0) if text in ("0B", 0) else super().__new__(cls, text)


def parse_period(text: str) -> tuple[int, int]:
    """Beginning and end of a period written FROM/TO in ISO 8601, Unix nanoseconds; UTC where nothing is said.

    >>> parse_period("1970-01-01T00:00:01/1970-01-02")
    (1000000000, 86400000000000)

    Raises:
        ValueError: where the text is no such pair, or TO is not after FROM.
    """
    parts = text.split("/")
    try:
        begin, end = (datetime.fromisoformat(part) for part in parts)
    except ValueError as error:
        raise ValueError(f"{text!r} is not FROM/TO in ISO 8601, such as 2026-03-02/2026-03-09") from error
    begin_ns, end_ns = (
        int((one if one.tzinfo else one.replace(tzinfo=UTC)).timestamp()) * 10**9 for one in (begin, end)
    )
    if end_ns <= begin_ns:
        raise ValueError(f"{text!r} ends before it begins")
    return begin_ns, end_ns


def parse_endpoint(text: str, default_port: int | None = None) -> tuple[str, int]:
    """Split HOST:PORT; an IPv6 host stands in brackets.

    >>> parse_endpoint("127.0.0.1:4317"), parse_endpoint("[::]:9464")
    (('127.0.0.1', 4317), ('::', 9464))

    Raises:
        ValueError: where the text is no such pair, or the port is out of range.
    """
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:/\[\]]+))(?::(\d{1,5}))?", text)
    port = None if match is None else int(match[3]) if match[3] else default_port
    if match is None or port is None or port > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return match[1] or match[2], port


def unix_path(text: str) -> str | None:
    """The path of a Unix socket's endpoint; None for one of HOST:PORT.

    >>> unix_path("unix:/run/tidegauge/otlp.sock"), unix_path("127.0.0.1:4317")
    ('/run/tidegauge/otlp.sock', None)

    Raises:
        ValueError: where the path is not absolute, or longer than Linux takes (107 bytes, of which the
            agent needs 9 while it binds).
    """
    if not text.startswith("unix:"):
        return None
    path = text.removeprefix("unix:")
    if not path.startswith("/") or path.startswith("//") or path.endswith("/"):
        raise ValueError(f"{text!r} is not unix:/PATH")
    if len(path.encode()) > 98:
        raise ValueError(f"{text!r} is longer than the 98 bytes that a socket's path may have here")
    return path
