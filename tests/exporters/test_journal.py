"""Segments on disk: kept, found again, mended, deleted."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tidegauge.batch import Signal
from tidegauge.exporters.journal import Extent, Journal, Place, Request
from tidegauge.exporters.segment import HEADER_BYTES, START, Position

TRACES, LOGS = Signal.TRACES, Signal.LOGS


def request(n: int, signal: Signal = TRACES, size: int = 20) -> Request:
    return Request(signal, str(n).encode().rjust(size, b"."), n % 3 + 1)


def append(journal: Journal, *requests: Request) -> list[Place]:
    places = journal.append(requests, lambda: True)
    assert places is not None
    return places


@contextmanager
def opened(
    folder: Path, segment_bytes: int = 200
) -> Iterator[tuple[Journal, dict[Signal, tuple[list[Extent], Position]]]]:
    journal = Journal(folder, segment_bytes)
    found = journal.open()
    try:
        yield journal, found
    finally:
        journal.close()


def read(journal: Journal, signal: Signal, extents: list[Extent], nbytes: int = 100) -> tuple[list[int], int]:
    """The numbers in the extents, and the items that damage has cost."""
    numbers, lost = [], 0
    for extent in extents:
        while extent.start < extent.end:
            chunk = journal.read(signal, extent, nbytes)
            assert chunk.reached > extent.start
            for record in chunk.records:
                lost += record.header.item - extent.item + (0 if record.sound else record.header.items)
                extent.item = record.header.item + record.header.items
                if record.sound:
                    numbers.append(int(bytes(record.body).strip(b".")))
            extent.start = chunk.reached
        lost += extent.items
    return numbers, lost


def everything(folder: Path, signal: Signal = TRACES, nbytes: int = 100) -> tuple[list[int], int]:
    with opened(folder) as (journal, found):
        return read(journal, signal, found[signal][0], nbytes)


def segments(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "cursor")


def test_what_was_appended_is_found_by_the_next(tmp_path: Path) -> None:
    with opened(tmp_path / "deep" / "q") as (journal, found):
        assert found == {signal: ([], START) for signal in (TRACES, Signal.METRICS, LOGS)}
        for n in range(20):
            append(journal, request(n), request(100 + n, LOGS))
    with opened(tmp_path / "deep" / "q") as (journal, found):
        extents, end = found[TRACES]
        assert sum(extent.items for extent in extents) == sum(n % 3 + 1 for n in range(20))
        assert end.item == extents[-1].end_item
        assert len(extents) > 2
        assert read(journal, TRACES, extents) == (list(range(20)), 0)
        assert read(journal, LOGS, found[LOGS][0]) == (list(range(100, 120)), 0)
        assert found[Signal.METRICS] == ([], START)


def test_records_larger_than_a_segment_or_a_reading(tmp_path: Path) -> None:
    with opened(tmp_path, 100) as (journal, _):
        append(journal, request(1, size=5000), request(2), request(3, size=3000))
        append(journal, *(request(n) for n in range(4, 2000)))  # more pieces than one writev takes
    assert everything(tmp_path) == (list(range(1, 2000)), 0)


def test_the_cursor_tells_what_is_delivered_and_what_is_delivered_goes(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, _):
        places = [append(journal, request(n))[0] for n in range(20)]
        append(journal, request(0, LOGS))
        journal.commit({TRACES: places[13].position})
        assert min(segments(tmp_path)) == f"{places[13].position.segment:012}.traces"
    with opened(tmp_path) as (journal, found):
        assert sum(extent.items for extent in found[TRACES][0]) == sum(n % 3 + 1 for n in range(13, 20))
        assert read(journal, TRACES, found[TRACES][0]) == (list(range(13, 20)), 0)
        assert read(journal, LOGS, found[LOGS][0]) == ([0], 0)
        journal.commit({TRACES: found[TRACES][1]})
    with opened(tmp_path) as (journal, found):
        assert found[TRACES][0] == []
        # Nothing is appended to what an earlier process wrote, and items go on being counted.
        (place,) = append(journal, request(20))
        assert place.position.item == sum(n % 3 + 1 for n in range(20))
        assert place.position.segment > places[-1].position.segment
    assert everything(tmp_path) == ([20], 0)


def test_what_could_not_be_noted_is_noted_and_deleted_by_the_next_commit(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(tmp_path) as (journal, _):
        places = [append(journal, request(n))[0] for n in range(20)]
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                journal.commit({TRACES: places[13].position})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert min(segments(tmp_path)) == f"{places[0].position.segment:012}.traces"
        journal.commit({TRACES: places[13].position})
        assert min(segments(tmp_path)) == f"{places[13].position.segment:012}.traces"


def test_nothing_is_appended_to_a_file_that_somebody_has_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "q"
    with opened(folder) as (journal, _):
        (place,) = append(journal, request(1))
        (folder / f"{place.position.segment:012}.traces").unlink()
        append(journal, request(2))
        assert everything(folder)[0] == [2]
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        with pytest.raises(FileNotFoundError):
            append(journal, request(3))


def test_what_is_not_to_be_kept_is_cut_off(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, _):
        append(journal, request(1), request(2, LOGS))
        assert journal.append([request(7), request(8, LOGS), request(9)], lambda: False) is None
        append(journal, request(3))
    assert everything(tmp_path) == ([1, 3], 0)
    assert everything(tmp_path, LOGS) == ([2], 0)


def test_a_dropped_segment_may_be_the_one_in_use(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, _):
        (place,) = append(journal, request(1))
        journal.commit({TRACES: Position(place.position.segment, place.end, 2)})
        journal.drop(place.position.segment, TRACES)
        journal.drop(place.position.segment, TRACES)  # gone already
        append(journal, request(2))
        assert journal.sizes() == {place.position.segment + 1: (TRACES, HEADER_BYTES + 20)}
    assert everything(tmp_path) == ([2], 0)


@pytest.mark.parametrize("cut", range(1, HEADER_BYTES + 21))
def test_a_torn_tail_is_cut_off_wherever_it_is_torn(tmp_path: Path, cut: int) -> None:
    with opened(tmp_path, 10_000) as (journal, _):
        append(journal, request(1), request(2), request(3))
    (name,) = segments(tmp_path)
    whole = (tmp_path / name).stat().st_size
    os.truncate(tmp_path / name, whole - cut)
    assert everything(tmp_path) == ([1, 2], 0)
    assert (tmp_path / name).stat().st_size == whole - HEADER_BYTES - 20
    with opened(tmp_path) as (journal, _):
        append(journal, request(4))
    assert everything(tmp_path) == ([1, 2, 4], 0)


def test_a_segment_of_which_nothing_is_left_goes(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, _):
        append(journal, request(1))
    (name,) = segments(tmp_path)
    os.truncate(tmp_path / name, 11)
    assert everything(tmp_path) == ([], 0)
    assert segments(tmp_path) == []


def test_a_damaged_middle_is_passed_over_and_its_items_counted(tmp_path: Path) -> None:
    items = [n % 3 + 1 for n in range(20)]
    with opened(tmp_path) as (journal, _):
        places = [append(journal, request(n))[0] for n in range(20)]
    in_segment = {place.position.segment for place in places}
    source = random.Random(5)
    for _ in range(60):
        number = source.choice(sorted(in_segment))
        path = tmp_path / f"{number:012}.traces"
        before = path.read_bytes()
        damaged = bytearray(before)
        start = source.randrange(len(damaged))
        for place in range(start, min(start + source.randint(1, 70), len(damaged))):
            damaged[place] = source.randrange(256)
        path.write_bytes(damaged)
        numbers, lost = everything(tmp_path)
        gone = sorted(set(range(20)) - set(numbers))
        assert len(gone) <= 3
        assert numbers == sorted(numbers)
        if 19 not in gone:  # what is torn off at the very end, nobody can know of
            assert lost == sum(items[n] for n in gone)
        path.write_bytes(before)


def test_a_lost_segment_is_counted_and_a_lost_cursor_sends_again(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, _):
        places = [append(journal, request(n))[0] for n in range(20)]
        journal.commit({TRACES: places[9].position})
    names = segments(tmp_path)
    in_first = [n for n in range(20) if f"{places[n].position.segment:012}.traces" == names[0]]
    in_second = [n for n in range(20) if f"{places[n].position.segment:012}.traces" == names[1]]
    (tmp_path / names[1]).unlink()
    numbers, lost = everything(tmp_path)
    assert numbers == [n for n in range(9, 20) if n not in in_second]
    assert lost == sum(n % 3 + 1 for n in in_second)
    (tmp_path / "cursor").write_bytes(b"\xff" * 76)
    assert everything(tmp_path) == ([n for n in range(in_first[0], 20) if n not in in_second], lost)
    (tmp_path / names[0]).unlink()
    assert everything(tmp_path)[0] == list(range(in_second[-1] + 1, 20))


def test_the_cursor_takes_its_room_on_disk_at_once(tmp_path: Path) -> None:
    with opened(tmp_path), opened(tmp_path / "other") as (other, _):
        assert (tmp_path / "cursor").stat().st_size == 76
        append(other, request(1))
    before = (tmp_path / "other" / "cursor").read_bytes()
    assert everything(tmp_path / "other") == ([1], 0)
    assert (tmp_path / "other" / "cursor").read_bytes() == before


def test_a_lost_cursor_does_not_make_what_was_delivered_missing(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, _):
        places = [append(journal, request(n))[0] for n in range(20)]
        append(journal, request(0, LOGS))
        journal.commit({TRACES: places[13].position})
    (tmp_path / "cursor").write_bytes(b"torn")
    with opened(tmp_path) as (journal, found):
        journal.commit({LOGS: found[LOGS][1]})
    numbers, lost = everything(tmp_path)
    assert numbers[-7:] == list(range(13, 20))  # and what else was in their segment
    assert lost == 0


def test_a_lost_first_segment_is_counted_too(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, _):
        places = [append(journal, request(n))[0] for n in range(20)]
        journal.commit({TRACES: places[1].position})
    (tmp_path / segments(tmp_path)[0]).unlink()
    numbers, lost = everything(tmp_path)
    assert numbers[0] > 1
    assert lost == sum(n % 3 + 1 for n in range(1, numbers[0]))


def test_a_cursor_ahead_of_what_a_power_cut_left(tmp_path: Path) -> None:
    with opened(tmp_path, 10_000) as (journal, _):
        places = append(journal, *(request(n) for n in range(10)))
        journal.commit({TRACES: places[8].position})
    (name,) = segments(tmp_path)
    os.truncate(tmp_path / name, places[3].end)
    with opened(tmp_path) as (journal, found):
        assert found[TRACES][0] == []
        append(journal, request(50))
    assert everything(tmp_path) == ([50], 0)


def test_a_full_disk_takes_all_of_a_group_or_nothing(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(tmp_path, 10_000) as (journal, _):
        append(journal, request(1), request(1, LOGS))
        resource.setrlimit(resource.RLIMIT_FSIZE, (150, hard))
        try:
            with pytest.raises(OSError, match="File too large") as caught:
                append(journal, request(2, LOGS), *(request(n) for n in range(2, 9)))
            assert caught.value.errno == errno.EFBIG
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        append(journal, request(3))
    assert everything(tmp_path) == ([1, 3], 0)
    assert everything(tmp_path, LOGS) == ([1], 0)


def test_on_a_full_disk_what_was_delivered_gives_way(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(tmp_path, 10_000) as (journal, _):
        resource.setrlimit(resource.RLIMIT_FSIZE, (150, hard))
        try:
            _, last = append(journal, request(1), request(2))
            for mark in (last.position, Position(last.position.segment, last.end, 5)):
                journal.commit({TRACES: mark})
                with pytest.raises(OSError, match="File too large"):
                    append(journal, request(3))
                assert len(segments(tmp_path)) == (mark == last.position)  # one of the two is not delivered
            append(journal, request(3))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert everything(tmp_path) == ([3], 0)


def test_what_cannot_be_cut_off_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with opened(tmp_path, 10_000) as (journal, _):
        append(journal, request(1))
        with monkeypatch.context() as patch:
            patch.setattr(os, "ftruncate", refusing)
            journal.append([request(2)], lambda: False)
        append(journal, request(3))
        assert len(segments(tmp_path)) == 2
    # It is on disk, for nobody could help it, and comes twice rather than never.
    assert everything(tmp_path)[0] == [1, 2, 3]


def test_a_disk_that_takes_nothing_and_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as (journal, _):
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwritev", lambda *_: 0)
            with pytest.raises(OSError, match="takes nothing"):
                append(journal, request(1))
        append(journal, request(2))
    assert everything(tmp_path) == ([2], 0)


def test_a_disk_that_takes_a_little_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def little(descriptor: int, pieces: list[bytes], offset: int, really: Any = os.pwritev) -> int:
        return int(really(descriptor, [memoryview(piece)[:7] for piece in pieces][:1], offset))

    with opened(tmp_path) as (journal, _), monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", little)
        append(journal, request(1), request(2, LOGS), request(3))
    assert everything(tmp_path) == ([1, 3], 0)


def test_sync_and_what_was_deleted_meanwhile(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, _):
        (place,) = append(journal, request(1))
        journal.sync([(place.position.segment, TRACES), (77, LOGS)])


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "x.traces").write_text("mine too")
    with opened(tmp_path) as (journal, _):
        append(journal, request(1))
    assert (tmp_path / "notes.txt").read_text() == "mine"


APPENDERS = textwrap.dedent("""
    import os, sys
    from pathlib import Path
    from tidegauge.batch import Signal
    from tidegauge.exporters.journal import Journal, Request

    def say(what):
        os.write(1, f"{what}\\n".encode())  # at once, so that no kill leaves half a line

    def append_for_ever(folder, n):
        say(f"pid {os.getpid()}")
        journal = Journal(Path(folder), 100_000)
        journal.open()
        while True:
            requests = [Request(Signal.TRACES, str(n + i).encode().rjust(2000, b"."), 1) for i in range(3)]
            journal.append(requests, lambda: True)
            n += 3
            # In one piece, also with PYTHONUNBUFFERED: a kill may come between two.
            os.write(1, b"%d\\n" % n)


            say(n)

    for line in sys.stdin:
        child = os.fork()
        if not child:
            append_for_ever(sys.argv[1], int(line))
        os.waitpid(child, 0)
        say("ended")
""")


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    """Twenty kills at random moments of a process that says, over a pipe, what it has appended."""
    source = random.Random(11)
    known = 0
    command = [sys.executable, "-c", APPENDERS, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as appenders:
        assert appenders.stdin is not None
        assert appenders.stdout is not None
        for _ in range(20):
            print(known, file=appenders.stdin, flush=True)
            pid = int(appenders.stdout.readline().removeprefix("pid "))
            time.sleep(source.uniform(0, 0.03))
            os.kill(pid, signal.SIGKILL)
            said = list(iter(appenders.stdout.readline, "ended\n"))
            numbers, lost = everything(tmp_path, nbytes=2**20)
            assert numbers == list(range(len(numbers)))
            assert len(numbers) >= int((said or [known])[-1])
            assert lost == 0
            known = len(numbers)
        appenders.stdin.close()
    assert known > 60
