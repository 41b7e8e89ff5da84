"""Unix sockets: the mode, the name, and what stands in the way of it."""

from __future__ import annotations

import asyncio
import os
import socket
import stat

import aiohttp
import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegauge import config
from tidegauge.config import ConfigError
from tidegauge.exporters.pages import Pages
from tidegauge.listening.door import Door
from tidegauge.pipeline import Pipeline
from tidegauge.receivers.grpc_server import GrpcServer
from tidegauge.receivers.http import HttpReceiver
from tidegauge.receivers.otlp import OtlpReceiver
from tidegauge.snapshot import Snapshots
from tidegauge.telemetry import Telemetry
from tidegauge.units import unix_path

TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
KINDS = {
    "receivers.grpc": config.GrpcReceiver,
    "receivers.http": config.HttpReceiver,
    "exporters.prometheus": config.Prometheus,
}


@pytest.fixture
def path(tmp_path_factory):
    return str(tmp_path_factory.mktemp("s") / "s.sock")


def server_of(kind, path, **values):
    settings = KINDS[kind](endpoint=f"unix:{path}", **values)
    door = Door(settings, kind)
    telemetry = Telemetry()
    otlp = OtlpReceiver(Pipeline((), telemetry, queue_bytes=2**20), telemetry, config.IdentityAttributes())
    match kind:
        case "receivers.grpc":
            return GrpcServer(settings, otlp, grace_s=0.1, door=door)
        case "receivers.http":
            return HttpReceiver(settings, otlp, grace_s=0.1, door=door)
    return Pages(settings.endpoint, Snapshots(), health=list, ready=list, door=door)


async def answers(kind, path):
    """Whether a real client gets an answer."""
    if kind == "receivers.grpc":
        options = (("grpc.use_local_subchannel_pool", 1),)
        async with grpc.aio.insecure_channel(f"unix:{path}", options) as channel:
            return await channel.unary_unary(TRACES)(b"", timeout=10) == b""
    connector = aiohttp.UnixConnector(path)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get("http://x/healthz") as answer,
    ):
        return answer.status == (404 if kind == "receivers.http" else 200)


@pytest.mark.parametrize("mode", ["0600", "0660", "777"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_listens_with_its_mode_and_leaves_nothing_behind(kind, path, mode):
    async def scenario():
        before = os.umask(0)
        os.umask(before)
        async with server_of(kind, path, socket_mode=mode):
            assert stat.S_IMODE(os.lstat(path).st_mode) == int(mode, 8)
            assert os.listdir(os.path.dirname(path)) == ["s.sock"]
            assert await answers(kind, path)
            assert os.umask(before) == before
        assert os.listdir(os.path.dirname(path)) == []

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", KINDS)
def test_a_socket_that_nobody_listens_on_any_more_is_replaced(kind, path):
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
        left.listen()

    async def scenario():
        async with server_of(kind, path):
            assert await answers(kind, path)

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", KINDS)
def test_what_somebody_listens_on_is_an_error_and_stays(kind, path):
    async def scenario():
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(path)
            other.listen()
            with pytest.raises(
                ConfigError, match=rf"^{kind}\.endpoint: cannot listen .*somebody listens there"
            ):
                await server_of(kind, path).__aenter__()
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_socket_is_an_error_and_stays(kind, path):
    with open(path, "w") as file:
        file.write("precious")

    async def scenario():
        with pytest.raises(ConfigError, match=rf"^{kind}\.endpoint: .* is no socket"):
            await server_of(kind, path).__aenter__()

    asyncio.run(scenario())
    with open(path) as file:
        assert file.read() == "precious"


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_another_has_taken_meanwhile_is_left_to_it(kind, path):
    async def scenario():
        async with server_of(kind, path):
            os.unlink(path)
            with socket.socket(socket.AF_UNIX) as other:
                other.bind(path)

    asyncio.run(scenario())
    assert os.path.exists(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_is_not_there_is_an_error(kind, path):
    async def scenario():
        with pytest.raises(ConfigError, match=rf"^{kind}\.endpoint: cannot listen on unix:"):
            await server_of(kind, os.path.join(path, "no", "s.sock")).__aenter__()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "text", ["unix:", "unix:relative", "unix:///x", "unix:/folder/", "unix:/" + 100 * "x"]
)
def test_what_is_no_path_is_refused(text):
    with pytest.raises(ValueError, match="unix"):
        unix_path(text)


@given(st.text())
def test_any_other_text_is_no_path(text):
    if not text.startswith("unix:"):
        assert unix_path(text) is None
