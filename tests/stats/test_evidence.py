"""E-values by exact enumeration, and how often the detector cries wolf and how soon it sees."""

from __future__ import annotations

import itertools
import math
from itertools import product

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from tidegauge.stats.evidence import accumulate, concentrations, inflation, log_e_value, watch


def log_dirichlet_multinomial(window, concentration, shares):
    """The log probability of the counts, from its definition."""
    rows = sum(window)
    found = math.lgamma(rows + 1) + math.lgamma(concentration) - math.lgamma(concentration + rows)
    for count, share in zip(window, shares, strict=True):
        weight = concentration * share
        found += math.lgamma(weight + count) - math.lgamma(weight) - math.lgamma(count + 1)
    return found


@given(
    st.lists(st.integers(0, 50), min_size=2, max_size=4).filter(sum),
    st.integers(1, 6),
    st.floats(1, 1e4),
    st.floats(1.5, 20),
)
def test_the_expectation_of_an_e_value_under_its_null_is_one(reference, rows, null, ratio):
    reference = np.array(reference, np.int64)
    shares = (reference + 0.5) / (reference + 0.5).sum()
    total = 0.0
    for window in product(range(rows + 1), repeat=len(reference)):
        if sum(window) == rows:
            e = log_e_value(reference, np.array(window, np.int64), null, null / ratio, 1.0)
            total += math.exp(log_dirichlet_multinomial(window, null, shares) + e)
    assert total == pytest.approx(1, rel=1e-9)


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), min_size=2, max_size=40).filter(
        lambda pairs: sum(pair[0] for pair in pairs) > 0
    ),
    st.floats(1, 1e6),
)
def test_an_e_value_is_the_ratio_of_the_two_probabilities(pairs, null):
    reference, window = (np.array(side, np.int64) for side in zip(*pairs, strict=True))
    shares = (reference + 0.5) / (reference + 0.5).sum()
    wanted = log_dirichlet_multinomial(window.tolist(), null / 4, shares)
    wanted -= log_dirichlet_multinomial(window.tolist(), null, shares)
    found = log_e_value(reference, window, null, null / 4, 1.0)
    assert found == pytest.approx(wanted, rel=1e-6, abs=1e-6 * max(1, window.sum()))


@given(st.floats(-700, 700), st.floats(-700, 700))
def test_panes_add_up_by_the_shiryaev_roberts_rule(log_r, log_e):
    wanted = np.logaddexp(log_r, 0.0) + log_e
    assert accumulate(log_r, log_e) == pytest.approx(wanted, abs=1e-9)
    assert accumulate(-math.inf, log_e) == log_e


def test_a_lasting_psi_at_the_threshold_is_where_evidence_turns():
    reference = np.full(20, 50_000, np.int64)
    for threshold in (0.05, 0.1, 0.25):
        given_rows = concentrations(threshold, 20, int(reference.sum()))
        signs = []
        for psi in (0.7 * threshold, 1.3 * threshold):
            # Half the bins gain what the others lose: PSI is about the square of the gap.
            gap = math.sqrt(psi)
            shares = (1 + gap * np.tile([1, -1], 10)) / 20
            window = np.round(1e6 * shares).astype(np.int64)
            signs.append(log_e_value(reference, window, *given_rows, 1.0) > 0)
        assert signs == [False, True]


def test_a_small_reference_blurs_the_null():
    assert concentrations(0.1, 20, 100).null == 100
    assert concentrations(0.1, 20, 10**6).null == pytest.approx(351, abs=1)
    for wrong in ((0.0, 20, 100), (0.1, 1, 100), (0.1, 20, 0)):
        with pytest.raises(ValueError, match="are the least"):
            concentrations(*wrong)


def first_alarm(panes, reference, threshold, level, rng_inflation=None):
    """The place of the first pane at which R reaches `level`, or None."""
    log_r = -math.inf
    given_rows = concentrations(threshold, len(reference), int(reference.sum()))
    for place, window in enumerate(panes):
        spread = 1.0 if rng_inflation is None else rng_inflation[place]
        log_r = accumulate(log_r, log_e_value(reference, window, *given_rows, spread))
        if log_r >= math.log(level):
            return place
    return None


@pytest.mark.parametrize("rows", [30, 200, 2000])
def test_without_drift_false_alarms_are_rarer_than_promised_at_the_edge_of_the_null(rows):
    """Shares that vary from pane to pane as widely as the null allows: at most one alarm in 100 panes."""
    rng = np.random.default_rng(11)
    reference = np.full(10, 400, np.int64)
    null = concentrations(0.1, 10, 4000).null
    alarms = 0
    for _ in range(40):
        shares = rng.dirichlet(np.full(10, null / 10), size=100)
        panes = [rng.multinomial(rows, share).astype(np.int64) for share in shares]
        alarms += first_alarm(panes, reference, 0.1, 100.0) is not None
    # In 40 runs of 100 panes R >= 100 is reached in at most 63 % of them were the bound tight (binomial
    # standard error 8 %); what is seen is far less, since SR overshoots.
    assert alarms <= 16


def test_a_shift_of_one_sigma_is_seen_in_the_first_pane_and_a_tenth_of_one_never_pages():
    rng = np.random.default_rng(12)
    base = np.sort(rng.normal(size=5000))
    edges = np.quantile(base, np.arange(1, 20) / 20)

    def counted(values):
        return np.bincount(np.searchsorted(edges, values), minlength=20).astype(np.int64)

    reference = counted(base)
    large = [counted(rng.normal(1.0, 1, 500)) for _ in range(5)]
    small = [counted(rng.normal(0.1, 1, 500)) for _ in range(2000)]
    assert first_alarm(large, reference, 0.1, 8640.0) == 0
    assert first_alarm(small, reference, 0.1, 8640.0) is None  # its PSI is 0.01: not material
    assert first_alarm(small, reference, 0.005, 8640.0) < 50


def of_one(panes, ordered=True):
    """The inflation of one column's panes, int64[panes, bins]."""
    panes = np.asarray(panes, np.int64)
    return inflation(np.ascontiguousarray(panes[:, None, :]), np.array([panes.shape[1]]), ordered)[0]


def slow_inflation(table, ordered):
    """The definition, pair by pair, by scipy."""
    bins, table = table.shape[1], table[table.sum(axis=1) > 0]
    if len(table) < 3:
        return np.inf
    found = 1.0
    for parts in (bins, 4) if ordered and bins > 4 else (bins,):
        cuts = [part * bins // parts for part in range(parts)]
        merged = np.add.reduceat(table, cuts, axis=1)
        ratios = []
        for one, other in itertools.pairwise(merged):
            pair = np.array([one, other])[:, (one + other) > 0]
            if pair.shape[1] < 2:
                continue
            told = scipy.stats.chi2_contingency(pair, correction=False)
            ratios.append(told.statistic / (told.dof * (1 - 2 / (9 * told.dof)) ** 3))
        if ratios:
            found = max(found, np.median(ratios))
    return found * max(12 / (len(table) - 1), 1)


@given(st.integers(2, 16), st.integers(2, 9), st.booleans(), st.randoms(use_true_random=False))
def test_inflation_is_the_median_of_pearsons_statistics(panes, bins, ordered, random):
    rows = [random.choice([0, 1, 1]) for _ in range(panes)]
    table = np.array([[its * random.randint(0, 30) for _ in range(bins)] for its in rows])
    assert of_one(table, ordered) == pytest.approx(slow_inflation(table, ordered), rel=1e-9)


def test_rows_that_come_in_runs_count_for_fewer_and_a_jump_does_not_matter():
    rng = np.random.default_rng(13)
    shares = np.full(5, 0.2)
    independent = np.array([rng.multinomial(300, shares) for _ in range(200)])
    runs = np.array([10 * rng.multinomial(30, shares) for _ in range(200)])
    assert of_one(independent) == pytest.approx(1, abs=0.2)
    assert of_one(runs) == pytest.approx(10, rel=0.2)
    jumped = np.concatenate(
        [independent, np.array([rng.multinomial(300, [0.8, 0.05, 0.05, 0.05, 0.05])] * 1)]
    )
    assert of_one(jumped) == pytest.approx(of_one(independent), rel=0.02)


def test_few_panes_say_little_of_how_much_panes_vary_and_none_nothing():
    rng = np.random.default_rng(14)
    panes = np.array([10 * rng.multinomial(30, np.full(5, 0.2)) for _ in range(13)])
    assert of_one(panes[:7]) == pytest.approx(2 * 10, rel=0.6)
    assert of_one(panes) == pytest.approx(10, rel=0.6)
    apart = np.zeros((26, 5), np.int64)
    apart[::2] = panes
    assert of_one(apart) == of_one(panes)  # also where other columns' panes lie between
    assert of_one(np.zeros((3, 4))) == of_one(panes[:2]) == np.inf
    assert of_one(np.tile([300, 0, 0], (13, 1))) == 1  # a constant


def test_a_column_without_rows_waits_and_evidence_is_capped():
    reference = np.array([[500, 500], [500, 500]])
    given_rows = np.array([concentrations(0.1, 2, 1000)] * 2)
    log_r = np.full(2, -math.inf)
    window = np.array([[400, 0], [0, 0]])
    watch(np.array([2, 2]), reference, given_rows, window, np.ones(2), 12.0, log_r)
    assert log_r.tolist() == [12.0, -math.inf]
