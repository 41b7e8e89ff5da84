"""The /metrics page: one rendering for all who ask."""

from __future__ import annotations

import asyncio
import gzip

import pytest

from tidegauge.exporters import prometheus
from tidegauge.exporters.prometheus import MetricsPage
from tidegauge.metric import Kind, Metric, Number
from tidegauge.snapshot import Snapshots

OPENMETRICS = "application/openmetrics-text;version=1.0.0"
PROTOBUF = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"


def metric(number: float) -> tuple[Metric, ...]:
    return (Metric("a", Kind.GAUGE, "", "", (Number((), number),)),)


def test_one_rendering_per_snapshot_and_format() -> None:
    async def scrape() -> None:
        snapshots = Snapshots()
        page = MetricsPage(snapshots)
        snapshots.publish("one", metric(1.0))
        assert page.renderings == 0  # lazy

        answers = await asyncio.gather(*(page.answer("", "gzip" if n % 2 else "") for n in range(10)))
        assert page.renderings == 1
        assert {gzip.decompress(a.body) if a.gzipped else a.body for a in answers} == {answers[0].body}
        assert b"a 1.0\n" in answers[0].body
        assert (await page.answer()).body is answers[0].body
        assert (await page.answer("", "gzip")).body is answers[1].body

        assert (await page.answer(OPENMETRICS)).body.endswith(b"# EOF\n")
        await page.answer(OPENMETRICS, "gzip")
        assert page.renderings == 2

        snapshots.publish("one", metric(2.0))
        assert page.renderings == 2
        assert b"a 2.0\n" in (await page.answer()).body
        assert b"a 2.0\n" in gzip.decompress((await page.answer("", "gzip")).body)
        assert page.renderings == 3

    asyncio.run(scrape())


def test_a_scraper_that_hangs_up_does_not_take_the_page_from_the_others() -> None:
    async def scrape() -> None:
        snapshots = Snapshots()
        snapshots.publish("one", metric(1.0))
        page = MetricsPage(snapshots)
        first = asyncio.create_task(page.answer("", "gzip"))
        second = asyncio.create_task(page.answer("", "gzip"))
        await asyncio.sleep(0)
        first.cancel()
        assert b"a 1.0\n" in gzip.decompress((await second).body)
        assert first.cancelled()
        assert page.renderings == 1

    asyncio.run(scrape())


def test_what_is_left_out_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async def scrape() -> None:
        snapshots = Snapshots()
        page = MetricsPage(snapshots)
        for number in (1.0, 2.0):
            clash = Metric("a", Kind.COUNTER, "", "", (Number((), number),))
            snapshots.publish("one", (*metric(number), clash))
            await page.answer()

    asyncio.run(scrape())
    assert [record.getMessage() for record in caplog.records] == ["left out of /metrics: a: a is taken by a"]


def test_what_has_been_told_is_forgotten_with_its_cause(caplog: pytest.LogCaptureFixture) -> None:
    async def scrape() -> None:
        snapshots = Snapshots()
        page = MetricsPage(snapshots)
        for clashes in (True, True, False, True):
            clash = Metric("a", Kind.COUNTER, "", "", (Number((), 1.0),))
            snapshots.publish("one", (*metric(1.0), clash) if clashes else metric(1.0))
            await page.answer()
            await page.answer(OPENMETRICS)

    asyncio.run(scrape())
    assert len(caplog.records) == 2


def test_each_format_is_served_as_it_is_asked_for() -> None:
    async def scrape() -> None:
        snapshots = Snapshots()
        snapshots.publish("one", metric(1.0))
        page = MetricsPage(snapshots)
        text, openmetrics, protobuf = [await page.answer(accept) for accept in ("", OPENMETRICS, PROTOBUF)]
        assert text.body == b"# HELP a \n# TYPE a gauge\na 1.0\n"
        assert openmetrics.body == text.body + b"# EOF\n"
        assert protobuf.body.endswith(b"\x3f")
        assert protobuf.content_type.endswith("encoding=delimited")
        assert page.renderings == 3

    asyncio.run(scrape())


def test_what_is_published_again_unchanged_is_the_same_bytes() -> None:
    async def scrape() -> None:
        snapshots = Snapshots()
        page = MetricsPage(snapshots)
        bodies = []
        for _ in range(3):
            snapshots.publish("one", metric(1.0))
            bodies.append([(await page.answer("", coding)).body for coding in ("", "gzip")])
        assert page.renderings == 3
        assert all(one is other for pair in bodies[1:] for one, other in zip(pair, bodies[0], strict=True))

    asyncio.run(scrape())


def test_a_failure_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scrape() -> None:
        snapshots = Snapshots()
        snapshots.publish("one", metric(1.0))
        page = MetricsPage(snapshots)
        await page.answer()
        broken = page._pages[next(iter(page._pages))]
        monkeypatch.setattr(broken, "_renderer", None)
        snapshots.publish("one", metric(2.0))
        with pytest.raises(AttributeError):
            await page.answer()
        monkeypatch.undo()
        assert b"a 2.0\n" in (await page.answer()).body

    asyncio.run(scrape())


def test_a_format_that_nobody_asks_for_any_more_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scrape() -> None:
        snapshots = Snapshots()
        snapshots.publish("one", metric(1.0))
        page = MetricsPage(snapshots)
        await page.answer()
        await page.answer(OPENMETRICS)
        assert len(page._pages) == 2
        monkeypatch.setattr(prometheus, "_FORGET_S", -1.0)
        assert (await page.answer(OPENMETRICS)).body.endswith(b"# EOF\n")
        assert len(page._pages) == 1

    asyncio.run(scrape())


def test_scrapes_while_publishing_are_whole_pages() -> None:
    async def scrape() -> None:
        snapshots = Snapshots()
        page = MetricsPage(snapshots)

        async def publish() -> None:
            for number in range(50):
                points = tuple(Number((("k", str(k)),), float(number)) for k in range(600))
                snapshots.publish("one", (Metric("a", Kind.GAUGE, "", "", points),))
                await asyncio.sleep(0.001)

        async def ask(coding: str) -> None:
            last = -1.0
            for _ in range(30):
                answer = await page.answer("", coding)
                body = gzip.decompress(answer.body) if answer.gzipped else answer.body
                values = {line.rpartition(b" ")[2] for line in body.splitlines()[2:]}
                assert len(values) == 1, values  # of one snapshot, and not of an older one than before
                assert float(next(iter(values))) >= last
                last = float(values.pop())

        snapshots.publish("one", metric(0.0))
        await asyncio.gather(publish(), ask(""), ask("gzip"), ask(""), ask("gzip"))

    asyncio.run(scrape())
