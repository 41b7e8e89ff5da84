"""Which format a scraper asks for, and whether compressed (RFC 9110, 12.5)."""

from __future__ import annotations

import math

from tidegauge.exporters.exposition import Format

TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PROTOBUF_TYPE = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"


def negotiate(accept: str) -> tuple[Format, str]:
    """The format for an Accept header, and the Content-Type to answer with.

    The one with the highest quality, of equal ones the first; text 0.0.4 for all that is not known. Text
    1.0.0 is text 0.0.4 as long as every name is valid in the old character set, and so are all that are
    served. That also leaves nothing to escape: `allow-utf-8` is confirmed where it is asked for, since
    Prometheus 3 asks for it, and `underscores` is what any other scheme is answered with.

    >>> negotiate("application/openmetrics-text;version=1.0.0;escaping=allow-utf-8")[1]
    'application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=allow-utf-8'
    """
    best, chosen = 0.0, (Format.TEXT, TEXT_TYPE)
    for part in accept.split(","):
        media, *rest = (piece.strip() for piece in part.split(";"))
        options = {
            key.strip().lower(): value.strip(' "') for key, _, value in (p.partition("=") for p in rest)
        }
        content = _content(media.lower(), options)
        quality = _quality(options.get("q", "1"))
        if content is not None and quality > best:
            best, chosen = quality, content
    return chosen


def _content(media: str, options: dict[str, str]) -> tuple[Format, str] | None:
    version = options.get("version", "")
    escaping = "allow-utf-8" if options.get("escaping") == "allow-utf-8" else "underscores"
    match media, version:
        case "application/vnd.google.protobuf", _:
            delimited = options.get("encoding") == "delimited"
            known = options.get("proto") == "io.prometheus.client.MetricFamily"
            return (Format.PROTOBUF, PROTOBUF_TYPE) if known and delimited else None
        case "application/openmetrics-text", "0.0.1":
            return Format.OPENMETRICS, f"{media}; version=0.0.1; charset=utf-8"
        case "application/openmetrics-text", "" | "1.0.0":
            return Format.OPENMETRICS, f"{media}; version=1.0.0; charset=utf-8; escaping={escaping}"
        case "text/plain", "1.0.0":
            return Format.TEXT, f"{media}; version=1.0.0; charset=utf-8; escaping={escaping}"
        case ("text/plain", "" | "0.0.4") | ("text/*" | "*/*", _):
            return Format.TEXT, TEXT_TYPE
    return None


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether an Accept-Encoding header takes gzip (RFC 9110, 12.5.3).

    >>> accepts_gzip("br, gzip;q=0.5"), accepts_gzip("gzip;q=0"), accepts_gzip("identity")
    (True, False, False)
    """
    qualities = {}
    for part in accept_encoding.split(","):
        coding, _, weight = part.partition(";")
        qualities[coding.strip().lower()] = _quality(weight.partition("=")[2] or "1")
    return qualities.get("gzip", qualities.get("*", 0.0)) > 0


def _quality(text: str) -> float:
    try:
        quality = float(text)
    except ValueError:
        return 0.0
    return quality if math.isfinite(quality) else 0.0
