"""What differs between configurations, what of it a running agent takes, and the hash."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_type_hints

import pytest
from msgspec.structs import replace

from tidegauge import config
from tidegauge.changes import LIVE, changes, fingerprint, leaves, restarts
from tidegauge.config import Auth, Config, Exporters, FurtherCollector, OtlpExporter, Tls
from tidegauge.units import Duration

ROOT = Path(__file__).parents[1]
COLLECTOR = OtlpExporter(endpoint="http://a:4317")


def with_otlp(**values):
    return Config(exporters=Exporters(otlp=replace(COLLECTOR, **values)))


def with_prometheus(**values):
    return Config(exporters=Exporters(prometheus=config.Prometheus(**values)))


def test_a_difference_is_named_by_its_path():
    one = with_otlp()
    assert changes(one, one) == []
    assert changes(one, with_otlp(headers={"a": "b"})) == ["exporters.otlp.headers"]
    further = Exporters(otlp=COLLECTOR, collectors=(FurtherCollector(name="audit", endpoint="http://b:1"),))
    found = changes(one, Config(exporters=further))
    assert "exporters.collectors[0].name" in found


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        (Config(), Config(drift=config.Drift(window=Duration("2h"))), "drift.window"),
        (Config(), Config(state_dir="/x"), "state_dir"),
        (Config(), with_otlp(), "exporters.otlp.endpoint"),
        (with_otlp(), Config(), "exporters.otlp.endpoint"),
        (with_otlp(), with_otlp(forward=False), "exporters.otlp.forward"),
        (with_prometheus(), with_prometheus(endpoint="127.0.0.1:1"), "exporters.prometheus.endpoint"),
        (
            with_prometheus(),
            with_prometheus(tls=Tls(cert_file="c", key_file="k")),
            "exporters.prometheus.tls",
        ),
        (
            with_prometheus(tls=Tls(cert_file="c", key_file="k")),
            with_prometheus(tls=Tls(cert_file="c", key_file="k", client_ca_file="ca")),
            "exporters.prometheus.tls",
        ),
        (
            Config(),
            Config(exporters=Exporters(collectors=(FurtherCollector(name="x", endpoint="http://b:1"),))),
            "exporters.collectors[0].name",
        ),
    ],
)
def test_what_holds_state_needs_a_restart(old, new, path):
    assert path in {problem.path for problem in restarts(old, new)}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (Config(), Config(drift=config.Drift(threshold=0.5, min_rows=9))),
        (Config(), Config(log=config.Log(level="debug"))),
        (with_otlp(), with_otlp(endpoint="https://b:4317", headers={"x": "y"}, certificate="c")),
        (with_prometheus(), with_prometheus(auth=Auth(bearer_token_file="t"))),
        (
            with_prometheus(tls=Tls(cert_file="c", key_file="k")),
            with_prometheus(tls=Tls(cert_file="d", key_file="l")),
        ),
    ],
)
def test_what_holds_none_is_taken(old, new):
    assert restarts(old, new) == []


def test_every_live_setting_is_a_setting_and_is_documented():
    known = {re.sub(r"\[\d+\]", "[]", path) for path, _ in leaves(Config())}
    known |= {f"exporters.collectors[].{name}" for name in get_type_hints(FurtherCollector)}
    assert sorted(LIVE - known) == []
    text = (ROOT / "docs" / "configuration.md").read_text()
    section = text[text.index("## Reload") : text.index("## Environment")]
    names = {path.rpartition(".")[2] for path in LIVE} - {"tls", "auth"}
    files = {
        name for name in names if name.endswith("_file") or "certificate" in name or name == "client_key"
    }
    assert sorted(name for name in names - files if name not in section) == []


def test_the_hash_tells_configurations_apart_but_not_secrets():
    assert fingerprint(Config()) == fingerprint(Config())
    assert fingerprint(Config()) != fingerprint(Config(drift=config.Drift(threshold=0.2)))
    one, other = (with_otlp(headers={"authorization": f"Bearer {text}"}) for text in ("a", "b"))
    assert fingerprint(one) == fingerprint(other)
    assert re.fullmatch("[0-9a-f]{16}", fingerprint(one))
