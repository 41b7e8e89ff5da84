"""What users write: parsed, checked whole, and explained."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegauge import config_file
from tidegauge.config import Config, ConfigError
from tidegauge.config_file import ConfigFile, load
from tidegauge.small_file import LARGEST
from tidegauge.units import Duration, Size, parse_endpoint


def problems(tmp_path, text, environ=None):
    path = tmp_path / "agent.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path, environ or {})
    return {problem.path: problem for problem in caught.value.problems}


def parsed(tmp_path, text, environ=None):
    path = tmp_path / "agent.yaml"
    path.write_text(text)
    return load(path, environ or {})


def test_nothing_at_all_is_the_defaults(tmp_path):
    assert load(None, {}) == Config()
    assert parsed(tmp_path, "") == Config()
    assert parsed(tmp_path, "receivers:\ndrift: {}\n") == Config()


def test_every_error_is_told_at_once_with_its_path_and_a_hint(tmp_path):
    found = problems(
        tmp_path,
        """
recievers: {}
receivers: {grpc: {endpoint: 4317, max_message_size: 64}}
drift:
  {window: 5m, panes: 0, bins: many, significance: 1.5, fixed_period: 2026-03-02, detectors: [adwn],
   other_baselines: rolling}
latency: {spans: some}
references: [{modle: x, version: 2.1}]
exporters: [1]
""",
    )
    assert found["recievers"].hint == "did you mean receivers?"
    assert "64MiB" in found["receivers.grpc.max_message_size"].message
    assert found["references[0].version"].hint == "put it in quotes"
    assert "requests, all" in found["latency.spans"].hint
    assert found["drift.fixed_period"].hint == "put it in quotes"
    assert found["drift.detectors"].hint == "one of: adwin, page_hinkley, ddm, eddm, hddm_a"
    assert found["drift.other_baselines"].hint == "a list is written [A, B], of: fixed, rolling, seasonal"
    assert set(found) == {
        *("recievers", "receivers.grpc.endpoint", "receivers.grpc.max_message_size"),
        *("drift.panes", "drift.bins", "drift.significance", "drift.allowed_lateness", "latency.spans"),
        *("drift.fixed_period", "drift.detectors", "drift.other_baselines"),
        *(
            "references[0].modle",
            "references[0].version",
            "references[0].model",
            "references[0].path",
            "exporters",
        ),
    }


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("receivers: {http: {endpoint: '127.0.0.1:4317'}}", "receivers.http.endpoint"),
        ("receivers: {http: {endpoint: nowhere}}", "receivers.http.endpoint"),
        ("drift: {window: 1m, allowed_lateness: 2m}", "drift.allowed_lateness"),
        ("drift: {other_baselines: [fixed]}", "drift.fixed_period"),
        ("drift: {fixed_period: 2026-03-09/2026-03-02}", "drift.fixed_period"),
        ("drift: {fixed_period: last week}", "drift.fixed_period"),
        ("drift: {fixed_period: 2026-03-02/2026-03-09/2026-03-16}", "drift.fixed_period"),
        ("references: [{model: a, path: x}, {model: a, path: y}]", "references[1]"),
        ("exporters: {otlp: {endpoint: 'collector:4317'}}", "exporters.otlp.endpoint"),
        ("exporters: {otlp: {endpoint: 'http://localhost:4317'}}", "exporters.otlp.endpoint"),
        ("exporters: {otlp: {endpoint: 'http://a b'}}", "exporters.otlp.endpoint"),
        *(
            (
                f"exporters: {{otlp: {{endpoint: 'http://c:1', headers: {{{header}}}}}}}",
                "exporters.otlp.headers",
            )
            for header in ("a b: x", "Ü: x", "'': x", "x-bin: x", "x: é", 'x: "y\\nz"', "Content-Type: x")
        ),
        (
            "exporters: {otlp: {endpoint: 'http://127.0.0.1:4318/x', protocol: http/protobuf}}",
            "exporters.otlp.endpoint",
        ),
        ("exporters: {otlp: {signals: [traces, records]}}", "exporters.otlp.signals"),
        ("exporters: {collectors: [{name: a}]}", "exporters.collectors[0].endpoint"),
        (
            "exporters: {collectors: [{name: default, endpoint: 'http://c:4317'}]}",
            "exporters.collectors[0].name",
        ),
        (
            "exporters: {collectors: [{name: ../up, endpoint: 'http://c:4317'}]}",
            "exporters.collectors[0].name",
        ),
        ("exporters: {remote_write: {endpoint: 'prometheus:9090'}}", "exporters.remote_write.endpoint"),
        (
            "exporters: {remote_write: {endpoint: 'http://127.0.0.1:9464/api/v1/write'}}",
            "exporters.remote_write.endpoint",
        ),
        (
            "exporters: {remote_write: {endpoint: 'http://p:9090', headers: {Content-Type: x}}}",
            "exporters.remote_write.headers",
        ),
        ("exporters: {remote_write: {labels: {__name__: x}}}", "exporters.remote_write.labels"),
        ("exporters: {remote_write: {client_key: key.pem}}", "exporters.remote_write.client_key"),
        ("exporters: {remote_write: {version: '3.0'}}", "exporters.remote_write.version"),
    ],
)
def test_settings_that_contradict_each_other(tmp_path, text, path):
    assert set(problems(tmp_path, text)) == {path}


def test_files_that_are_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(tmp_path / "none.yaml", {})
    assert "is not YAML" in next(iter(problems(tmp_path, "a: [").values())).message
    assert "must be a mapping" in problems(tmp_path, "[1, 2]")["file"].message


def test_the_standard_variables_name_a_collector():
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector:4317",
        "OTEL_EXPORTER_OTLP_HEADERS": "api-key=a%20b, tenant=x",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "2500",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": "/ca.pem",
        "OTEL_RESOURCE_ATTRIBUTES": "k8s.pod.name=p,service.name=overridden",
        "OTEL_SERVICE_NAME": "gauge",
    }
    config = load(None, environ)
    otlp = config.exporters.otlp
    assert otlp.endpoint == "https://collector:4317"
    assert otlp.headers == {"api-key": "a b", "tenant": "x"}
    assert (otlp.timeout, otlp.compression, otlp.certificate) == (2.5, "gzip", "/ca.pem")
    assert config.resource == {"k8s.pod.name": "p", "service.name": "gauge"}


def test_the_file_comes_before_the_variables(tmp_path):
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://other:4317",
        "OTEL_EXPORTER_OTLP_HEADERS": "secret=1",
        "OTEL_RESOURCE_ATTRIBUTES": "a=1,b=2",
    }
    text = "exporters: {otlp: {endpoint: 'http://mine:4317'}}\nresource: {a: mine}"
    config = parsed(tmp_path, text, environ)
    assert config.exporters.otlp.endpoint == "http://mine:4317"
    assert config.exporters.otlp.headers == {}  # another collector's secrets stay with it
    assert config.resource == {"a": "mine", "b": "2"}


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
        {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "thrift"},
        {"OTEL_EXPORTER_OTLP_TIMEOUT": "10s"},
        {"OTEL_EXPORTER_OTLP_COMPRESSION": "zstd"},
        {"OTEL_EXPORTER_OTLP_HEADERS": "nonsense"},
    ],
)
def test_variables_that_cannot_be_used_are_named(environ):
    with pytest.raises(ConfigError, match=next(iter(environ))):
        load(None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"} | environ)


def test_a_signal_s_own_variables_come_before_the_common_ones():
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://all:4317",
        "OTEL_EXPORTER_OTLP_HEADERS": "a=1",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://traces/otlp/v1/traces",
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "b=2",
        "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "500",
    }
    exporters = load(None, environ).exporters
    assert (exporters.otlp.endpoint, exporters.otlp.signals) == ("http://all:4317", ("metrics", "logs"))
    assert (exporters.otlp.headers, exporters.otlp.timeout) == ({"a": "1"}, 10.0)
    (traces,) = exporters.collectors
    assert (traces.name, traces.endpoint, traces.signals) == ("traces", "https://traces/otlp", ("traces",))
    assert (traces.protocol, traces.headers, traces.timeout) == ("http/protobuf", {"b": "2"}, 0.5)


def test_a_signal_without_an_endpoint_goes_nowhere():
    exporters = load(None, {"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://logs:4317"}).exporters
    assert exporters.otlp.endpoint is None
    assert [(one.name, one.signals) for one in exporters.collectors] == [("logs", ("logs",))]


def test_signals_that_go_the_same_way_share_a_collector():
    environ = {
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://metrics:4317",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://rest:4317",
        "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://rest:4317",
    }
    exporters = load(None, environ).exporters
    assert (exporters.otlp.endpoint, exporters.otlp.signals) == ("http://metrics:4317", ("metrics",))
    assert [(one.name, one.signals) for one in exporters.collectors] == [("traces-logs", ("traces", "logs"))]


@pytest.mark.parametrize("endpoint", ["http://c:4318", "http://c:4318/v1/logs", "http://c/v1/traces/x"])
def test_a_signal_s_own_http_endpoint_is_its_whole_url(endpoint):
    environ = {
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": endpoint,
    }
    with pytest.raises(ConfigError, match=r"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT.*must end in /v1/traces"):
        load(None, environ)


def test_collectors_in_the_file_come_before_the_variables(tmp_path):
    text = "exporters: {collectors: [{name: a, endpoint: 'http://a:4317', disk_queue: {size: 0B}}]}"
    exporters = parsed(tmp_path, text, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://other:4317"}).exporters
    assert exporters.otlp.endpoint is None
    assert [one.name for one in exporters.collectors] == ["a"]
    assert exporters.collectors[0].disk_queue.size == 0


def test_an_endpoint_variable_without_a_scheme_is_as_secure_as_it_says():
    for insecure, scheme in (("true", "http"), ("false", "https")):
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "c:4317", "OTEL_EXPORTER_OTLP_INSECURE": insecure}
        assert load(None, environ).exporters.otlp.endpoint == f"{scheme}://c:4317"


@given(st.integers(1, 10**6), st.sampled_from(["ms", "s", "m", "h", "d"]))
def test_durations(number, unit):
    seconds = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}[unit]
    assert Duration(f"{number}{unit}") == pytest.approx(number * seconds)


@pytest.mark.parametrize("text", ["", "5", 5, "s", "-1s", "0s", "1s 2m", "1y", "1e3s", None, True])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match="duration"):
        Duration(text)


@pytest.mark.parametrize("text", ["", "5", 5, "0B", "-1MiB", "1mb", "1TiB", None, "MiB"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="size"):
        Size(text)


@pytest.mark.parametrize("text", ["", "host", "host:", "host:99999", "a:b:1", "[::1", "http://h:1", ":4317"])
def test_what_is_no_endpoint(text):
    with pytest.raises(ValueError, match="HOST:PORT"):
        parse_endpoint(text)


def test_a_file_is_parsed_again_where_its_bytes_have_changed(tmp_path):
    path = tmp_path / "agent.yaml"
    path.write_text("drift: {bins: 10}")
    file = ConfigFile(path, {})
    first = file.read()
    assert file.read() is first
    path.write_text("drift: [")
    with pytest.raises(ConfigError, match="is not YAML: line 1"):
        file.read()
    path.write_text("drift: {bins: 11}")
    assert file.read().drift.bins == 11
    path.unlink()
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        file.read()


@pytest.mark.parametrize(
    "content",
    [
        *(
            b"state_dir: 2026-13-45",
            b"state_dir: !!int x",
            b"state_dir: !!bool x",
            b"state_dir: !!timestamp x",
        ),
        *(b"a: " + b"[" * 5000, b"\xff", b"\0", b"%", b"&a [*a, *b]", b"? [a]\n: b"),
    ],
)
def test_garbage_is_told_as_such(tmp_path, content):
    path = tmp_path / "agent.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="is not YAML"):
        load(path, {})


def test_a_file_without_end_and_a_pipe_are_not_read_to_the_end(tmp_path):
    path = tmp_path / "agent.yaml"
    path.write_text("drift: {bins: 10}")
    file = ConfigFile(path, {})
    file.read()
    path.write_bytes(b"#" * (LARGEST + 1))
    with pytest.raises(ConfigError, match="it is larger than 1 MiB"):
        file.read()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="it is a pipe"):
        file.read()
    with pytest.raises(ConfigError, match="larger"):
        load("/dev/zero", {})
    with pytest.raises(ConfigError, match="directory"):
        load(tmp_path, {})


def test_what_was_refused_is_not_parsed_again(tmp_path, monkeypatch):
    path = tmp_path / "agent.yaml"
    path.write_text("drift: {bins: 1}")
    file = ConfigFile(path, {})
    for _ in range(3):
        with pytest.raises(ConfigError, match=r"drift\.bins"):
            file.read()
        monkeypatch.setattr(config_file, "parse", None)


@pytest.mark.parametrize("block", ["otlp", "remote_write"])
@pytest.mark.parametrize("url", ["http://me:s3cret@host:9090/x", "ftp://me:s3cret@host", "me:s3cret@host"])
def test_a_password_in_a_url_is_refused_and_not_shown(tmp_path, block, url):
    path = tmp_path / "agent.yaml"
    path.write_text(f"exporters: {{{block}: {{endpoint: '{url}'}}}}")
    with pytest.raises(ConfigError, match=r"endpoint: a URL with a user") as caught:
        load(path, {})
    assert "s3cret" not in str(caught.value)


def test_values_that_may_be_secrets_are_not_quoted(tmp_path):
    path = tmp_path / "agent.yaml"
    for text in (
        "exporters: {otlp: {headers: {authorization: [my-secret]}}}",
        "exporters: {otlp: {bearer_token_file: [my-secret]}}",
        "receivers: {grpc: {auth: my-secret}}",
        "receivers: {http: {auth: {basic_auth_file: {my: my-secret}}}}",
        "exporters: {otlp: {headers: {authorization: my-secret\n]",
    ):
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            load(path, {})
        assert "my-secret" not in str(caught.value), text
