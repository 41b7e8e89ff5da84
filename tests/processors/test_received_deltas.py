"""Delta made cumulative, against a slow account in exact arithmetic."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

DELTA = 1


steps = st.lists(
    st.tuples(
        st.integers(-3, 20),  # how the interval begins, from the last one's end: a gap, or an overlap
        st.integers(0, 10),  # how long it is; 0: none
        st.one_of(st.integers(0, 2**62), st.floats(0, 1e300), st.floats(0, 1)),
    ),
    max_size=30,
)
cuts = st.lists(st.integers(0, 29), max_size=3)


class Account:
    """The rules for deltas in exact numbers: what counts is what ends after the last one that counted."""

    def __init__(self) -> None:
        self.time = self.start = self.dropped = 0
        self.total = Fraction(0)

    def take(self, start: int, time: int, amount: Any) -> bool:
        if time <= self.time:
            self.dropped += 1
            return False
        self.start = self.start or start
        self.time = time
        self.total += Fraction(amount)
        return True


def placed(sequence: list[tuple[int, int, Any]]) -> list[tuple[int, int, Any]]:
    """The steps as (start, time, amount)."""
    now, found = 100, []
    for begin, length, amount in sequence:
        start = max(now + begin, 1)
        found.append((start, start + length, amount))
        now = start + length
    return found


@settings(max_examples=300, deadline=None)
@given(steps, cuts)
def test_delta_sums_add_up_exactly(
    otlp: SimpleNamespace, sequence: list[tuple[int, int, Any]], splits: list[int]
) -> None:
    sender, processor, account = otlp.Sender(), otlp.received(), Account()
    dropped = 0
    for place, (start, time, amount) in enumerate(placed(sequence)):
        account.take(start, time, amount)
        sender.counter(time, amount, start, DELTA)
        if place in splits:
            dropped += sum(sender.send(processor).values())
    dropped += sum(sender.send(processor).values())
    assert dropped == account.dropped
    if sequence:
        [point] = otlp.points(processor).values()
        assert point.start_ns == account.start
        # Integers are exact; doubles within two roundings, of the sum and of adding both up.
        assert abs(Fraction(point.value) - account.total) <= account.total * Fraction(2, 2**52)
        if all(isinstance(amount, int) for _, _, amount in sequence):
            assert point.value == float(account.total)


def test_integers_beyond_64_bits_are_added_up_all_the_same(otlp: SimpleNamespace) -> None:
    sender, processor = otlp.Sender(), otlp.received()
    for time in range(1, 6):
        sender.counter(time, 2**63 - 1, temporality=DELTA, monotonic=False)
    sender.send(processor)
    assert otlp.value(processor) == 5.0 * 2**63
    for time in range(6, 11):
        sender.counter(time, -(2**63) + 1, temporality=DELTA, monotonic=False)
    sender.send(processor)
    assert otlp.value(processor) == 0.0


def test_small_doubles_are_not_lost_in_a_large_sum(otlp: SimpleNamespace) -> None:
    sender, processor = otlp.Sender(), otlp.received()
    for time, its in enumerate([1e16, *([1.0] * 1000), 3.5], 1):
        sender.counter(time, its, temporality=DELTA)
    sender.send(processor)
    assert otlp.value(processor) == 1e16 + 1004


histogram_steps = st.lists(
    st.tuples(
        st.integers(-3, 20),
        st.integers(0, 10),
        st.tuples(st.sampled_from([2, 3]), st.lists(st.integers(0, 2**40), min_size=4, max_size=4)),
    ),
    max_size=20,
)


@settings(max_examples=200, deadline=None)
@given(histogram_steps)
def test_delta_histograms_add_up_exactly(otlp: SimpleNamespace, sequence: list[tuple[int, int, Any]]) -> None:
    """Other bounds begin the series anew."""
    sender, processor, account = otlp.Sender(), otlp.received(), Account()
    expected: list[int] = []
    for start, time, (size, given_) in placed(sequence):
        counts, bounds = given_[: size + 1], [float(index) for index in range(size)]
        sender.histogram(time, counts, bounds, start, sum=float(sum(counts)))
        if account.take(start, time, sum(counts)):
            if len(expected) != len(counts):
                expected, account.start = [0] * len(counts), start
            expected = [one + other for one, other in zip(expected, counts, strict=True)]
    left_out = sender.send(processor)
    assert left_out.get("out_of_order", 0) == account.dropped
    if sequence:
        [point] = otlp.points(processor).values()
        assert list(point.counts) == expected
        assert (point.sum, point.start_ns) == (float(sum(expected)), account.start)
        assert len(point.bounds) == len(expected) - 1


side = st.tuples(st.integers(-400, 400), st.lists(st.integers(0, 2**40), max_size=12))


def exponential_step(scale: int) -> st.SearchStrategy[Any]:
    """Buckets that a double can fall into: those of coarse scales are few."""
    coarse = side.map(lambda one: (one[0] >> max(0, -scale), one[1]))
    return st.tuples(st.just(scale), coarse, coarse, st.integers(0, 5))


exponential_steps = st.lists(st.integers(-4, 20).flatmap(exponential_step), min_size=1, max_size=8)


def downscaled(offset: int, counts: list[int], by: int) -> dict[int, int]:
    found: dict[int, int] = {}
    for place, count in enumerate(counts):
        if count:
            found[(offset + place) >> by] = found.get((offset + place) >> by, 0) + count
    return found


def width(buckets: dict[int, int]) -> int:
    return max(buckets) - min(buckets) + 1 if buckets else 0


@settings(max_examples=300, deadline=None)
@given(exponential_steps)
def test_exponential_deltas_of_different_scales_add_up_exactly(
    otlp: SimpleNamespace,
    sequence: list[tuple[int, tuple[int, list[int]], tuple[int, list[int]], int]],
) -> None:
    """Every count is where it is at the finest scale that holds all: at most 8, and 160 buckets a sign."""
    sender, processor = otlp.Sender(), otlp.received()
    for time, (scale, positive, negative, zeros) in enumerate(sequence, 1):
        sender.exponential(time, scale, positive, negative, zeros, sum=1.0, min=-1.0, max=1.0)
    assert sender.send(processor) == {}
    [point] = otlp.points(processor).values()
    wanted = min([8, *(scale for scale, *_ in sequence)])
    while True:
        sides: list[dict[int, int]] = [{}, {}]
        for scale, *both, _ in sequence:
            for into, (offset, counts) in zip(sides, both, strict=True):
                for bucket, count in downscaled(offset, counts, scale - wanted).items():
                    into[bucket] = into.get(bucket, 0) + count
        if max(map(width, sides)) <= 160:
            break
        wanted -= 1
    assert point.scale == wanted
    assert downscaled(point.offset, list(point.counts), 0) == sides[0]
    assert downscaled(point.negative_offset, list(point.negative_counts), 0) == sides[1]
    assert point.zero_count == sum(zeros for *_, zeros in sequence)
    assert (point.sum, point.min, point.max) == (float(len(sequence)), -1.0, 1.0)
    assert max(len(point.counts), len(point.negative_counts)) <= 160


def test_the_larger_zero_threshold_takes_the_buckets_below_it(otlp: SimpleNamespace) -> None:
    sender, processor = otlp.Sender(), otlp.received()
    sender.exponential(1, 0, (-3, [1, 2, 4, 8]), (-2, [16]))  # (1/8, 1/4], … (1, 2]; [-1/2, -1/4)
    sender.exponential(2, 0, (0, [32]), zeros=64, zero_threshold=0.3)
    assert sender.send(processor) == {}
    [point] = otlp.points(processor).values()
    # 0.3 cuts (1/4, 1/2] on both sides, which raises it to 1/2.
    assert (point.zero_threshold, point.zero_count) == (0.5, 64 + 1 + 2 + 16)
    assert (point.offset, point.counts, point.negative_counts) == (-1, (4, 40), ())


def test_scales_that_prometheus_has_not(otlp: SimpleNamespace) -> None:
    sender, processor = otlp.Sender(), otlp.received()
    sender.exponential(1, 10, (4, [1, 1, 1, 1, 1]), attributes={"fine": "1"})
    sender.exponential(1, -5, (0, [1]), attributes={"coarse": "1"})
    sender.exponential(1, 8, (-(2**31), [1]), attributes={"far": "1"})
    sender.exponential(2, 8, (2**31 - 1, [1]), attributes={"far": "1"})
    assert sender.send(processor) == {"scale": 2}
    found = otlp.points(processor)
    fine = found[("fine", "1"),]
    assert (fine.scale, fine.offset, fine.counts) == (8, 1, (4, 1))
    assert ("coarse", "1") not in dict(found)
    assert sum(found[("far", "1"),].counts) == 1
