"""Every change detector against river's, change by change, and with state that is all there is to keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from river import base, datasets, drift

from tidegauge.stats import adwin, error_rate, page_hinkley


class Detector(NamedTuple):
    fresh: Callable[[], np.ndarray]
    update: Callable[[np.ndarray, np.ndarray, np.ndarray], int]
    rivers: Callable[[], base.DriftDetector]


NUMERIC = {
    "adwin": Detector(adwin.fresh, adwin.update, drift.ADWIN),
    "adwin, eager": Detector(lambda: adwin.fresh(0.9), adwin.update, lambda: drift.ADWIN(0.9)),
    "adwin, slow": Detector(lambda: adwin.fresh(1e-9), adwin.update, lambda: drift.ADWIN(1e-9)),
    "page_hinkley": Detector(page_hinkley.fresh, page_hinkley.update, drift.PageHinkley),
    "page_hinkley, eager": Detector(
        lambda: page_hinkley.fresh(3.0, 0.1, 1.0),
        page_hinkley.update,
        lambda: drift.PageHinkley(delta=0.1, threshold=3.0, alpha=1.0),
    ),
}
BINARY = {
    "ddm": Detector(error_rate.fresh, error_rate.ddm, drift.binary.DDM),
    "eddm": Detector(error_rate.fresh, error_rate.eddm, drift.binary.EDDM),
    "hddm_a": Detector(error_rate.fresh, error_rate.hddm_a, drift.binary.HDDMA),
}
ALL = NUMERIC | BINARY

numeric = pytest.mark.parametrize("detector", NUMERIC.values(), ids=NUMERIC)
binary = pytest.mark.parametrize("detector", BINARY.values(), ids=BINARY)
every = pytest.mark.parametrize("detector", ALL.values(), ids=ALL)


def run(detector: Detector, values: np.ndarray, state: np.ndarray | None = None) -> list[int]:
    changes = np.zeros(len(values), np.int64)
    state = detector.fresh() if state is None else state
    return changes[: detector.update(state, values, changes)].tolist()


def rivers(detector: Detector, values: np.ndarray) -> list[int]:
    theirs, found = detector.rivers(), []
    for place, value in enumerate(values.tolist()):
        theirs.update(value)
        if theirs.drift_detected:
            found.append(place)
    return found


segments = st.lists(
    st.tuples(
        st.sampled_from(["normal", "bits", "whole"]),
        st.integers(1, 900),
        st.sampled_from([0.0, 0.1, 0.5, -3.0, 1e3, 1e-9]),
        st.sampled_from([0.0, 1e-3, 1.0, 50.0]),
        st.integers(0, 2**32 - 1),
    ),
    min_size=1,
    max_size=6,
)


@st.composite
def streams(draw: st.DrawFn) -> np.ndarray:
    """Runs of values that differ in mean and spread."""
    parts = []
    for kind, length, mean, spread, seed in draw(segments):
        random = np.random.default_rng(seed)
        drawn = random.normal(mean, spread, length)
        if kind == "bits":
            drawn = (random.random(length) < abs(mean) % 1.0).astype(float)
        parts.append(np.round(drawn) if kind == "whole" else drawn)
    return np.concatenate(parts)


@st.composite
def verdicts(draw: st.DrawFn) -> np.ndarray:
    """Runs of zeros and ones of differing rates."""
    runs = draw(
        st.lists(
            st.tuples(st.integers(1, 900), st.floats(0, 1), st.integers(0, 2**32 - 1)), min_size=1, max_size=6
        )
    )
    return np.concatenate(
        [(np.random.default_rng(seed).random(length) < rate).astype(float) for length, rate, seed in runs]
    )


@numeric
@settings(max_examples=60, deadline=None)
@given(values=streams())
def test_it_finds_the_changes_that_river_finds(detector, values):
    assert run(detector, values) == rivers(detector, values)


@numeric
@settings(deadline=None)
@given(values=st.lists(st.floats(-1e150, 1e150), max_size=200).map(lambda values: np.array(values, float)))
@example(values=np.array([1e150] * 50 + [-1e150] * 150))
def test_it_finds_what_river_finds_in_extreme_values(detector, values):
    assert run(detector, values) == rivers(detector, values)


@binary
@settings(max_examples=60, deadline=None)
@given(values=verdicts())
def test_it_finds_the_changes_of_a_rate_that_river_finds(detector, values):
    assert run(detector, values) == rivers(detector, values)


@every
@settings(max_examples=40, deadline=None)
@given(values=verdicts(), cuts=st.lists(st.integers(0, 6000), max_size=5))
def test_batches_and_restarts_leave_no_trace(detector, values, cuts):
    whole = detector.fresh()
    wanted = run(detector, values, whole)
    state, found, begin = detector.fresh(), [], 0
    for end in sorted(min(cut, len(values)) for cut in [*cuts, len(values)]):
        state = np.array(state.tolist())  # written down and read back
        found += [begin + place for place in run(detector, values[begin:end], state)]
        begin = end
    assert found == wanted
    assert np.array_equal(state, whole)


@every
def test_a_read_only_batch_will_do(detector):
    values = np.ones(64)
    values.flags.writeable = False
    assert run(detector, values) == []


@pytest.fixture(scope="module")
def bundled() -> dict[str, np.ndarray]:
    """Streams that river ships, the first 8000 rows of each."""
    found = {"water flow": [y for _, y in datasets.WaterFlow()]}
    found["trump approval"] = [y for _, y in datasets.TrumpApproval()]
    found["airline passengers"] = [y for _, y in datasets.AirlinePassengers()]
    found["bananas"] = [x["1"] for x, _ in datasets.Bananas()]
    shuttle = [row for row, _ in datasets.Shuttle().take(8000)]
    found |= {f"shuttle {name}": [row[name] for row in shuttle] for name in ("f1", "f2", "f7", "f9")}
    return {name: np.array(values, float) for name, values in found.items()}


@numeric
def test_it_finds_what_river_finds_in_real_streams(detector, bundled):
    found = {name: run(detector, values) for name, values in bundled.items()}
    assert found == {name: rivers(detector, values) for name, values in bundled.items()}
    assert any(found.values())


@binary
def test_it_finds_what_river_finds_in_real_errors(detector):
    # A guess that gets worse: "anomalous" where the first attribute is high, of rows sorted half way through.
    for stream in (datasets.Phishing(), datasets.Bananas()):
        rows = [(next(iter(row.values())) > 0.5, bool(y)) for row, y in stream]
        half = len(rows) // 2
        rows[half:] = sorted(rows[half:])
        wrong = np.array([guess != truth for guess, truth in rows], float)
        assert run(detector, wrong) == rivers(detector, wrong) != []


def test_adwin_has_the_window_that_river_has(bundled):
    for values in bundled.values():
        state, theirs = adwin.fresh(), drift.ADWIN()
        adwin.update(state, values, np.zeros(len(values), np.int64))
        for value in values.tolist():
            theirs.update(value)
        assert adwin.width(state) == theirs.width
        assert adwin.mean(state) == theirs.estimation
        # river calls the sum of squares the variance
        assert adwin.variance(state) == theirs.variance / theirs.width


def test_adwin_seldom_errs_within_its_bounds():
    random = np.random.default_rng(1)
    changes = np.zeros(200_000, np.int64)
    shapes = (random.random, lambda n: random.beta(0.5, 5, n), lambda n: (random.random(n) < 0.01) * 1.0)
    assert sum(adwin.update(adwin.fresh(), draw(200_000), changes) for draw in shapes for _ in range(5)) <= 1


@pytest.mark.parametrize("shift", [0.02, 0.05, 0.2])
def test_adwin_finds_a_shift_once_there_are_rows_enough(shift):
    random = np.random.default_rng(2)
    values = random.beta(2, 2, 120_000)  # of standard deviation 0.22
    values[60_000:] = np.minimum(values[60_000:] + shift, 1.0)
    state = adwin.fresh()
    changes = np.zeros(len(values), np.int64)
    found = changes[: adwin.update(state, values, changes)]
    # Means of n values each side differ for certain by sqrt(4 v d / n) or so, d about 10.
    assert 60_000 <= found[0] < 60_000 + 4 * 0.05 * 10 / shift**2 + 5 * 32
    assert abs(adwin.mean(state) - np.minimum(random.beta(2, 2, 10**5) + shift, 1.0).mean()) < 0.01


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, float("nan")])
def test_a_confidence_that_is_none_is_refused(delta):
    with pytest.raises(ValueError, match="delta"):
        adwin.fresh(delta)


def test_what_has_seen_nothing_has_no_mean():
    assert np.isnan(adwin.mean(adwin.fresh()))
    assert np.isnan(adwin.variance(adwin.fresh()))
    assert np.isnan(page_hinkley.mean(page_hinkley.fresh()))
    assert adwin.width(adwin.fresh()) == 0
