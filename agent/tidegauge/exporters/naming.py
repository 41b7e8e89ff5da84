"""OpenTelemetry names to Prometheus names.

The translation is that of the specification's "Prometheus and OpenMetrics Compatibility", with
units and suffixes spelled out (UnderscoreEscapingWithSuffixes). `_ratio` for a gauge of unit `1` is
what the Collector's translator adds; the specification's table is silent on it.
"""

from __future__ import annotations

import functools
import re

from tidegauge.metric import Attributes, Kind

_UNITS = {
    "d": "days",
    "h": "hours",
    "min": "minutes",
    "s": "seconds",
    "ms": "milliseconds",
    "us": "microseconds",
    "ns": "nanoseconds",
    "By": "bytes",
    "KiBy": "kibibytes",
    "MiBy": "mebibytes",
    "GiBy": "gibibytes",
    "TiBy": "tebibytes",
    "kBy": "kilobytes",
    "MBy": "megabytes",
    "GBy": "gigabytes",
    "TBy": "terabytes",
    "m": "meters",
    "V": "volts",
    "A": "amperes",
    "J": "joules",
    "W": "watts",
    "g": "grams",
    "Cel": "celsius",
    "Hz": "hertz",
    "%": "percent",
}
_PER = {"s": "second", "min": "minute", "m": "minute", "h": "hour", "d": "day"}


@functools.lru_cache(maxsize=1024)
def metric_name(name: str, unit: str, kind: Kind) -> str:
    """The Prometheus name of a metric, with the suffixes of its unit and of a counter.

    >>> metric_name("model.inference.latency", "s", Kind.EXPONENTIAL_HISTOGRAM)
    'model_inference_latency_seconds'
    >>> metric_name("hw.energy", "J", Kind.COUNTER)
    'hw_energy_joules_total'
    """
    stem = _sanitised(name).removesuffix("_") or "_"
    if kind is Kind.COUNTER:
        stem = stem.removesuffix("_total") or "_"
    suffix = unit_suffix(unit, kind)
    if suffix and stem != suffix and not stem.endswith(f"_{suffix}"):
        stem = f"{stem}_{suffix}"
    return f"{stem}_total" if kind is Kind.COUNTER else stem


@functools.lru_cache(maxsize=1024)
def unit_suffix(unit: str, kind: Kind) -> str:
    """The words for a UCUM unit, or none for an annotation such as `{row}`.

    >>> unit_suffix("By/s", Kind.GAUGE), unit_suffix("1", Kind.GAUGE), unit_suffix("{row}", Kind.GAUGE)
    ('bytes_per_second', 'ratio', '')
    """
    if unit == "1":
        return "ratio" if kind is Kind.GAUGE else ""
    main, _, per = (part.strip() for part in re.sub(r"\{[^}]*\}", "", unit).partition("/"))
    words = _UNITS.get(main, main if main != "1" else "")
    if per:
        words += f"_per_{_PER.get(per, per)}"
    return re.sub(r"[^a-zA-Z0-9]+", "_", words).strip("_")


def labels(attributes: Attributes) -> dict[str, str]:
    """Attributes as Prometheus labels.

    Empty values are left out: to Prometheus they are absent. Where two keys become one label, the
    values are joined by ";" in the order of the keys.

    >>> labels((("hw.id", "0"), ("hw_id", "1"), ("stage", "")))
    {'hw_id': '0;1'}
    """
    found: dict[str, str] = {}
    if len({_label(key) for key, _ in attributes}) != len(attributes):
        attributes = tuple(sorted(attributes))
    for key, value in attributes:
        if value:
            name = _label(key)
            text = value if value.isascii() else value.encode("utf-8", "replace").decode()
            found[name] = f"{found[name]};{text}" if name in found else text
    return found


@functools.lru_cache(maxsize=4096)
def _label(key: str) -> str:
    # A colon is allowed in a metric's name and not in a label's.
    return _sanitised(key.replace(":", "_"))


def _sanitised(name: str) -> str:
    clean = re.sub(r"_+", "_", re.sub(r"[^a-zA-Z0-9_:]", "_", name)) or "_"
    return f"_{clean}" if clean[0].isdigit() else clean
