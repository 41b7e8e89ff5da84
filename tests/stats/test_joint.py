"""Statistics of all columns at once: scipy and scikit-learn as oracles, and nulls by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from tidegauge.stats import joint


@given(
    st.lists(st.integers(0, 8), min_size=20, max_size=60),
    st.lists(st.integers(0, 8), min_size=20, max_size=60),
)
def test_the_auc_and_its_p_value_are_mann_and_whitneys(first, second):
    a, b = np.array(first, float), np.array(second, float)
    found = joint.separation(a, b, two_sided=True)
    if len({*first, *second}) == 1:
        assert found.p_value == 1
        return
    wanted = scipy.stats.mannwhitneyu(b, a, method="asymptotic", use_continuity=False)
    assert found.auc == pytest.approx(wanted.statistic / (len(a) * len(b)))
    assert found.p_value == pytest.approx(wanted.pvalue)
    one_sided = scipy.stats.mannwhitneyu(
        b, a, method="asymptotic", use_continuity=False, alternative="greater"
    )
    assert joint.separation(a, b).p_value == pytest.approx(one_sided.pvalue)


def test_numbers_become_normal_scores_of_their_ranks():
    random = np.random.default_rng(0)
    a, b = random.lognormal(size=(50, 1)), random.lognormal(size=(30, 1)).round(1)
    ranks = scipy.stats.rankdata(np.concatenate([a, b])[:, 0])
    x, y = joint.alike(a, b, [False])
    assert np.concatenate([x, y])[:, 0] == pytest.approx(scipy.stats.norm.ppf((ranks - 0.5) / 80))


def test_categories_and_missing_values_are_columns():
    a = np.array([[0.0, np.nan], [1.0, 2.0], [2.0, 3.0], [1.0, 4.0]])
    x, y = joint.alike(a, a, [True, False])
    assert x.shape == (4, 4)  # two of three categories, the number, and where it is missing
    assert x[0, 2] == 0
    whole = np.concatenate([x, y])
    assert whole.mean(axis=0) == pytest.approx(np.zeros(4), abs=1e-12)
    constant, _ = joint.alike(np.ones((4, 1)), np.ones((4, 1)), [False])
    assert constant.shape == (4, 1)
    assert not constant.any()


def mixed(rows, random):
    """Columns as models have them: skewed, few values, categories, missing ones, and correlated."""
    columns = random.normal(size=(rows, 8))
    columns[:, 1] += columns[:, 0]
    columns[:, 2] = np.exp(columns[:, 2])
    columns[:, 3] = random.integers(0, 3, rows)
    columns[:, 4] = random.integers(0, 5, rows)
    columns[random.random(rows) < 0.1, 5] = np.nan
    return columns


def test_p_values_of_the_classifier_and_the_projection_are_uniform_without_drift():
    random = np.random.default_rng(1)
    found = []
    for _ in range(300):
        x, y = joint.alike(mixed(200, random), mixed(240, random), [False] * 3 + [True] * 2 + [False] * 3)
        found.append((joint.domain_auc(x, y), joint.reconstruction(x, y).p_value))
    for p_values in ([one.p_value for one, _ in found], [p for _, p in found]):
        assert scipy.stats.kstest(p_values, "uniform").pvalue > 0.001
        assert abs(np.mean(np.array(p_values) < 0.05) - 0.05) < 0.04
    assert abs(np.mean([one.auc > one.limit for one, _ in found]) - 0.05) < 0.04


def repeating(kind, rows, random):
    """Rows of which many are the same: of few categories, each twice, or of few customers."""
    if kind == "categories":
        return (random.random((rows, 9)) < 0.3).astype(float)
    if kind == "twice":
        return random.permutation(np.repeat(random.normal(size=(rows // 2, 4)), 2, axis=0))
    return random.normal(size=(rows // 4, 4))[(10 * random.pareto(1, rows)).astype(int) % (rows // 4)]


@pytest.mark.parametrize("kind", ["categories", "twice", "customers"])
def test_rows_that_repeat_are_not_known_by_heart(kind):
    """Without drift; "twice" and "customers" were once called drifted 9 and 10 times in 10."""
    random, found = np.random.default_rng(3), []
    for _ in range(120):
        a, b = repeating(kind, 600, random), repeating(kind, 400, random)
        x, y = joint.alike(a, b, [False] * a.shape[1])
        found.append((joint.domain_auc(x, y).p_value, joint.reconstruction(x, y).p_value))
    # At 5 % of 120: 6, and 14 is 3.3 standard deviations more.
    assert [int(count) for count in (np.array(found) < 0.05).sum(axis=0)] <= [14, 14]


def test_rows_of_a_few_categories_that_shift_are_seen():
    random = np.random.default_rng(4)
    a = random.choice(5, (1_000, 2), p=[0.3, 0.3, 0.2, 0.1, 0.1]).astype(float)
    b = random.choice(5, (1_000, 2), p=[0.1, 0.1, 0.2, 0.3, 0.3]).astype(float)
    assert joint.domain_auc(*joint.alike(a, b, [True, True])).auc > 0.7


def test_rows_all_of_which_were_learned_on_one_side_are_not_judged():
    a, b = np.tile([[0.0, 1.0]], (300, 1)), np.tile([[1.0, 0.0]], (300, 1))
    assert math.isnan(joint.domain_auc(a, b).auc)


@pytest.mark.parametrize("change", ["shift", "correlation", "scale"])
def test_the_classifier_sees_what_changes(change):
    random = np.random.default_rng(2)
    a, b = random.normal(size=(2, 1_000, 10))
    if change == "shift":
        b[:, 0] += 0.5
    elif change == "correlation":
        b[:, 1] = 0.8 * b[:, 0] + 0.6 * b[:, 1]
    else:
        b[:, 0] *= 1.7
    found = joint.domain_auc(*joint.alike(a, b, [False] * 10))
    assert found.p_value < 0.01
    assert found.auc < 0.75


def test_a_shift_has_the_auc_of_normal_distributions():
    random = np.random.default_rng(3)
    a, b = random.normal(size=(2, 3_000, 3))
    b[:, 0] += 1
    found = joint.domain_auc(*joint.alike(a, b, [False] * 3))
    assert found.auc == pytest.approx(scipy.stats.norm.cdf(1 / 2**0.5), abs=0.03)


def test_components_are_those_of_scikit_learn():
    decomposition = pytest.importorskip("sklearn.decomposition", reason="scikit-learn is not installed")
    random = np.random.default_rng(4)
    rows = random.normal(size=(300, 6)) @ random.normal(size=(6, 6))
    other = random.normal(size=(50, 6))
    pca = decomposition.PCA(n_components=3).fit(rows)
    values, vectors = joint.components(rows - rows.mean(axis=0))
    assert values[:3] == pytest.approx(pca.explained_variance_)
    wanted = ((other - pca.inverse_transform(pca.transform(other))) ** 2).sum(axis=1)
    assert joint.residuals(other - rows.mean(axis=0), vectors[:, :3]) == pytest.approx(wanted)


def test_what_leaves_the_plane_of_the_reference_has_a_larger_error():
    random = np.random.default_rng(5)
    plane = random.normal(size=(2, 8))
    a = random.normal(size=(400, 2)) @ plane + 0.1 * random.normal(size=(400, 8))
    b = a + 0.3 * random.normal(size=(400, 8))
    found = joint.reconstruction(a, b)
    assert found.kept == 2
    assert found.ratio > 5
    assert found.p_value < 1e-9


def test_nothing_left_over_is_no_error():
    columns = np.random.default_rng(6).normal(size=(200, 1))
    assert np.isnan(joint.reconstruction(columns, columns).ratio)


def test_correlated_columns_are_numpys():
    random = np.random.default_rng(7)
    columns = random.normal(size=(500, 5))
    columns[:, 3] = -columns[:, 1] + 0.5 * columns[:, 3]
    columns[:, 4] = 1.0
    with np.errstate(invalid="ignore"):
        matrix = np.corrcoef(columns.T)
    wanted = [(i, j) for i in range(5) for j in range(i + 1, 5) if abs(matrix[i, j]) >= 0.7]
    assert wanted == [(1, 3)]
    assert joint.correlated(columns, 0.7).tolist() == [[1, 3]]


def test_groups_are_connected_by_members_only():
    pairs = np.array([[0, 1], [1, 2], [4, 5], [2, 9]])
    assert joint.groups([0, 2, 4, 5, 9], pairs) == [[2, 9], [4, 5]]
    assert joint.groups([0, 1, 2, 9], pairs) == [[0, 1, 2, 9]]
    assert joint.groups([0, 3], pairs) == []
