"""Mutual TLS and a token between the agent and a real Prometheus, and a real Collector, over a rotation."""

from __future__ import annotations

import json
import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import grpc
import pytest
import trustme
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

pytestmark = pytest.mark.e2e

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


def put(folder: Path, ca: trustme.CA, token: str) -> None:
    """Certificates of everybody, of one CA, and the token that Prometheus shows."""
    for name in ("agent", "collector", "prometheus"):
        leaf = ca.issue_cert("localhost")
        leaf.cert_chain_pems[0].write_to_path(folder / f"{name}.crt")
        leaf.private_key_pem.write_to_path(folder / f"{name}.key")
    ca.cert_pem.write_to_path(folder / "ca.crt")
    (folder / "token").write_text(token)


def agent_yaml(files: Path, ports: list[int]) -> dict[str, Any]:
    own = {
        "cert_file": f"{files}/agent.crt",
        "key_file": f"{files}/agent.key",
        "client_ca_file": f"{files}/ca.crt",
    }
    pages = {
        "endpoint": f"127.0.0.1:{ports[1]}",
        "tls": own,
        "auth": {"bearer_token_file": f"{files}/token"},
    }
    to_collector = {
        "endpoint": f"https://localhost:{ports[2]}",
        "certificate": f"{files}/ca.crt",
        "client_certificate": f"{files}/agent.crt",
        "client_key": f"{files}/agent.key",
        "interval": "1s",
    }
    return {
        "receivers": {
            "grpc": {"endpoint": f"127.0.0.1:{ports[0]}", "tls": own},
            "http": {"endpoint": "127.0.0.1:0"},
        },
        "exporters": {"prometheus": pages, "otlp": to_collector},
        "pipeline": {"publish_interval": "500ms"},
        "reload": {"interval": "500ms"},
    }


def collector_yaml(files: Path, port: int) -> dict[str, Any]:
    tls = {
        "cert_file": f"{files}/collector.crt",
        "key_file": f"{files}/collector.key",
        "client_ca_file": f"{files}/ca.crt",
        "reload_interval": "500ms",
        "client_ca_file_reload": True,
    }
    output = {"path": f"{files}/traces.json", "format": "json", "flush_interval": "200ms"}
    return {
        "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": f"localhost:{port}", "tls": tls}}}},
        "exporters": {"file": output},
        "service": {
            "pipelines": {
                one: {"receivers": ["otlp"], "exporters": ["file"]} for one in ("traces", "metrics")
            },
            "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "warn"}},
        },
    }


def prometheus_yaml(files: Path, port: int) -> dict[str, Any]:
    tls = {
        "ca_file": f"{files}/ca.crt",
        "cert_file": f"{files}/prometheus.crt",
        "key_file": f"{files}/prometheus.key",
    }
    scrape = {
        "job_name": "tidegauge",
        "scheme": "https",
        "tls_config": tls,
        "authorization": {"credentials_file": f"{files}/token"},
        "static_configs": [{"targets": [f"localhost:{port}"]}],
    }
    timing = {"scrape_interval": "1s", "scrape_timeout": "1s"}
    return {"global": timing, "scrape_configs": [scrape]}


def write(path: Path, tree: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def query(port: int, expression: str) -> list[float]:
    url = f"http://127.0.0.1:{port}/api/v1/query?{urlencode({'query': expression})}"
    try:
        with urlopen(url, timeout=10) as answer:
            return [float(one["value"][1]) for one in json.load(answer)["data"]["result"]]
    except URLError:  # it does not listen yet
        return []


def send(port: int, ca: trustme.CA, name: str) -> None:
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    scope.spans.add(name=name, trace_id=b"1" * 16, span_id=b"1" * 8, kind=2, end_time_unix_nano=1)
    mine = ca.issue_cert("model-server@example.org")
    pair = mine.private_key_pem.bytes(), mine.cert_chain_pems[0].bytes()
    credentials = grpc.ssl_channel_credentials(ca.cert_pem.bytes(), *pair)
    options = (("grpc.use_local_subchannel_pool", 1),)
    with grpc.secure_channel(f"localhost:{port}", credentials, options) as channel:
        channel.unary_unary(EXPORT)(request.SerializeToString(), timeout=20)


def test_a_rotation_of_all_certificates_interrupts_nobody(
    tmp_path: Path,
    tool: Callable[[str, str], Path],
    start_process: Callable[..., Any],
    until: Callable[..., Any],
) -> None:
    ports = []
    for _ in range(4):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            ports.append(int(taken.getsockname()[1]))
    old = trustme.CA()
    put(tmp_path, old, "the-first-token")
    collector = write(tmp_path / "collector.yaml", collector_yaml(tmp_path, ports[2]))
    start_process("collector", [str(tool("collector", "otelcol-tidegauge")), f"--config={collector}"], {})
    until(lambda: listens(ports[2]))
    agent = write(tmp_path / "agent.yaml", agent_yaml(tmp_path, ports))
    start_process("agent", [sys.executable, "-m", "tidegauge", "run", "--config", agent], {})
    until(lambda: listens(ports[0]), 300)
    prometheus = write(tmp_path / "prometheus.yaml", prometheus_yaml(tmp_path, ports[1]))
    command = [str(tool("prometheus", "prometheus")), f"--config.file={prometheus}"]
    command += [f"--storage.tsdb.path={tmp_path}/tsdb", f"--web.listen-address=127.0.0.1:{ports[3]}"]
    start_process("prometheus", command, {})

    def written() -> str:
        path = tmp_path / "traces.json"
        return path.read_text() if path.exists() else ""

    send(ports[0], old, "before the rotation")
    until(lambda: "before the rotation" in written())
    until(lambda: query(ports[3], "up") == [1.0])
    until(lambda: query(ports[3], "count(tidegauge_config_info)") == [1.0])

    new = trustme.CA()
    put(tmp_path, new, "the-second-token")
    # Whoever connects now has to have been given the new ones.
    taken = 'tidegauge_reloads_total{outcome="taken"}'
    until(lambda: query(ports[3], f"count({taken})") == [4.0], 60)  # two listeners, the token, the client
    assert query(ports[3], "up") == [1.0]
    send(ports[0], new, "after the rotation")
    until(lambda: "after the rotation" in written(), 60)
    context = ssl.create_default_context(cadata=old.cert_pem.bytes().decode())
    with pytest.raises(URLError, match="certificate verify failed"):
        urlopen(Request(f"https://localhost:{ports[1]}/metrics"), timeout=10, context=context)
