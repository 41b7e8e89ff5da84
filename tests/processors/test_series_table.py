"""The table of series against a dictionary."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tidegauge.identity import OVERFLOW
from tidegauge.metric import Attributes
from tidegauge.processors.series_table import OVERFLOW_SERIES, SeriesTable, find

# Keys that share their low bits, so that they meet in one slot; 0 and the largest are keys as well.
keys = st.one_of(
    st.integers(0, 2**64 - 1), st.integers(0, 40).map(lambda high: high << 32), st.just(2**64 - 1)
)


@settings(deadline=None)
@given(st.lists(st.tuples(keys, st.integers(0, 30)), max_size=200, unique_by=lambda pair: pair[0]))
def test_keys_lead_to_their_series_within_both_limits(pairs: list[tuple[int, int]]) -> None:
    table = SeriesTable(max_series=10, max_keys=150)
    numbers: dict[Attributes, int] = {}
    expected: dict[int, int] = {}
    for key, name in pairs:
        assert find(table.entries, table.full, key) == (OVERFLOW_SERIES if table.full else -1)
        if table.full:
            continue
        attributes = (("operation", str(name)),)
        table.register(key, attributes)
        if len(numbers) < 10:
            numbers.setdefault(attributes, len(numbers) + 1)
        expected[key] = numbers.get(attributes, OVERFLOW_SERIES)
    assert table.full is (len(expected) == 150)
    assert {key: find(table.entries, table.full, key) for key in expected} == expected
    assert table.attributes == [OVERFLOW, *numbers]
    assert len(table.entries) <= 512
