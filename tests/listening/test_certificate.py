"""A listener's certificate: real handshakes, before and after its files have changed."""

from __future__ import annotations

import asyncio
import re
import ssl

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from tidegauge.config import ConfigError, Tls
from tidegauge.listening.certificate import Certificate


async def greet(port, context, name="localhost"):
    """What a server says after a whole handshake; the error where there was none."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
        writer.write(b"x")
        said = await reader.read(10)
        writer.close()
        return said or "closed"
    except (ssl.SSLError, ConnectionError) as error:
        return type(error).__name__


async def serve(certificate):
    async def answer(reader, writer):
        await reader.read(1)
        writer.write(b"hello")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=certificate.context())
    return server, server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_a_renewed_certificate_is_shown_from_the_next_handshake_on(files, context_of, name):
    """An IP address is no server name, so that the client's hello has none."""

    async def scenario():
        certificate = Certificate(files.settings(), "receivers.http.tls")
        server, port = await serve(certificate)
        async with server:
            before = files.ca
            assert await greet(port, context_of(before), name) == b"hello"
            files.renew(trustme.CA())
            assert await greet(port, context_of(before), name) == b"hello"  # nobody has taken it yet
            certificate.take(certificate.read())
            assert await greet(port, context_of(files.ca), name) == b"hello"
            assert await greet(port, context_of(before), name) == "SSLCertVerificationError"

    asyncio.run(scenario())


def test_clients_need_a_certificate_of_the_ca_that_is_current(files, context_of):
    async def scenario():
        certificate = Certificate(files.settings(mutual=True), "receivers.http.tls")
        server, port = await serve(certificate)
        async with server:
            before = files.ca
            known = before.issue_cert("client@example.org")
            stranger = trustme.CA().issue_cert("client@example.org")
            assert await greet(port, context_of(before, known)) == b"hello"
            assert await greet(port, context_of(before)) != b"hello"
            assert await greet(port, context_of(before, stranger)) != b"hello"
            files.renew(trustme.CA())
            certificate.take(certificate.read())
            assert await greet(port, context_of(files.ca, known)) != b"hello"
            assert await greet(port, context_of(files.ca, files.ca.issue_cert("a@b.c"))) == b"hello"

    asyncio.run(scenario())


def test_a_session_is_not_resumed_after_its_ca_is_gone(files, context_of):
    async def scenario():
        certificate = Certificate(files.settings(mutual=True), "receivers.http.tls")
        server, port = await serve(certificate)
        async with server:
            context = context_of(files.ca, files.ca.issue_cert("client@example.org"))
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            _, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=context, server_hostname="localhost"
            )
            session = writer.get_extra_info("ssl_object").session
            assert not session.has_ticket
            writer.close()

    asyncio.run(scenario())


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
@pytest.mark.parametrize(("version", "taken"), [("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)])
def test_tls_below_1_2_is_refused(files, context_of, version, taken):
    async def scenario():
        server, port = await serve(Certificate(files.settings(), "receivers.http.tls"))
        async with server:
            context = context_of(files.ca)
            context.set_ciphers("DEFAULT:@SECLEVEL=0")
            context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
            assert (await greet(port, context) == b"hello") is taken

    asyncio.run(scenario())


def broken(files, name):
    """Settings with something wrong, and what is to be said of it."""
    folder, good = files.folder, files.settings(mutual=True)
    match name:
        case "missing":
            return Tls(
                cert_file=f"{folder}/no.crt", key_file=good.key_file
            ), r"cert_file: .*no\.crt cannot be"
        case "no key":
            return Tls(cert_file=good.cert_file, key_file=f"{folder}/no.key"), r"key_file: .*cannot be read"
        case "another's key":
            other = trustme.CA().issue_cert("localhost").private_key_pem
            other.write_to_path(folder / "other.key")
            settings = Tls(cert_file=good.cert_file, key_file=f"{folder}/other.key")
            return settings, r"key_file: .*other\.key does not go with cert_file: key values mismatch"
        case "an encrypted key":
            key = serialization.load_pem_private_key((folder / "tls.key").read_bytes(), None)
            sealed = key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"secret-word"),
            )
            (folder / "sealed.key").write_bytes(sealed)
            return Tls(cert_file=good.cert_file, key_file=f"{folder}/sealed.key"), r"key_file: .*does not go"
        case _:
            (folder / "ca.crt").write_text("no certificate")
            return good, r"client_ca_file: no CA in .*ca\.crt"


@pytest.mark.parametrize("name", ["missing", "no key", "another's key", "an encrypted key", "no CA"])
def test_a_broken_file_is_an_error_that_names_its_setting(files, name):
    settings, said = broken(files, name)
    with pytest.raises(ConfigError, match=rf"^receivers\.grpc\.tls\.{said}") as caught:
        Certificate(settings, "receivers.grpc.tls")
    assert not re.search("PRIVATE KEY|secret-word", str(caught.value))


def test_what_was_read_does_not_show_the_key(files):
    loaded = Certificate(files.settings(), "receivers.grpc.tls").current
    assert "PRIVATE KEY" not in repr(loaded)
    assert loaded == Certificate(files.settings(), "receivers.grpc.tls").current
