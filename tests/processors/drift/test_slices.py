"""Slices: their counts beside those of their rows alone, and which of them are told to be worst."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tidegauge.batch import Records
from tidegauge.config import Drift as Settings
from tidegauge.config import Slices as SliceSettings
from tidegauge.identity import Identity
from tidegauge.layout import layout_of
from tidegauge.processors.drift.counts import Counts, Plan
from tidegauge.processors.drift.drift import Drift
from tidegauge.reference import ReferenceBuilder
from tidegauge.units import Duration

ME = Identity("fraud", "2.1")
SECOND = 10**9
NOW = 1_800_000_000 * SECOND
REGIONS = ("eu", "us", "asia")


def columns(count, seed=0, shift=0.0, where=None):
    """Rows whose amount is shifted in one region."""
    random = np.random.default_rng(seed)
    region = random.choice(REGIONS, count, p=[0.5, 0.3, 0.2])
    amount = random.normal(size=count) + shift * (region == where)
    return {
        "amount": amount,
        "age": random.integers(18, 80, count).astype(np.int16),
        "country": random.choice(["de", "fr", "it"], count),
        "region": region,
    }


def batch(given_columns, roles=("region",), now_ns=NOW, times=None):
    table = dict(given_columns)
    if times is not None:
        table["timestamp"] = pa.array(times, pa.timestamp("ns"))
    rows = pa.RecordBatch.from_pydict(table)
    fields = [
        field.with_metadata({"role": "segment"}) if field.name in roles else field for field in rows.schema
    ]
    rows = pa.RecordBatch.from_arrays(rows.columns, schema=pa.schema(fields))
    return Records("flight", ME, layout_of(rows.schema), rows, now_ns, rows.nbytes)


def reference(given_columns=None, **settings):
    builder = ReferenceBuilder(**{"bins": 20, "max_categories": 100} | settings)
    its = batch(given_columns or columns(20_000, seed=1))
    builder.update(its.rows, its.layout)
    return builder.build("fraud", "2.1", "file")


REFERENCE = reference()


def drift(reference=REFERENCE, **slices):
    more = slices.pop("settings", {})
    return Drift(Settings(slices=SliceSettings(**slices), **more), [reference])


def points(processor, name, now_ns=NOW):
    [found] = [metric.points for metric in processor.collect(now_ns) if metric.name == name] or [()]
    return {
        tuple(value for key, value in point.attributes if key not in ME._fields): point for point in found
    }


def values(processor, name, now_ns=NOW):
    return {" ".join(key): point.value for key, point in points(processor, name, now_ns).items()}


def totals(window, now_ns=NOW):
    return {str(its): total for its, total in window.slices.totals(window.clock(now_ns))}


def window_of(processor):
    return processor._watches[ME].window


def same(one, other):
    for mine, its in zip(one.arrays().values(), other.arrays().values(), strict=True):
        np.testing.assert_allclose(mine, its, atol=1e-9)


batches_of_times = st.lists(st.lists(st.integers(0, 90), min_size=1, max_size=40), min_size=1, max_size=5)


@given(batches_of_times, st.integers(0, 2**32 - 1))
@hypothesis_settings(max_examples=60, deadline=None)
def test_a_slice_has_its_rows_of_the_window_and_all_of_a_column_are_the_whole(batches, seed):
    settings = {"window": Duration("60s"), "panes": 6, "allowed_lateness": Duration("20s")}
    processor = drift(panes=6, settings=settings)
    random = np.random.default_rng(seed)
    taken, now, newest = [], NOW + 90 * SECOND, None
    for number, seconds in enumerate(batches):
        table = columns(len(seconds), seed=seed % 1000 + number)
        table["amount"] = np.where(random.random(len(seconds)) < 0.2, np.nan, table["amount"])
        if number % 2:
            del table["age"]
        times = NOW + np.array(seconds) * SECOND
        in_time = times >= (newest - 20 * SECOND if newest else 0)
        newest = max(newest or 0, int(times.max()))
        taken.append((table, in_time, times))
        processor.update(batch(table, times=times, now_ns=now))
    window = window_of(processor)
    begin = (window.clock(now) // (10 * SECOND) - 5) * 10 * SECOND
    found = totals(window, now)
    summed = Counts(window.tables)
    for region in REGIONS:
        wanted = Counts(window.tables)
        for table, in_time, times in taken:
            mine = in_time & (times >= begin) & (table["region"] == region)
            its = batch({name: column[mine] for name, column in table.items()})
            plan = Plan(its.layout, its.rows.schema, window.tables)
            plan.fold([plan.prepare(its.rows, wanted)], wanted)
        summed += wanted
        if wanted.categories.any():
            same(found.pop(f"region={region}"), wanted)
    assert not found
    same(window.total(now), summed)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["texts", "dictionaries", "segment of dictionaries"]))
@hypothesis_settings(max_examples=30, deadline=None)
def test_a_slice_has_the_categories_of_its_rows_missing_and_unseen_ones_too(seed, coding):
    settings = {"window": Duration("60s"), "panes": 6, "max_future": Duration("10m")}
    processor, random = drift(panes=6, settings=settings), np.random.default_rng(seed)
    met = {region: Counter() for region in (*REGIONS, "__missing__")}
    for number in range(3):
        count = int(random.integers(1, 60))
        countries, regions = (
            [values[place] for place in random.integers(0, len(values), count).tolist()]
            for values in (["de", "fr", "it", None, "never met", ""], [*REGIONS, None])
        )
        table = {"country": pa.array(countries, pa.string()), "region": pa.array(regions, pa.string())}
        if coding != "texts":
            name = "region" if coding.startswith("segment") else "country"
            table[name] = table[name].dictionary_encode()
        seconds = random.integers(0, 60, count) if number % 2 else np.zeros(count, np.int64)
        processor.update(batch(table, times=NOW + seconds * SECOND, now_ns=NOW))
        for region, country in zip(regions, countries, strict=True):
            met[region or "__missing__"][country] += 1
    window = window_of(processor)
    [profile] = window.tables.categorical
    for name, total in totals(window, NOW).items():
        wanted = met.pop(name.removeprefix("region="))
        known = [wanted.pop(text, 0) for text in profile.categories]
        assert total.missing.tolist() == [wanted.pop(None, 0)]
        assert total.categories[0].tolist() == [*known, wanted.total()]
        assert total.tallies[:, 0].tolist() == [sum(known) + wanted.total() + total.missing[0]] * 2
    assert not any(met.values())


def test_slices_hold_nothing_of_embeddings():
    random = np.random.default_rng(0)

    def table(count):
        vectors = pa.FixedSizeListArray.from_arrays(random.normal(size=4 * count).astype(np.float32), 4)
        return columns(count) | {"vector": vectors}

    processor = drift(reference(table(500)))
    processor.update(batch(table(100)))
    window = window_of(processor)
    assert len(window.total(NOW).vectors)
    for segment in window.slices.segments.values():
        for panes in segment.slices.values():
            assert {len(one.vectors) for one in panes.capture().held.values()} == {0}
    assert sum(total.rows for total in totals(window).values()) == 100


def test_only_the_slice_that_moved_is_drifted_and_it_is_the_worst():
    processor = drift()
    processor.update(batch(columns(10_000, 2, shift=1.0, where="asia")))
    assert values(processor, "model.slice.drifted_columns") == {
        "region=eu": 0,
        "region=us": 0,
        "region=asia": 1,
    }
    scores = points(processor, "model.slice.drift.score")
    assert next(iter(scores)) == ("region=asia", "amount")
    assert len(scores) == SliceSettings().worst
    assert values(processor, "model.slice.drifted")["region=asia amount"] == 1
    assert sum(values(processor, "model.slice.drifted").values()) == 1
    rows = values(processor, "model.slice.rows")
    assert sum(rows.values()) == 10_000
    assert rows["region=eu"] == (columns(10_000, 2)["region"] == "eu").sum()


def test_statistics_of_a_slice_are_those_of_a_model_of_its_rows_alone():
    table = columns(6_000, 2, shift=0.7, where="asia")
    processor = drift(worst=9)
    processor.update(batch(table))
    mine = table["region"] == "asia"
    alone = drift(max_columns=0)
    alone.update(batch({name: column[mine] for name, column in table.items()}))
    for name in ("statistic", "p_value"):
        wanted = values(alone, f"feature.drift.{name}")
        found = {
            key.removeprefix("region=asia "): value
            for key, value in values(processor, f"model.slice.drift.{name}").items()
            if key.startswith("region=asia ")
        }
        assert found == pytest.approx(wanted)
    assert len(wanted) > 30


def test_all_columns_of_all_slices_are_in_a_table():
    processor = drift(worst=0)
    processor.update(batch(columns(10_000, 2, shift=1.0, where="asia")))
    assert points(processor, "model.slice.drift.score") == {}
    tables = points(processor, "model.slice.columns")
    assert {key for (key,) in tables} == {f"region={region}" for region in REGIONS}
    asia = tables[("region=asia",)]
    told = dict(zip(asia.columns, zip(*asia.values.values(), strict=True), strict=True))
    assert list(told) == ["amount", "age", "country"]
    amount = dict(zip(asia.values, told["amount"], strict=True))
    assert amount["drifted"] == amount["judged"] == 1
    assert amount["score"] > 0.5 > amount["null_quantile"]
    assert amount["p_value"] < 1e-9
    [bins] = [one for key, one in points(processor, "model.slice.bins").items() if key[0] == "region=asia"]
    assert sum(bins.values["reference"]) == pytest.approx(1)
    assert sum(bins.values["slice"]) == pytest.approx(1)
    assert sum(bins.values["psi"]) == pytest.approx(amount["score"])


def test_without_drift_hardly_anything_of_many_slices_is_drifted():
    random = np.random.default_rng(5)

    def table(count):
        numbers = {f"f{number}": random.normal(size=count) for number in range(20)}
        return numbers | {"region": random.integers(0, 20, count).astype(str)}

    processor = drift(reference(table(40_000)), max_values=20, settings={"threshold": 1e-6})
    processor.update(batch(table(20_000)))
    told = points(processor, "model.slice.columns")
    assert sum(sum(one.values["judged"]) for one in told.values()) == 400
    # Each pair at 1 % would make 4 of 400, and the chance of any at all is 1 % now.
    assert sum(sum(one.values["drifted"]) for one in told.values()) <= 1
    assert sum(p < 0.01 for one in told.values() for p in one.values["p_value"]) >= 1


def test_slices_are_bounded_and_the_most_frequent_of_a_batch_have_their_own():
    random = np.random.default_rng(0)
    common = random.choice(["a", "b", "c"], 3_000)
    rare = np.arange(1_000).astype(str)
    region = random.permutation(np.concatenate([common, rare]))
    processor = drift(max_values=3)
    processor.update(batch({"amount": random.normal(size=4_000), "region": region}))
    told = points(processor, "model.slice.rows")
    assert {key: point.value for key, point in told.items()} == {
        ("region=a",): (region == "a").sum(),
        ("region=b",): (region == "b").sum(),
        ("region=c",): (region == "c").sum(),
        ("region=__other__", "true"): 1_000,
    }
    overflow = [point for point in told.values() if ("otel_metric_overflow", "true") in point.attributes]
    assert [point.value for point in overflow] == [1_000]
    assert values(processor, "model.slice.overflow") == {"region": 1_000}


def test_a_value_without_rows_in_the_window_makes_room():
    processor = drift(max_values=2)
    for region, minutes in (("a", 0), ("b", 0), ("c", 0), ("b", 70), ("c", 70)):
        table = {"amount": np.zeros(10), "region": [region] * 10}
        processor.update(batch(table, now_ns=NOW + minutes * 60 * SECOND))
    assert values(processor, "model.slice.rows", NOW + 70 * 60 * SECOND) == {"region=b": 10, "region=c": 10}


def test_missing_values_and_names_of_the_agents_own():
    region = pa.array([None, "__other__", "", "__missing__", None, "'__other__'"])
    processor = drift()
    processor.update(batch({"amount": np.zeros(6), "region": region}))
    assert values(processor, "model.slice.rows") == {
        "region='__other__'": 1,
        "region=''": 1,
        "region='__missing__'": 1,
        "region=''__other__''": 1,
        "region=__missing__": 2,
    }


def test_dictionaries_with_twins_with_nulls_and_full_of_entries():
    entries = pa.array([f"v{number}" for number in range(126)] + ["v0", None])
    indices = pa.array([0, 126, 127, None, 1, 0, 125], pa.int8())
    processor = drift(max_values=200)
    region = pa.DictionaryArray.from_arrays(indices, entries)
    processor.update(batch({"amount": np.zeros(7), "region": region}))
    assert values(processor, "model.slice.rows") == {
        "region=v0": 3,
        "region=v1": 1,
        "region=v125": 1,
        "region=__missing__": 2,
    }


@pytest.mark.parametrize("kind", [pa.int64(), pa.bool_(), pa.large_string(), pa.string_view()])
def test_segments_may_be_numbers_booleans_and_strings_of_any_kind(kind):
    processor = drift()
    region = pa.array([1, 0, 1, 1]).cast(pa.int64() if kind == pa.int64() else pa.bool_()).cast(kind)
    processor.update(batch({"amount": np.zeros(4), "region": region}))
    one, zero = {"int64": ("1", "0")}.get(str(kind), ("true", "false"))
    assert values(processor, "model.slice.rows") == {f"region={one}": 3, f"region={zero}": 1}


@pytest.mark.parametrize("kind", [pa.string_view(), pa.json_(pa.string_view()), pa.binary_view()])
def test_views_beside_what_is_told_apart_lose_no_rows(kind):
    """Arrow cannot take some rows of them, nor filter them."""
    processor = drift()
    table = {"amount": np.zeros(4), "region": ["eu", "us", "eu", "us"]}
    times = NOW - SECOND * np.array([1, 2, 10**6, 3])
    whole = pa.array(["a", "b", "c", "d"]).cast(
        pa.binary_view() if kind == pa.binary_view() else pa.string_view()
    )
    note = pa.ExtensionArray.from_storage(kind, whole) if isinstance(kind, pa.BaseExtensionType) else whole
    given = batch(table, times=times)
    field = pa.field("note", note.type, metadata={"role": "ignore"})
    rows = given.content.append_column(field, note)
    assert (
        processor.update(Records("flight", ME, layout_of(rows.schema), rows, NOW, rows.nbytes))["late"] == 1
    )
    assert values(processor, "model.slice.rows") == {"region=eu": 1, "region=us": 2}


def test_a_feature_is_a_segment_where_the_settings_name_it():
    processor = drift(columns=("country",))
    table = columns(3_000, 2)
    processor.update(batch(table, roles=("region",)))
    rows = values(processor, "model.slice.rows")
    assert {key.partition("=")[0] for key in rows} == {"region", "country"}
    assert rows["country=de"] == (table["country"] == "de").sum()
    assert set(values(processor, "feature.drift.score")) == {"amount", "age", "country"}


def test_the_column_that_slices_are_made_by_is_not_judged_in_them():
    processor = drift(columns=("country",))
    processor.update(batch(columns(6_000)))
    told = points(processor, "model.slice.columns")
    assert {table.columns for (slice_, *_), table in told.items() if slice_.startswith("country")} == {
        ("amount", "age")
    }
    assert {table.columns for (slice_, *_), table in told.items() if slice_.startswith("region")} == {
        ("amount", "age", "country")
    }
    assert set(values(processor, "model.slice.drifted_columns").values()) == {0.0}
    assert not any(
        "country" in key.split()[1:]
        for key in values(processor, "model.slice.drift.score")
        if key.startswith("country=")
    )


def test_there_are_no_more_segment_columns_than_the_settings_say():
    table = columns(300, 2) | {f"s{number}": ["x"] * 300 for number in range(5)}
    roles = ("region", *(f"s{number}" for number in range(5)))
    processor = drift(max_columns=2)
    processor.update(batch(table, roles=roles))
    assert {key.partition("=")[0] for key in values(processor, "model.slice.rows")} == {"region", "s0"}


@pytest.mark.parametrize(("roles", "most"), [((), 3), (("region",), 0)])
def test_without_segments_nothing_is_held_nor_told(roles, most):
    table = columns(1_000, 2)
    if not roles:
        del table["region"]
    processor = drift(max_columns=most)
    processor.update(batch(table, roles=roles))
    assert window_of(processor).slices.segments == {}
    assert not [metric for metric in processor.collect(NOW) if "slice" in metric.name]


def test_a_window_that_moves_on_takes_slices_along():
    processor = drift()
    processor.update(batch(columns(1_000, 2)))
    assert values(processor, "model.slice.rows", NOW)
    assert values(processor, "model.slice.rows", NOW + 2 * 3600 * SECOND) == {}


def test_verdicts_tell_what_they_go_by():
    processor = drift(settings={"min_rows": 300, "threshold": 0.25})
    processor.update(batch(columns(10, 2)))
    found = values(processor, "model.drift.limit")
    assert found == {"min_rows": 300, "threshold": 0.25, "significance": 0.01}


def test_a_slice_all_of_whose_values_are_missing_is_told():
    given = columns(3_000, seed=5)
    gone = given["region"] == "us"
    for name in ("amount", "age", "country"):
        given[name] = pa.array(given[name], mask=gone)
    its = drift()
    its.update(batch(given))
    assert values(its, "model.slice.rows")["region=us"] == gone.sum()
