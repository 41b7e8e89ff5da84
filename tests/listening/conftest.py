"""Certificates made for the test, and files that are swapped as Kubernetes does it."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from tidegauge import config


class Files:
    """A listener's PEM files in a folder, and clients of the CA that they belong to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.ca = trustme.CA()
        self.renew(self.ca)

    def renew(self, ca: trustme.CA) -> None:
        """Put a new certificate there, of `ca`, which is the clients' CA too."""
        self.ca = ca
        leaf = ca.issue_cert("localhost", "127.0.0.1")
        leaf.cert_chain_pems[0].write_to_path(self.folder / "tls.crt")
        leaf.private_key_pem.write_to_path(self.folder / "tls.key")
        ca.cert_pem.write_to_path(self.folder / "ca.crt")

    def settings(self, *, mutual: bool = False) -> config.Tls:
        return config.Tls(
            cert_file=str(self.folder / "tls.crt"),
            key_file=str(self.folder / "tls.key"),
            client_ca_file=str(self.folder / "ca.crt") if mutual else None,
        )


def client_context(ca: trustme.CA, identity: trustme.LeafCert | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    if identity is not None:
        identity.configure_cert(context)
    return context


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "tls")


@pytest.fixture
def context_of() -> Callable[..., ssl.SSLContext]:
    return client_context


@pytest.fixture
def swap(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    """Writes a folder as a ConfigMap is mounted: a new version, and then `..data` leads to it."""
    mount = tmp_path / "mount"
    mount.mkdir()
    versions = iter(range(100))

    def put(contents: dict[str, str]) -> Path:
        version = mount / f"..2026_{next(versions)}"
        version.mkdir()
        for name, text in contents.items():
            (version / name).write_text(text)
            if not (mount / name).is_symlink():
                (mount / name).symlink_to(Path("..data") / name)
        (mount / "..data_tmp").symlink_to(version.name)
        os.replace(mount / "..data_tmp", mount / "..data")
        return mount

    return put
