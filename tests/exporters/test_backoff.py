"""Waits between attempts."""

from __future__ import annotations

from tidegauge.exporters.backoff import Backoff


def test_waits_grow_by_half_up_to_the_most_with_jitter() -> None:
    backoff = Backoff(5.0, 30.0)
    for expected in (5.0, 7.5, 11.25, 16.875, 25.3125, 30.0, 30.0):
        assert expected * 0.5 <= backoff.next_s() <= expected * 1.5
    backoff.reset()
    assert backoff.next_s() <= 7.5
    assert len({Backoff().next_s() for _ in range(20)}) > 10
