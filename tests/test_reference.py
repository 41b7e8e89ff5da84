"""Building, saving and loading references."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegauge.layout import Kind, Role, layout_of
from tidegauge.profile import ProfileError, Reference
from tidegauge.reference import MAX_DISTINCT, ReferenceBuilder


def build(*batches, **settings):
    builder = ReferenceBuilder(**{"bins": 10, "max_categories": 5} | settings)
    for columns in batches:
        rows = columns if isinstance(columns, pa.RecordBatch) else pa.RecordBatch.from_pydict(columns)
        builder.update(rows, layout_of(rows.schema))
    return builder.build("m", "1", "file")


def profile(reference, name):
    return next(one for one in reference.profiles if one.name == name)


@given(st.lists(st.none() | st.floats(), max_size=200))
def test_numbers_are_counted_on_quantile_bins(values):
    built = profile(
        build(
            {"x": pa.array(values, pa.float64()), "y": pa.array([0.0] * len(values), pa.float64())},
            {"y": [1.0]},
        ),
        "x",
    )
    real = np.array([v for v in values if v is not None and v == v])
    assert built.rows == len(real)
    assert built.missing == len(values) - len(real) + 1  # the second batch lacks the column
    if len(real) and np.isfinite(real).any():
        wanted = np.bincount(np.searchsorted(built.edges, real, side="left"), minlength=len(built.edges) + 1)
        assert built.counts.tolist() == wanted.tolist()
        finite = real[np.isfinite(real)]
        assert (built.lowest, built.highest) == (finite.min(), finite.max())


def test_sums_and_centre_give_the_mean():
    values = np.random.default_rng(0).normal(5, 2, 3_000)
    built = profile(build({"x": values}), "x")
    assert built.center == pytest.approx(values.mean())
    assert built.center + built.sums.sum() / built.rows == pytest.approx(values.mean())
    first = values[values <= built.edges[0]]
    assert built.center + built.sums[0] / built.counts[0] == pytest.approx(first.mean())


def test_ten_bins_of_a_smooth_variable_hold_a_tenth_each():
    built = profile(build({"x": np.random.default_rng(1).normal(size=100_000)}), "x")
    assert built.counts / 100_000 == pytest.approx(np.full(10, 0.1), abs=0.002)


def test_splits_and_order_leave_no_trace_in_the_file(tmp_path):
    rng = np.random.default_rng(2)
    table = pa.table({"x": rng.normal(size=40_000), "c": rng.choice(list("abcdefgh"), 40_000)})
    paths = []
    for number, size in enumerate((40_000, 977)):
        batches = table.to_batches(size)
        build(*(batches if number == 0 else reversed(batches))).save(tmp_path / f"{number}.parquet")
        paths.append(tmp_path / f"{number}.parquet")
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_categories_are_ranked_and_the_tail_is_other():
    built = profile(build({"c": ["a"] * 50 + ["b"] * 90 + [None] + list("cdefgh")}), "c")
    assert built.categories == ("b", "a")  # the others are as frequent as those that found no place
    assert built.counts.tolist() == [90, 50, 6]
    assert built.missing == 1
    assert built.bin_labels() == ("b", "a", "__unseen__")
    assert profile(build({"c": list("aab")}), "c").counts.tolist() == [2, 1, 0]


def test_labels_of_odd_categories_are_apart():
    odd = ["", "__unseen__", "__missing__", "'__unseen__'", "''", "'", "a"]
    built = profile(build({"c": odd}, max_categories=10), "c")
    labels = [*built.bin_labels(), "__missing__"]
    assert len(set(labels)) == len(odd) + 2
    assert "" not in labels


def test_dictionaries_and_booleans_are_text():
    rows = {"d": pa.array(["x", "y", "x"]).dictionary_encode(), "b": [True, False, None]}
    built = build(rows)
    assert profile(built, "d").categories == ("x", "y")
    assert profile(built, "b").categories == ("false", "true")


def test_more_distinct_texts_than_are_counted_are_other():
    built = profile(build({"c": [str(n) for n in range(MAX_DISTINCT + 7)]}, max_categories=MAX_DISTINCT), "c")
    assert len(built.categories) == MAX_DISTINCT
    assert built.counts[-1] == 7


def test_fractions_cannot_be_codes():
    with pytest.raises(ProfileError, match="only whole numbers"):
        build({"x": [0.5]}, categorical={"x"})


def test_roles_are_kept_and_only_watched_columns_profiled():
    built = build({"x": [1.0], "score": [0.5], "prediction": ["a"], "label": [1], "prediction_id": ["p"]})
    assert {one.name: one.role for one in built.profiles} == {
        "x": Role.FEATURE,
        "score": Role.SCORE,
        "prediction": Role.PREDICTION,
    }


def test_what_is_saved_is_what_is_loaded(tmp_path):
    made = build({"x": [1.0, 2.0, None, 4.5], "c": ["a", "b", "a", None], "k": [3, 3, 3, 3]})
    path = tmp_path / "r.parquet"
    made.save(path)
    loaded = Reference.load(path)
    assert (loaded.model, loaded.version, loaded.rows, loaded.source) == ("m", "1", 4, "file")
    for one, two in zip(made.profiles, loaded.profiles, strict=True):
        assert one.bin_labels() == two.bin_labels()
        assert (one.name, one.role, one.kind, one.missing) == (two.name, two.role, two.kind, two.missing)
        assert (one.lowest, one.highest, one.center) == (two.lowest, two.highest, two.center)
        for field in ("counts", "edges", "sums"):
            assert getattr(one, field).tolist() == getattr(two, field).tolist()
            assert getattr(one, field).dtype == getattr(two, field).dtype
    assert [path.name for path in tmp_path.iterdir()] == ["r.parquet"]


def test_intervals_have_names_that_tell_them_apart():
    built = profile(build({"x": [1.0, 2.0, 3.5]}), "x")
    assert built.kind is Kind.NUMERIC
    assert built.bin_labels() == ("(-inf,1.5]", "(1.5,2.75]", "(2.75,+inf)")


def test_errors_say_what_is_wrong(tmp_path):
    with pytest.raises(ProfileError, match="no rows"):
        build()
    with pytest.raises(ProfileError, match="numbers in some files and text in others"):
        build({"x": [1.0]}, {"x": ["a"]})
    with pytest.raises(ProfileError, match="is not there"):
        Reference.load(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(ProfileError, match="is not a reference"):
        Reference.load(tmp_path / "text.parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ProfileError, match="not a reference of format 2"):
        Reference.load(tmp_path / "other.parquet")
    with pytest.raises(ProfileError, match="cannot be written"):
        build({"x": [1.0]}).save(tmp_path / "nowhere" / "r.parquet")
