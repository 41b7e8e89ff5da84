"""Large work: one at a time, and its bytes counted for as long as a thread holds them."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tidegauge.receivers.turn import Turn


def test_work_is_done_one_at_a_time_and_in_order() -> None:
    running, order, together = [0], [], []

    def work(number: int) -> int:
        running[0] += 1
        together.append(running[0])
        order.append(number)
        running[0] -= 1
        return number * 2

    async def main() -> None:
        turn = Turn()
        results = await asyncio.gather(*(turn.run(100, work, number) for number in range(50)))
        assert results == [number * 2 for number in range(50)]
        assert (order, set(together)) == (list(range(50)), {1})
        await asyncio.sleep(0)
        assert turn.waiting_bytes == 0

    asyncio.run(main())


def test_a_caller_that_is_cancelled_does_not_let_the_next_one_in_beside_its_thread() -> None:
    async def main() -> None:
        turn, go, begun = Turn(), threading.Event(), threading.Event()

        def hold() -> None:
            begun.set()
            go.wait(10)

        first = asyncio.create_task(turn.run(1, hold))
        second = asyncio.create_task(turn.run(10, lambda: "second"))
        third = asyncio.create_task(turn.run(100, lambda: "third"))
        await asyncio.to_thread(begun.wait, 10)
        assert turn.waiting_bytes == 111
        first.cancel()  # at work
        second.cancel()  # in the queue
        await asyncio.wait({first, second})
        assert first.cancelled()
        assert second.cancelled()
        await asyncio.sleep(0.05)
        assert (turn.waiting_bytes, third.done()) == (101, False)
        go.set()
        assert await third == "third"
        await asyncio.sleep(0)
        assert turn.waiting_bytes == 0

    asyncio.run(main())


def test_work_that_fails_ends_its_turn() -> None:
    async def main() -> None:
        turn = Turn()
        with pytest.raises(ZeroDivisionError):
            await turn.run(5, lambda: 1 // 0)
        assert await turn.run(5, lambda: 7) == 7
        await asyncio.sleep(0)
        assert turn.waiting_bytes == 0

    asyncio.run(main())
