"""Building, saving and loading references."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
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


def test_of_more_distinct_texts_than_are_counted_the_frequent_are_found_wherever_they_stand():
    def ids(start):
        return [f"id-{n}" for n in range(start, start + MAX_DISTINCT // 2)]

    late = ["late"] * 9_000
    built = profile(build(*({"c": ids(part * MAX_DISTINCT)} for part in range(5)), {"c": late}), "c")
    assert built.categories == ("late",)
    assert 9_000 - 2 <= built.counts[0] <= 9_000  # a row in MAX_DISTINCT, of 259,000
    assert built.counts.sum() == built.rows == 9_000 + 5 * (MAX_DISTINCT // 2)


def test_texts_that_all_occur_once_are_no_categories():
    built = profile(build({"c": [str(n) for n in range(MAX_DISTINCT + 7)]}, max_categories=MAX_DISTINCT), "c")
    assert built.categories == ()
    assert built.counts.tolist() == [MAX_DISTINCT + 7]


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


columns = st.fixed_dictionaries(
    {},
    optional={
        "x": st.none() | st.sampled_from([0.0, -0.0, 1.0, np.inf, -np.inf, np.nan]) | st.floats(width=32),
        "y": st.integers(-5, 5) | st.none(),
        "c": st.sampled_from(["a", "b", "c", "", None]),
        "score": st.floats(0, 1),
    },
)
KINDS = {"x": pa.float64(), "y": pa.int64(), "c": pa.string(), "score": pa.float64()}


def batch_of(rows, names):
    """A batch that has a column where any row tells it, in the order of `names`."""
    here = [name for name in names if any(name in row for row in rows)] or ["y"]
    return pa.record_batch(
        {name: pa.array([row.get(name) for row in rows], KINDS[name]) for name in here}  # absent: missing
    )


def saved(reference, folder):
    reference.save(folder / "made.parquet")
    return (folder / "made.parquet").read_bytes()


@settings(max_examples=50)
@given(
    st.lists(st.lists(columns, min_size=1, max_size=8), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
def test_builders_merged_in_any_way_give_the_same_bytes(tmp_path_factory, groups, random):
    folder = tmp_path_factory.mktemp("merged")
    batches = [batch_of(rows, random.sample(list(KINDS), 4)) for rows in groups]
    whole = build(*batches)
    shuffled = random.sample(batches, len(batches))
    parts = []
    for rows in shuffled:
        # A batch may itself be cut, and parts be merged in any tree.
        for piece in (rows.slice(0, 2), rows.slice(2)):
            part = ReferenceBuilder(bins=10, max_categories=5)
            if piece.num_rows:
                part.update(piece, layout_of(piece.schema))
            parts.append(part)
    while len(parts) > 1:
        one, other = (parts.pop(random.randrange(len(parts))) for _ in range(2))
        one.merge(other)
        parts.append(one)
    assert saved(parts[0].build("m", "1", "file"), folder) == saved(whole, folder)


def test_many_values_merge_to_the_same_bytes(tmp_path):
    rng = np.random.default_rng(5)
    table = pa.table({"x": rng.normal(size=60_000), "day": rng.permutation(60_000) * 1e9})
    parts = []
    for piece in (table.slice(0, 100), table.slice(100, 40_000), table.slice(40_100)):
        part = ReferenceBuilder(bins=10, max_categories=5)
        for rows in piece.to_batches():
            part.update(rows, layout_of(rows.schema))
        parts.append(part)
    last, first, middle = parts
    last.merge(first)
    middle.merge(last)
    whole = build(*table.to_batches())
    assert saved(middle.build("m", "1", "file"), tmp_path) == saved(whole, tmp_path)


def test_numbers_do_not_merge_with_text():
    one, other = (ReferenceBuilder(bins=10, max_categories=5) for _ in range(2))
    for builder, values in ((one, [1.0]), (other, ["a"])):
        rows = pa.record_batch({"x": values})
        builder.update(rows, layout_of(rows.schema))
    with pytest.raises(ProfileError, match="numbers in some files and text"):
        one.merge(other)


def test_a_role_that_was_given_goes_before_the_default():
    bare = pa.record_batch({"y": [1.0], "x": [1.0]})
    told = bare.cast(
        pa.schema([pa.field("y", pa.float64(), metadata={"role": "score"}), bare.schema.field(1)])
    )
    for batches in ((bare, told), (told, bare)):
        made = build(*batches)
        assert [(one.name, one.role) for one in made.profiles] == [("y", Role.SCORE), ("x", Role.FEATURE)]
