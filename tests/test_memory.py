"""What memory is taken, beside what the kernel says otherwise; and the limit, as either cgroup writes it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tidegauge import memory

STATUS = Path("/proc/self/status")


@pytest.mark.skipif(not STATUS.exists(), reason="Linux tells it")
def test_anonymous_memory_is_what_the_kernel_says_and_grows_with_what_is_written() -> None:
    def told() -> int:
        found = re.search(r"^RssAnon:\s+(\d+) kB$", STATUS.read_text(), re.M)
        assert found is not None
        return int(found[1]) * 1024

    before = memory.anonymous_bytes()
    assert before == pytest.approx(told(), rel=0.05)
    block = bytearray(b"x") * 2**26
    assert memory.anonymous_bytes() - before == pytest.approx(2**26, rel=0.1)
    assert len(block) == 2**26


@pytest.mark.parametrize(
    ("second", "first", "limit"),
    [
        ("536870912\n", None, 2**29),
        ("max\n", None, 0),
        (None, "536870912\n", 2**29),
        (None, "9223372036854771712\n", 0),
        (None, None, 0),
    ],
)
def test_the_limit_is_read_as_either_version_of_cgroups_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: str | None, first: str | None, limit: int
) -> None:
    paths = tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes"
    for path, text in zip(paths, (second, first), strict=True):
        if text is not None:
            path.write_text(text)
    monkeypatch.setattr(memory, "_LIMITS", paths)
    assert memory.limit_bytes() == limit


def test_freed_memory_is_given_back():
    held = [bytearray(100_000) for _ in range(400)]
    most = memory.anonymous_bytes()
    kept = held[::100]
    del held
    memory.give_back()
    assert memory.anonymous_bytes() < most - 20 * 10**6
    assert len(kept) == 4
