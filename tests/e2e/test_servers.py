"""Real model servers, each request of which is counted once under the name that it gives itself.

Each runs in its own environment, is asked `REQUESTS` times over HTTP, and exports to the agent with its
own instrumentation. What vLLM would send is made with OpenTelemetry's SDK.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

pytestmark = pytest.mark.e2e

SERVERS = Path(__file__).with_name("servers")
REQUESTS = 37
ROUTE = "/v2/models/{model_name}/versions/{model_version}/infer"  # MLServer's
COUNT = "model_inference_latency_seconds_count"


class Server(NamedTuple):
    """A running model server and how to ask it once."""

    url: str
    body: dict[str, Any] | list[float]

    def ask(self) -> int:
        """The status of its answer."""
        headers = {"Content-Type": "application/json"}
        request = Request(self.url, json.dumps(self.body).encode(), headers)
        try:
            with urlopen(request, timeout=10) as answer:
                return int(answer.status)
        except HTTPError as error:
            with error:
                return error.code

    def answers(self) -> bool:
        """Whether it serves by now."""
        try:
            return self.ask() == 200
        except OSError:
            return False


@pytest.fixture(scope="module")
def agent(start_agent: Callable[..., Any]) -> Any:
    return start_agent()


@pytest.fixture
def serve(agent: Any, start_process: Callable[..., Any], until: Callable[..., Any]) -> Callable[..., None]:
    """Starts a server that exports to the agent, and checks that each of its requests is counted once."""

    def serve(name: str, command: list[str], server: Server, environ: dict[str, str], **labels: str) -> None:
        start_process(name, command, environ | exporting(agent))
        until(server.answers, 60)
        until(lambda: counted(agent, **labels) > 0)  # the request that found it ready
        until(lambda: settled(agent))
        before, whole = counted(agent, **labels), counted(agent)
        assert [server.ask() for _ in range(REQUESTS)] == [200] * REQUESTS
        until(lambda: counted(agent, **labels) >= before + REQUESTS)
        until(lambda: settled(agent))
        assert counted(agent, **labels) == before + REQUESTS
        assert counted(agent) == whole + REQUESTS

    return serve


def exporting(agent: Any) -> dict[str, str]:
    """The environment of an SDK that exports to the agent, soon."""
    endpoint = f"http://127.0.0.1:{agent.grpc}"
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "200"}


def counted(agent: Any, **labels: str) -> float:
    return float(agent.total(COUNT, **labels))


def settled(agent: Any) -> bool:
    """Whether no span came for longer than any exporter here waits, nor is one to be published."""
    received = agent.total("tidegauge_received_total", signal="traces")
    time.sleep(1.5)
    return bool(received == agent.total("tidegauge_received_total", signal="traces"))


@pytest.mark.parametrize("conventions", ["default", "http", "http/dup"])
def test_fastapi_counts_each_request_once(
    serve: Callable[..., None], free_port: int, conventions: str
) -> None:
    service = f"fastapi-{conventions}"
    environ = {
        "OTEL_SERVICE_NAME": service,
        "OTEL_RESOURCE_ATTRIBUTES": "service.version=4.2",
        "OTEL_SEMCONV_STABILITY_OPT_IN": conventions,
    }
    command = [sys.executable, str(SERVERS / "fastapi_app.py"), str(free_port)]
    server = Server(f"http://127.0.0.1:{free_port}/predict", [1.0, 2.0])
    labels = {"model": service, "version": "4.2", "operation": "POST /predict", "status": "ok"}
    serve("fastapi", command, server, environ, **labels)


def test_a_failed_request_to_fastapi_is_an_error(
    agent: Any, start_process: Callable[..., Any], until: Callable[..., Any], free_port: int
) -> None:
    environ = {"OTEL_SERVICE_NAME": "failing"} | exporting(agent)
    start_process("fastapi", [sys.executable, str(SERVERS / "fastapi_app.py"), str(free_port)], environ)
    until(Server(f"http://127.0.0.1:{free_port}/predict", [1.0]).answers, 60)
    assert Server(f"http://127.0.0.1:{free_port}/predict", []).ask() == 500
    until(lambda: counted(agent, model="failing", status="error") == 1)


def test_mlserver_counts_each_request_once(
    agent: Any, serve: Callable[..., None], tool: Callable[..., Path], tmp_path: Path, free_port: int
) -> None:
    python = tool("mlserver", "bin/python")
    settings = {
        "host": "127.0.0.1",
        "http_port": free_port,
        "grpc_port": 0,
        "metrics_endpoint": None,
        "parallel_workers": 0,
        "server_name": "fraud-server",
        "tracing_server": f"127.0.0.1:{agent.grpc}",
    }
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    model = {"name": "fraud", "implementation": "mlserver_model.Doubler", "parameters": {"version": "v2"}}
    (tmp_path / "model-settings.json").write_text(json.dumps(model))
    command = [str(python), "-c", "from mlserver.cli import main; main()", "start", str(tmp_path)]
    values = {"name": "x", "shape": [3], "datatype": "FP64", "data": [1.0, 2.0, 3.0]}
    url = f"http://127.0.0.1:{free_port}/v2/models/fraud/versions/v2/infer"
    server = Server(url, {"inputs": [values]})
    labels = {"model": "fraud-server", "operation": f"POST {ROUTE}", "status": "ok"}
    serve("mlserver", command, server, {"PYTHONPATH": str(SERVERS)}, **labels)


def test_bentoml_counts_each_request_once(
    agent: Any, serve: Callable[..., None], tool: Callable[..., Path], tmp_path: Path, free_port: int
) -> None:
    python = tool("bentoml", "bin/python")
    address = ["--host", "127.0.0.1", "--port", str(free_port), "--working-dir", str(SERVERS)]
    command = [str(python), "-m", "bentoml", "serve", "bento_service:Doubler", *address]
    environ = {
        "BENTOML_HOME": str(tmp_path),
        "BENTOML_DO_NOT_TRACK": "True",
        "OTLP_ENDPOINT": f"http://127.0.0.1:{agent.grpc}",
    }
    server = Server(f"http://127.0.0.1:{free_port}/predict", {"value": 1.5})
    serve("bentoml", command, server, environ, model="Doubler", operation="POST /predict", status="ok")


def test_litserve_counts_each_request_once(
    serve: Callable[..., None], tool: Callable[..., Path], free_port: int
) -> None:
    python = tool("litserve", "bin/python")
    command = [str(python), str(SERVERS / "litserve_app.py"), str(free_port)]
    server = Server(f"http://127.0.0.1:{free_port}/predict", {"value": 1.5})
    labels = {"model": "doubler", "version": "3", "operation": "predict", "status": "ok"}
    serve("litserve", command, server, {}, **labels)


def test_vllms_spans_count_each_request_once(agent: Any, until: Callable[..., Any]) -> None:
    environ = os.environ | exporting(agent) | {"OTEL_SERVICE_NAME": "llama"}
    command = [sys.executable, str(SERVERS / "vllm_spans.py"), str(REQUESTS)]
    subprocess.run(command, check=True, env=environ, timeout=60)
    until(lambda: counted(agent, model="llama", operation="llm_request", status="ok") == REQUESTS)
    total_s = agent.total("model_inference_latency_seconds_sum", model="llama", operation="llm_request")
    assert total_s == pytest.approx(1.5 * REQUESTS, rel=1e-6)
