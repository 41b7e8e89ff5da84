"""The instructions behind the readers, beside Python's own arithmetic."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from numba import njit, types

from tidegauge.stats.kernel import KERNEL
from tidegauge.wire import words
from tidegauge.wire.protobuf import BYTES, is_ascii, tail, view

load, swap, fold = words.load, words.swap, words.fold
U64 = st.integers(0, 2**64 - 1)


@njit(types.uint64(BYTES, types.int64), **KERNEL)
def load_(buf, pos):  # type: ignore[no-untyped-def]
    return load(buf, pos)


@njit(types.uint64(types.uint64), **KERNEL)
def swap_(value):  # type: ignore[no-untyped-def]
    return swap(value)


@njit(types.uint64(types.uint64, types.uint64), **KERNEL)
def fold_(one, other):  # type: ignore[no-untyped-def]
    return fold(one, other)


@given(st.binary(min_size=8, max_size=40), st.integers(0, 32))
def test_load_reads_eight_bytes_wherever_they_lie(raw: bytes, place: int) -> None:
    place = min(place, len(raw) - 8)
    assert load_(view(raw), place) == int.from_bytes(raw[place : place + 8], "little")


@given(U64)
def test_swap_reverses_the_bytes(value: int) -> None:
    assert swap_(value) == int.from_bytes(value.to_bytes(8, "little"), "big")


@given(U64, U64)
def test_fold_is_both_halves_of_the_product(one: int, other: int) -> None:
    assert fold_(one, other) == (one * other ^ one * other >> 64) & (2**64 - 1)


@given(st.binary(max_size=24), st.integers(0, 24), st.integers(0, 24))
def test_tail_is_the_last_eight_bytes_or_all(raw: bytes, one: int, other: int) -> None:
    begin, end = sorted((min(one, len(raw)), min(other, len(raw))))
    assert tail(view(raw), begin, end) == int.from_bytes(raw[begin:end][-8:], "little")


@given(st.one_of(st.binary(max_size=24), st.text(max_size=24).map(str.encode)), st.integers(0, 24))
def test_ascii_is_what_python_calls_so(raw: bytes, begin: int) -> None:
    begin = min(begin, len(raw))
    assert is_ascii(view(raw), begin, len(raw)) is raw[begin:].isascii()
