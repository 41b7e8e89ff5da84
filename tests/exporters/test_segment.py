"""Records in a file: what is whole is read, whatever surrounds it."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from tidegauge.exporters.segment import HEADER_BYTES, decode, encode, find, scan

bodies = st.lists(st.tuples(st.binary(max_size=200), st.integers(0, 2**40)), max_size=8)


def written(requests: list[tuple[bytes, int]]) -> bytes:
    buffer, before = b"", 0
    for sequence, (body, items) in enumerate(requests):
        buffer += encode(body, sequence, before, items) + body
        before += items
    return buffer


def bodies_of(buffer: bytes) -> list[bytes]:
    return [bytes(record.body) for record in scan(buffer, final=True)[0] if record.sound]


@given(bodies)
def test_what_was_written_is_read(requests: list[tuple[bytes, int]]) -> None:
    buffer = written(requests)
    records, reached = scan(buffer, final=True)
    assert [(bytes(record.body), record.header.items) for record in records] == requests
    assert all(record.sound for record in records)
    assert [record.header.sequence for record in records] == list(range(len(requests)))
    assert reached == len(buffer)


@given(bodies.filter(bool), st.data())
def test_a_torn_tail_costs_the_torn_record_and_no_other(
    requests: list[tuple[bytes, int]], data: st.DataObject
) -> None:
    buffer = written(requests)
    last = HEADER_BYTES + len(requests[-1][0])
    torn = buffer[: len(buffer) - data.draw(st.integers(1, last))]
    assert bodies_of(torn) == [body for body, _ in requests[:-1]]
    records, reached = scan(torn, final=False)
    assert reached <= len(torn)
    # Reading on from there, once the rest has come, finds the rest.
    assert [bytes(one.body) for one in (*records, *scan(buffer[reached:], final=True)[0])] == [
        body for body, _ in requests
    ]


@given(bodies, st.randoms(use_true_random=False))
def test_damage_costs_what_it_hits(requests: list[tuple[bytes, int]], source: random.Random) -> None:
    buffer = bytearray(written(requests))
    hit = set()
    ends = [len(written(requests[: n + 1])) for n in range(len(requests))]
    for _ in range(source.randint(0, 5) if buffer else 0):
        place = source.randrange(len(buffer))
        buffer[place] ^= source.randint(1, 255)
        hit.add(next(n for n, end in enumerate(ends) if place < end))
    found = bodies_of(bytes(buffer))
    intact = [body for n, (body, _) in enumerate(requests) if n not in hit]
    # A hit twice in one place may have mended itself.
    assert len(intact) <= len(found) <= len(requests)
    remaining = iter(found)
    assert all(body in remaining for body in intact)


@given(st.binary(max_size=500))
def test_noise_has_no_records_and_ends(noise: bytes) -> None:
    records, reached = scan(noise, final=False)
    assert records == []
    assert max(0, len(noise) - HEADER_BYTES) <= reached <= len(noise)
    assert scan(noise, final=True) == ([], len(noise))
    assert find(noise) is None
    assert decode(noise) is None
