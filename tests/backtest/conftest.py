"""A model's reference, and a history of it that changes at a known time."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tidegauge.config import Drift as Settings
from tidegauge.layout import layout_of
from tidegauge.reference import ReferenceBuilder
from tidegauge.units import Duration

START = 1_780_272_000 * 10**9  # the start of an hour
MINUTE = 60 * 10**9


@pytest.fixture(scope="session")
def reference():
    rng = np.random.default_rng(0)
    builder = ReferenceBuilder(bins=10, max_categories=5)
    rows = pa.record_batch(
        {"steady": rng.normal(size=20_000), "moves": rng.normal(size=20_000), "score": rng.random(20_000)}
    )
    builder.update(rows, layout_of(rows.schema))
    return builder.build("fraud", "2.1", "file")


@pytest.fixture(scope="session")
def settings():
    return Settings(window=Duration("1h"), panes=12, allowed_lateness=Duration("5m"), other_windows=())


@pytest.fixture(scope="session")
def past():
    """Twelve hours, 100 rows a minute; `moves` is shifted by one sigma from the sixth hour on."""
    rng = np.random.default_rng(1)
    times = START + np.sort(rng.integers(0, 12 * 60 * MINUTE, 72_000))
    shifted = times >= START + 6 * 60 * MINUTE
    rows = pa.record_batch(
        {
            "when": pa.array(times),
            "steady": rng.normal(size=72_000),
            "moves": rng.normal(size=72_000) + shifted,
            "score": rng.random(72_000),
        }
    )
    role = rows.schema.field("when").with_metadata({"role": "timestamp"})
    return rows.cast(rows.schema.set(0, role)), times
