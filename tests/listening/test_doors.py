"""Every listener with TLS, credentials and limits on, and real clients before it."""

from __future__ import annotations

import asyncio
import base64
import logging
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import grpc
import pytest
import trustme
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tidegauge import config
from tidegauge.config import Auth, ConfigError
from tidegauge.exporters.pages import Pages
from tidegauge.listening.door import Door, exposed
from tidegauge.pipeline import Pipeline
from tidegauge.receivers.flight import FlightReceiver
from tidegauge.receivers.grpc_server import GrpcServer
from tidegauge.receivers.http import HttpReceiver
from tidegauge.receivers.otlp import OtlpReceiver
from tidegauge.snapshot import Snapshots
from tidegauge.telemetry import Telemetry

TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
DO_PUT = "/arrow.flight.protocol.FlightService/DoPut"
TOKEN = "the-token-of-this-test"
PROTOBUF = {"Content-Type": "application/x-protobuf"}


def one_span():
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.add(name="x", trace_id=b"1" * 16, span_id=b"1" * 8)
    return request.SerializeToString()


class Listening:
    """A server behind its door, and what it counts."""

    def __init__(self, server, door, telemetry):
        self.server, self.door, self.telemetry = server, door, telemetry

    def denied(self, reason):
        return self.telemetry.total("denied", listener=self.door.setting, reason=reason)

    def accepted(self):
        return self.telemetry.total("accepted")


@asynccontextmanager
async def listening(kind, settings):
    """One of the three on a free port, or where the settings say."""
    telemetry = Telemetry()
    async with AsyncExitStack() as stack:
        door = Door(settings, kind, telemetry)
        pipeline = await stack.enter_async_context(Pipeline((), telemetry, queue_bytes=2**24))
        otlp = OtlpReceiver(pipeline, telemetry, config.IdentityAttributes())
        match kind:
            case "receivers.grpc":
                flight = FlightReceiver(pipeline, telemetry, config.RecordLimits()).service()
                server = GrpcServer(settings, otlp, (flight,), door=door, grace_s=0.1)
            case "receivers.http":
                server = HttpReceiver(settings, otlp, door=door, grace_s=0.1)
            case _:
                verdict = list
                server = Pages(settings.endpoint, Snapshots(), health=verdict, ready=verdict, door=door)
        yield Listening(await stack.enter_async_context(server), door, telemetry)


def settings_of(kind, **values):
    types = {
        "receivers.grpc": config.GrpcReceiver,
        "receivers.http": config.HttpReceiver,
        "exporters.prometheus": config.Prometheus,
    }
    return types[kind](**{"endpoint": "127.0.0.1:0"} | values)


async def export(target, credentials=None, metadata=(), method=TRACES):
    """OK, or the status and details of a call."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    make = grpc.aio.insecure_channel if credentials is None else grpc.aio.secure_channel
    arguments = (target, options) if credentials is None else (target, credentials, options)
    async with make(*arguments) as channel:
        try:
            await channel.unary_unary(method)(one_span(), timeout=10, metadata=metadata)
            return "OK"
        except grpc.aio.AioRpcError as error:
            return error.code().name


def client_credentials(ca, identity=None):
    key = chain = None
    if identity is not None:
        key, chain = identity.private_key_pem.bytes(), identity.cert_chain_pems[0].bytes()
    return grpc.ssl_channel_credentials(ca.cert_pem.bytes(), key, chain)


# TLS


def test_grpc_over_mutual_tls_before_and_after_a_rotation(files):
    async def scenario():
        settings = settings_of("receivers.grpc", tls=files.settings(mutual=True))
        async with listening("receivers.grpc", settings) as one:
            target = f"localhost:{one.server.port}"
            old = files.ca
            known = old.issue_cert("client@example.org")
            assert await export(target, client_credentials(old, known)) == "OK"
            assert await export(target, client_credentials(old)) == "UNAVAILABLE"
            stranger = trustme.CA().issue_cert("client@example.org")
            assert await export(target, client_credentials(old, stranger)) == "UNAVAILABLE"
            assert await export(target) == "UNAVAILABLE"
            files.renew(trustme.CA())
            one.door.certificate.take(one.door.certificate.read())
            new = files.ca
            assert await export(target, client_credentials(new, new.issue_cert("a@b.c"))) == "OK"
            assert await export(target, client_credentials(new, known)) == "UNAVAILABLE"
            assert await export(target, client_credentials(old, known)) == "UNAVAILABLE"
            assert one.accepted() == 2

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", ["receivers.http", "exporters.prometheus"])
def test_http_over_mutual_tls(files, context_of, kind):
    async def scenario():
        async with listening(kind, settings_of(kind, tls=files.settings(mutual=True))) as one:
            url = f"https://localhost:{one.server.port}/healthz"

            async def status(context, url=url):
                async with aiohttp.ClientSession() as session, session.get(url, ssl=context) as answer:
                    return answer.status

            expected = 404 if kind == "receivers.http" else 200
            known = files.ca.issue_cert("client@example.org")
            assert await status(context_of(files.ca, known)) == expected
            with pytest.raises(aiohttp.ClientError):
                await status(context_of(files.ca))
            with pytest.raises(aiohttp.ClientError):
                await status(None, url.replace("https", "http"))
            files.renew(trustme.CA())
            one.door.certificate.take(one.door.certificate.read())
            assert await status(context_of(files.ca, files.ca.issue_cert("a@b.c"))) == expected
            with pytest.raises(aiohttp.ClientError):
                await status(context_of(files.ca, known))

    asyncio.run(scenario())


# Credentials


@pytest.fixture
def auth(tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "users").write_text("prometheus:password-of-this-test")
    return Auth(bearer_token_file=str(tmp_path / "token"), basic_auth_file=str(tmp_path / "users"))


BASIC = "Basic " + base64.b64encode(b"prometheus:password-of-this-test").decode()


@pytest.mark.parametrize("method", [TRACES, DO_PUT, "/no.such.Service/Method"])
def test_whatever_is_called_on_the_grpc_port_wants_credentials(auth, method):
    async def scenario():
        async with listening("receivers.grpc", settings_of("receivers.grpc", auth=auth)) as one:
            target = f"127.0.0.1:{one.server.port}"
            twice = [("authorization", f"Bearer {TOKEN}"), ("authorization", "Bearer x")]
            for metadata in ([], [("authorization", "Bearer wrong-token")], twice):
                assert await export(target, metadata=metadata, method=method) == "UNAUTHENTICATED"
            assert one.denied("unauthenticated") == 3
            assert one.telemetry.total("received") == 0
            for header in (f"Bearer {TOKEN}", BASIC):
                said = await export(target, metadata=[("authorization", header)], method=method)
                assert said != "UNAUTHENTICATED"
            assert one.accepted() == (2 if method == TRACES else 0)

    asyncio.run(scenario())


def test_the_http_port_wants_credentials(auth):
    async def scenario():
        async with (
            listening("receivers.http", settings_of("receivers.http", auth=auth)) as one,
            aiohttp.ClientSession(f"http://127.0.0.1:{one.server.port}") as session,
        ):
            for headers in ({}, {"Authorization": "Bearer wrong-token"}):
                async with session.post("/v1/traces", data=one_span(), headers=PROTOBUF | headers) as answer:
                    assert answer.status == 401
                    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
                    assert b"wrong-token" not in await answer.read()
            assert one.denied("unauthenticated") == 2
            for header in (f"Bearer {TOKEN}", BASIC):
                headers = PROTOBUF | {"Authorization": header}
                async with session.post("/v1/traces", data=one_span(), headers=headers) as answer:
                    assert answer.status == 200
            assert one.accepted() == 2

    asyncio.run(scenario())


def test_pages_want_credentials_and_probes_do_not(auth):
    async def scenario():
        async with (
            listening("exporters.prometheus", settings_of("exporters.prometheus", auth=auth)) as one,
            aiohttp.ClientSession(f"http://127.0.0.1:{one.server.port}") as session,
        ):
            for path in ("/", "/metrics", "/api/v1/snapshot", "/healthz/", "/no-such-page", "/HEALTHZ"):
                async with session.get(path) as answer:
                    assert answer.status == 401, path
                async with session.get(path, headers={"Authorization": BASIC}) as answer:
                    assert answer.status in (200, 404), path
            for path in ("/healthz", "/readyz"):
                async with session.get(path) as answer:
                    assert answer.status == 200
            assert one.denied("unauthenticated") == 6

    asyncio.run(scenario())


# Limits of an address


def test_an_address_has_so_many_http_connections_and_no_more():
    async def scenario():
        settings = settings_of("receivers.http", max_connections_per_peer=2)
        async with listening("receivers.http", settings) as one:
            streams = [await asyncio.open_connection("127.0.0.1", one.server.port) for _ in range(3)]
            reader, writer = streams.pop()
            assert (await reader.readline()).startswith(b"HTTP/1.1 503")
            writer.close()
            assert one.denied("peer_connections") == 1
            streams.pop()[1].close()
            async with asyncio.timeout(10):
                while True:  # until the server has seen the end of it
                    reader, writer = await asyncio.open_connection("127.0.0.1", one.server.port)
                    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                    answered = await reader.readline()
                    writer.close()
                    if b"404" in answered:
                        break
            streams.pop()[1].close()

    asyncio.run(scenario())


def test_an_address_has_so_many_bytes_of_http_bodies_under_way():
    async def scenario():
        settings = settings_of("receivers.http", max_receiving_per_peer=config.Allowance("1000B"))
        async with (
            listening("receivers.http", settings) as one,
            aiohttp.ClientSession(f"http://127.0.0.1:{one.server.port}") as session,
        ):
            for size, status in ((1001, 503), (999, 400)):
                async with session.post("/v1/traces", data=b"\xff" * size, headers=PROTOBUF) as answer:
                    assert answer.status == status
            assert one.denied("peer_receiving") == 1
            assert one.telemetry.total("rejected", reason="overload") == 1

    asyncio.run(scenario())


def test_an_address_has_so_many_grpc_calls_open():
    async def scenario():
        settings = settings_of("receivers.grpc", max_calls_per_peer=1)
        async with listening("receivers.grpc", settings) as one:
            target = f"127.0.0.1:{one.server.port}"
            async with grpc.aio.insecure_channel(target) as channel:
                waiting = channel.stream_unary(TRACES)(timeout=20)
                await waiting.wait_for_connection()
                async with asyncio.timeout(10):
                    while await export(target) == "OK":  # until the waiting call has come
                        await asyncio.sleep(0.01)
                assert await export(target) == "UNAVAILABLE"
                assert one.denied("peer_calls") >= 2
                waiting.cancel()
                async with asyncio.timeout(10):
                    while await export(target) != "OK":
                        await asyncio.sleep(0.01)

    asyncio.run(scenario())


def test_an_address_has_so_many_grpc_connections_and_loses_the_newest():
    async def scenario():
        settings = settings_of("receivers.grpc", max_connections_per_peer=2)
        async with listening("receivers.grpc", settings) as one:
            target = f"127.0.0.1:{one.server.port}"
            options = (("grpc.use_local_subchannel_pool", 1),)
            async with AsyncExitStack() as stack:
                for _ in range(2):
                    channel = await stack.enter_async_context(grpc.aio.insecure_channel(target, options))
                    await channel.unary_unary(TRACES)(one_span(), timeout=10)
                await asyncio.sleep(1.2)  # the two are seen before the others come
                floods = [await asyncio.open_connection("127.0.0.1", one.server.port) for _ in range(3)]
                for reader, _ in floods:
                    await asyncio.wait_for(reader.read(), 20)  # to its end: gRPC's settings, and closed
                async with asyncio.timeout(20):
                    while one.denied("peer_connections") < 3:  # counted after they are closed
                        await asyncio.sleep(0.01)
                assert channel.get_state() is grpc.ChannelConnectivity.READY
                for _, writer in floods:
                    writer.close()

    asyncio.run(scenario())


# What is open


def test_what_is_open_to_the_network_without_a_guard_is_said(files, auth):
    def said(**values):
        return [str(one) for one in exposed({"receivers.grpc": config.GrpcReceiver(**values)})]

    assert said() == said(endpoint="[::1]:4317") == said(endpoint="unix:/run/otlp.sock") == []
    [both] = said(endpoint="0.0.0.0:4317")
    assert both.startswith(
        "receivers.grpc.endpoint: 0.0.0.0:4317 is open to the network without TLS and auth"
    )
    [plain] = said(endpoint="0.0.0.0:4317", auth=auth)
    assert "without TLS (" in plain
    [anyone] = said(endpoint="pod:4317", tls=files.settings())
    assert "without authentication (" in anyone
    assert said(endpoint="0.0.0.0:4317", tls=files.settings(mutual=True)) == []


@pytest.mark.parametrize("kind", ["receivers.grpc", "receivers.http", "exporters.prometheus"])
def test_a_taken_port_names_its_setting(kind):
    async def scenario():
        async with listening(kind, settings_of(kind)) as one:
            taken = settings_of(kind, endpoint=f"127.0.0.1:{one.server.port}")
            with pytest.raises(ConfigError, match=rf"^{kind}\.endpoint: cannot listen on 127"):
                async with listening(kind, taken):
                    pass

    logging.disable()
    try:
        asyncio.run(scenario())
    finally:
        logging.disable(logging.NOTSET)
