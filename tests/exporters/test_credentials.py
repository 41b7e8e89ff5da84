"""What the agent shows to collectors: certificates and tokens, before and after their files have changed."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager

import grpc
import pytest
import trustme
from aiohttp import web

from tidegauge.batch import Signal
from tidegauge.config import ConfigError, OtlpExporter
from tidegauge.exporters.channel import Collector
from tidegauge.exporters.outcome import Verdict

EXPORT = "opentelemetry.proto.collector.trace.v1.TraceService"


class Shown:
    """A collector that asks clients for certificates of `ca`, and keeps what they show."""

    def __init__(self, ca):
        self.ca = ca
        self.leaf = ca.issue_cert("localhost")
        self.names, self.tokens = [], []
        self.gate = asyncio.Event()
        self.gate.set()

    @asynccontextmanager
    async def serve(self, protocol):
        if protocol == "grpc":
            async with self.serve_grpc() as port:
                yield port
        else:
            async with self.serve_http() as port:
                yield port

    @asynccontextmanager
    async def serve_grpc(self):
        async def export(request, context):
            self.names += context.auth_context().get("x509_subject_alternative_name", [])
            self.tokens.append(dict(context.invocation_metadata()).get("authorization"))
            await self.gate.wait()
            return b""

        server = grpc.aio.server()
        method = grpc.unary_unary_rpc_method_handler(export)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(EXPORT, {"Export": method}),))
        pair = self.leaf.private_key_pem.bytes(), self.leaf.cert_chain_pems[0].bytes()
        credentials = grpc.ssl_server_credentials([pair], self.ca.cert_pem.bytes(), True)
        port = server.add_secure_port("localhost:0", credentials)
        await server.start()
        try:
            yield port
        finally:
            await server.stop(0)

    @asynccontextmanager
    async def serve_http(self):
        async def export(request):
            shown = request.transport.get_extra_info("peercert")
            self.names += [name.encode() for _, name in shown["subjectAltName"]]
            self.tokens.append(request.headers.get("Authorization"))
            await self.gate.wait()
            return web.Response(body=b"")

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.leaf.configure_cert(context)
        self.ca.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
        runner = web.ServerRunner(web.Server(export))
        await runner.setup()
        try:
            await web.TCPSite(runner, "localhost", 0, ssl_context=context).start()
            yield runner.addresses[0][1]
        finally:
            await runner.cleanup()


def put(folder, ca, name, token):
    folder.mkdir(exist_ok=True)
    leaf = ca.issue_cert(name)
    leaf.cert_chain_pems[0].write_to_path(folder / "me.crt")
    leaf.private_key_pem.write_to_path(folder / "me.key")
    ca.cert_pem.write_to_path(folder / "ca.crt")
    (folder / "token").write_text(f"{token}\n")


def settings(folder, port, protocol, **values):
    files = {"certificate": "ca.crt", "client_certificate": "me.crt", "client_key": "me.key"}
    paths = {name: str(folder / file) for name, file in (files | {"bearer_token_file": "token"}).items()}
    return OtlpExporter(endpoint=f"https://localhost:{port}", protocol=protocol, **(paths | values))


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_certificate_and_token_are_shown_and_taken_anew(tmp_path, protocol, compression):
    async def scenario():
        ca = trustme.CA()
        put(tmp_path, ca, "one@example.org", "first-token")
        collector = Shown(ca)
        async with collector.serve(protocol) as port:
            wanted = settings(tmp_path, port, protocol, compression=compression)
            async with Collector(wanted) as channel:
                assert (await channel.export(Signal.TRACES, b"")).verdict is Verdict.DELIVERED
                collector.gate.clear()
                under_way = asyncio.create_task(channel.export(Signal.TRACES, b""))
                async with asyncio.timeout(20):
                    while len(collector.tokens) < 2:
                        await asyncio.sleep(0.005)
                put(tmp_path, ca, "two@example.org", "second-token")
                found = channel.read()
                assert found != channel.current
                await channel.take(found)
                later = asyncio.create_task(channel.export(Signal.TRACES, b""))
                async with asyncio.timeout(20):
                    while len(collector.tokens) < 3:
                        await asyncio.sleep(0.005)
                collector.gate.set()
                # What was under way has ended well, on the connection that it began on.
                assert (await under_way).verdict is Verdict.DELIVERED
                assert (await later).verdict is Verdict.DELIVERED
        one, two = b"one@example.org", b"two@example.org"
        assert collector.names == [one, one, two]
        assert collector.tokens == ["Bearer first-token", "Bearer first-token", "Bearer second-token"]

    asyncio.run(scenario())


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_without_a_certificate_a_collector_that_asks_for_one_takes_nothing(tmp_path, protocol):
    async def scenario():
        ca = trustme.CA()
        put(tmp_path, ca, "one@example.org", "first-token")
        async with Shown(ca).serve(protocol) as port:
            bare = settings(tmp_path, port, protocol, client_certificate=None, client_key=None)
            async with Collector(bare) as channel:
                assert (await channel.export(Signal.TRACES, b"")).verdict is Verdict.RETRY

    asyncio.run(scenario())


def test_other_settings_lead_to_another_collector(tmp_path):
    async def scenario():
        ca = trustme.CA()
        put(tmp_path, ca, "one@example.org", "first-token")
        one, two = Shown(ca), Shown(ca)
        async with (
            one.serve("grpc") as first,
            two.serve("http/protobuf") as second,
            Collector(settings(tmp_path, first, "grpc")) as channel,
        ):
            assert (await channel.export(Signal.TRACES, b"")).verdict is Verdict.DELIVERED
            await channel.prepare(settings(tmp_path, second, "http/protobuf"))()
            assert (await channel.export(Signal.TRACES, b"")).verdict is Verdict.DELIVERED
            assert channel.endpoint == f"https://localhost:{second}"
        assert (len(one.tokens), len(two.tokens)) == (1, 1)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("me.key", "broken", r"exporters\.otlp\.client_key: .*me\.key does not go with client_certificate"),
        ("ca.crt", "broken", r"exporters\.otlp\.certificate: .*ca\.crt cannot be read"),
        ("me.crt", None, r"exporters\.otlp\.client_certificate: .*cannot be read: No such file"),
        ("token", None, r"exporters\.otlp\.bearer_token_file: .*cannot be read: No such file"),
        ("token", "", r"exporters\.otlp\.bearer_token_file: has no token"),
        ("token", "one-secret\nother-secret", r"exporters\.otlp\.bearer_token_file: has no token, or more"),
    ],
)
def test_a_broken_file_is_an_error_that_names_its_setting(tmp_path, name, content, said):
    put(tmp_path, trustme.CA(), "one@example.org", "first-token")
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=f"^{said}") as caught:
        Collector(settings(tmp_path, 1, "grpc"))
    assert "secret" not in str(caught.value)


def test_credentials_do_not_show(tmp_path):
    put(tmp_path, trustme.CA(), "one@example.org", "first-token")
    shown = repr(Collector(settings(tmp_path, 1, "grpc")).current)
    assert "first-token" not in shown
    assert "PRIVATE" not in shown
