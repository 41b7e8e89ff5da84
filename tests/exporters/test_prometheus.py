"""The /metrics page: negotiation, and one rendering for all who ask."""

from __future__ import annotations

import asyncio
import gzip

import pytest

from tidegauge.exporters.exposition import Format
from tidegauge.exporters.prometheus import TEXT_TYPE, MetricsPage, accepts_gzip, negotiate
from tidegauge.metric import Kind, Metric, Number
from tidegauge.snapshot import Snapshots

PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
OPENMETRICS_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping="


def metric(number: float) -> tuple[Metric, ...]:
    return (Metric("a", Kind.GAUGE, "", "", (Number((), number),)),)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", TEXT_TYPE),
        ("*/*", TEXT_TYPE),
        ("text/html,application/xhtml+xml,*/*;q=0.8", TEXT_TYPE),
        ("text/plain;version=0.0.4", TEXT_TYPE),
        ("text/plain;version=1.0.0;escaping=allow-utf-8", TEXT_TYPE),
        ("application/openmetrics-text", OPENMETRICS_TYPE + "underscores"),
        ("application/openmetrics-text; version=1.0.0", OPENMETRICS_TYPE + "underscores"),
        ("application/openmetrics-text;version=1.0.0;escaping=values", OPENMETRICS_TYPE + "underscores"),
        (PROMETHEUS_3, OPENMETRICS_TYPE + "allow-utf-8"),
        (
            "application/openmetrics-text;version=0.0.1",
            "application/openmetrics-text; version=0.0.1; charset=utf-8",
        ),
        ("application/openmetrics-text;version=2.0.0", TEXT_TYPE),
        ("text/plain;q=0.9,application/openmetrics-text;version=1.0.0;q=0.5", TEXT_TYPE),
        ("application/openmetrics-text;version=1.0.0;q=0", TEXT_TYPE),
        ("application/openmetrics-text;version=1.0.0;q=nonsense", TEXT_TYPE),
        (";;,,=", TEXT_TYPE),
    ],
)
def test_negotiation(accept: str, expected: str) -> None:
    form, content_type = negotiate(accept)
    assert content_type == expected
    assert (form is Format.OPENMETRICS) == expected.startswith("application/openmetrics-text")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", False),
        ("gzip", True),
        ("deflate, GZIP ;q=0.1", True),
        ("gzip;q=0", False),
        ("*", True),
        ("br", False),
    ],
)
def test_gzip_only_where_it_is_accepted(header: str, expected: bool) -> None:
    assert accepts_gzip(header) is expected


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

        assert (await page.answer(PROMETHEUS_3)).body.endswith(b"# EOF\n")
        await page.answer(PROMETHEUS_3, "gzip")
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
