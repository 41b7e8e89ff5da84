"""Files that change: taken once, refused once, and what was there before stays in force."""

from __future__ import annotations

import asyncio
import os

import pytest

from tidegauge.config import ConfigError, Problem
from tidegauge.telemetry import Telemetry
from tidegauge.watched import FileWatch


class Text:
    """A file of text that must not have a question mark in it."""

    setting = "some.file"

    def __init__(self, path):
        self.path = path
        self.current = self.read()
        self.taken = 0

    def read(self):
        try:
            text = self.path.read_text()
        except OSError as error:
            raise ConfigError([Problem(self.setting, "cannot be read")]) from error
        if "?" in text:
            raise ConfigError([Problem(self.setting, "is in question")])
        return text

    async def take(self, text):
        if "!" in text:
            raise ConfigError([Problem(self.setting, "needs a restart")])
        self.current = text
        self.taken += 1


@pytest.fixture
def text(tmp_path):
    (tmp_path / "file").write_text("one")
    return Text(tmp_path / "file")


def counts(telemetry):
    return tuple(telemetry.total("reloads", setting="some.file", outcome=one) for one in ("taken", "refused"))


def failing(telemetry):
    [metric] = [one for one in telemetry.collect() if one.name == "tidegauge.reload.failing"]
    return [point.value for point in metric.points]


def test_what_has_changed_is_taken_once(text):
    async def scenario():
        telemetry = Telemetry()
        watch = FileWatch([text], telemetry, interval_s=1)
        await watch.look()
        assert text.taken == 0
        text.path.write_text("two")
        await watch.look()
        await watch.look()
        assert (text.current, text.taken) == ("two", 1)
        assert counts(telemetry) == (1, 0)

    asyncio.run(scenario())


@pytest.mark.parametrize("content", ["what?", "stop!", None])
def test_what_will_not_do_is_told_once_and_changes_nothing(text, content, caplog):
    async def scenario():
        telemetry = Telemetry()
        watch = FileWatch([text], telemetry, interval_s=1)
        if content is None:
            text.path.unlink()
        else:
            text.path.write_text(content)
        for _ in range(3):
            await watch.look()
        assert text.current == "one"
        assert counts(telemetry) == (0, 1)
        assert failing(telemetry) == [1]
        assert len(caplog.messages) == 1
        text.path.write_text("one")  # it is as it was
        await watch.look()
        assert counts(telemetry) == (0, 1)
        assert failing(telemetry) == [0]
        text.path.write_text("two")
        await watch.look()
        assert (text.current, counts(telemetry), failing(telemetry)) == ("two", (1, 1), [0])

    asyncio.run(scenario())


def test_it_looks_by_itself_and_when_it_is_asked(text):
    async def scenario():
        asked = asyncio.Event()
        async with FileWatch([text], Telemetry(), interval_s=0.01):
            text.path.write_text("two")
            await until(lambda: text.current == "two")
        async with FileWatch([text], Telemetry(), interval_s=1e6, asked=asked):
            text.path.write_text("three")
            asked.set()
            await until(lambda: text.current == "three")

    async def until(condition):
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.005)

    asyncio.run(scenario())


def test_a_mounted_configmap_changes_by_its_link(tmp_path):
    """Same name, size and time of the file: only the folder behind `..data` is another."""
    for version, content in (("..1", "one"), ("..2", "two")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "file").write_text(content)
        os.utime(tmp_path / version / "file", (1, 1))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "file").symlink_to("..data/file")
    text = Text(tmp_path / "file")

    async def scenario():
        watch = FileWatch([text], Telemetry(), interval_s=1)
        (tmp_path / "..data_tmp").symlink_to("..2")
        os.replace(tmp_path / "..data_tmp", tmp_path / "..data")
        await watch.look()

    asyncio.run(scenario())
    assert text.current == "two"


def test_one_that_fails_does_not_keep_the_others_from_being_looked_at(text, caplog):
    class Broken:
        setting = "broken"
        current = None

        def read(self):
            raise ZeroDivisionError

        def take(self, found):
            raise AssertionError

    async def scenario():
        watch = FileWatch([Broken(), text], Telemetry(), interval_s=1)
        await watch.look()
        await watch.look()

    text.path.write_text("two")
    asyncio.run(scenario())
    assert text.current == "two"
    assert caplog.text.count("broken could not be looked at") == 1
