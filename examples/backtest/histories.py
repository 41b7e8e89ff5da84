"""Histories made of data sets that installed packages ship, with drift that is known or brought about.

scikit-learn's and river's, as they come with the packages: nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from river import datasets
from sklearn.datasets import load_breast_cancer, load_digits

START_S = 1_780_272_000
"""Where made-up time begins, Unix seconds: midnight."""

DAY_S = 86_400.0


class History(NamedTuple):
    """Rows to make a reference of, and rows to replay; `change_s` is when the latter change."""

    title: str
    train: pa.Table
    past: pa.Table
    change_s: float | None
    drift: str = ""  # the configuration's block `drift`, as YAML


def shuttle() -> History:
    """NASA's shuttle radiator, river's `Shuttle`: real rows in their order, one a second."""
    rows, _ = _shuttle()
    return History(
        "Shuttle: real rows, nothing changed", rows.slice(0, 15_000), _every_second(rows.slice(15_000)), None
    )


def shuttle_anomalies() -> History:
    """The same, and in the second half the anomalous rows, 7 % of all, come three times as often."""
    rows, anomalous = _shuttle()
    rng = np.random.default_rng(0)
    rest = np.arange(15_000, len(rows))
    half = len(rest) // 2
    weights = np.where(anomalous[rest[half:]], 3.0, 1.0)
    drawn = rng.choice(rest[half:], len(rest) - half, p=weights / weights.sum())
    past = _every_second(rows.take(np.concatenate([rest[:half], drawn])))
    return History("Shuttle: anomalies three times as often", rows.slice(0, 15_000), past, START_S + half)


def cancer() -> History:
    """scikit-learn's breast cancer, rows drawn again and again: nothing changes in ten days."""
    return _drawn("Breast cancer: nothing changed, ten days", *_cancer(), days=10)


def cancer_scale() -> History:
    """The same for three days, and from noon of the second on every radius is measured 5 % too large."""

    def scaled(rows: np.ndarray, names: list[str]) -> np.ndarray:
        rows[:, [place for place, name in enumerate(names) if "radius" in name]] *= 1.05
        return rows

    return _drawn("Breast cancer: radii 5 % too large", *_cancer(), days=3, change=scaled)


def digits() -> History:
    """scikit-learn's digits, 64 pixels: from noon of the second day on the camera is one pixel off."""
    found = load_digits()
    names = [f"pixel_{row}_{column}" for row in range(8) for column in range(8)]

    def moved(rows: np.ndarray, _names: list[str]) -> np.ndarray:
        return np.roll(rows.reshape(-1, 8, 8), 1, axis=2).reshape(len(rows), 64)

    return _drawn("Digits: the camera one pixel off", np.asarray(found.data), names, days=3, change=moved)


def water() -> History:
    """River's `WaterFlow`: a pipe's flow by the hour, eight weeks as they were."""
    rows = [(features["Time"], flow) for features, flow in datasets.WaterFlow()]
    table = pa.table(
        {
            "timestamp": pa.array([when for when, _ in rows], pa.timestamp("ns", "UTC")),
            "flow": pa.array([flow for _, flow in rows], pa.float64()),
        }
    )
    settings = "{window: 48h, panes: 8, min_rows: 40, allowed_lateness: 1h}"
    split = 20 * 24
    return History(
        "Water flow: real rows and times", table.slice(0, split), table.slice(split), None, settings
    )


ALL: tuple[Callable[[], History], ...] = (shuttle, shuttle_anomalies, cancer, cancer_scale, digits, water)


def _shuttle() -> tuple[pa.Table, np.ndarray]:
    rows = list(datasets.Shuttle())
    names = list(rows[0][0])
    table = pa.table({name: pa.array([row[name] for row, _ in rows], pa.float64()) for name in names})
    return table, np.array([is_anomalous == 1 for _, is_anomalous in rows])


def _cancer() -> tuple[np.ndarray, list[str]]:
    found = load_breast_cancer()
    return np.asarray(found.data), [str(name) for name in found.feature_names]


def _every_second(rows: pa.Table) -> pa.Table:
    return rows.append_column("timestamp", pa.array(START_S + np.arange(len(rows), dtype=np.float64)))


def _drawn(
    title: str,
    data: np.ndarray,
    names: list[str],
    *,
    days: float,
    change: Callable[[np.ndarray, list[str]], np.ndarray] | None = None,
) -> History:
    """Rows drawn with replacement, one every three seconds; they change at noon of the second day."""
    rng = np.random.default_rng(0)
    seconds = np.arange(0, timedelta(days=days).total_seconds(), 3.0)
    rows = data[rng.integers(0, len(data), len(seconds))]
    after = seconds >= 1.5 * DAY_S
    if change is not None:
        rows[after] = change(rows[after], names)
    train = data[rng.integers(0, len(data), 20_000)]
    past = pa.table({name: rows[:, place] for place, name in enumerate(names)})
    return History(
        title,
        pa.table({name: train[:, place] for place, name in enumerate(names)}),
        past.append_column("timestamp", pa.array(START_S + seconds)),
        None if change is None else START_S + 1.5 * DAY_S,
    )
