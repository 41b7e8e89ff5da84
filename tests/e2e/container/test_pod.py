"""The overlays' pods, run by `podman kube play`: MLServer with the agent beside it, hardened as they say.

Podman knows no native sidecars, hooks or probes, so the kubelet's part is played here: which container is
started and stopped when. What differs from the manifest is all in `playable`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

pytestmark = pytest.mark.e2e

OVERLAYS = Path(__file__).parents[3] / "deploy" / "kustomize" / "overlays"
SERVERS = Path(__file__).parents[1] / "servers"
NAME = f"tidegauge-e2e-{os.getpid()}"
REQUESTS = 23

SETTINGS = {
    "host": "0.0.0.0",
    "http_port": 8000,
    "grpc_port": 0,
    "metrics_endpoint": None,
    "parallel_workers": 0,
    "server_name": "fraud",
    "tracing_server": "127.0.0.1:4317",
}
MODEL = {"name": "fraud", "implementation": "mlserver_model.Doubler", "parameters": {"version": "v2"}}

UNKNOWN = {"metadata.namespace": "models", "spec.nodeName": "node-1"}
"""Fields that podman has no value for."""

READY = "from urllib.request import urlopen; print(urlopen('http://127.0.0.1:9464/readyz').status)"
SERVING = "from urllib.request import urlopen; print(urlopen('http://127.0.0.1:8000/v2/health/ready').status)"
ASK = f"""
import json
from urllib.request import Request, urlopen
values = {{"name": "x", "shape": [1], "datatype": "FP64", "data": [1.0]}}
body = json.dumps({{"inputs": [values]}}).encode()
url = "http://127.0.0.1:8000/v2/models/fraud/versions/v2/infer"
for _ in range({REQUESTS}):
    assert urlopen(Request(url, body, {{"Content-Type": "application/json"}})).status == 200
"""
COUNTED = """
import re
from urllib.request import urlopen
text = urlopen("http://127.0.0.1:9464/metrics").read().decode()
name = r'^model_inference_latency_seconds_count\\{[^}]*operation="POST [^"]*/infer"[^}]*\\} (.*)$'
print(sum(map(float, re.findall(name, text, re.M))))
"""
KEPT = """
import os, re
status = dict(re.findall(r"^(Uid|CapEff|NoNewPrivs|Seccomp):\\s+(\\S+)", open("/proc/1/status").read(), re.M))
try:
    open("/tried", "w")
except OSError as error:
    status["root"] = error.strerror
print(status)
"""

Podman = Callable[..., str]


class Pod(NamedTuple):
    """A pod made of an overlay: its two containers, and the agent's preStop command."""

    podman: Podman
    agent: str
    server: str
    before_stop: list[str]

    def begin(self, *containers: str) -> None:
        self.podman("start", *containers)

    def end(self, container: str) -> int:
        """SIGTERM, and the exit status."""
        self.podman("stop", "--time", "20", container)
        return int(self.podman("inspect", "--format", "{{.State.ExitCode}}", container))

    def times(self, container: str) -> tuple[str, str]:
        form = "{{.State.StartedAt.UnixNano}} {{.State.FinishedAt.UnixNano}}"
        started, finished = self.podman("inspect", "--format", form, container).split()
        return started, finished


@pytest.fixture
def make_pod(
    podman: Podman, image: str, base: str, mlserver: Path, tmp_path: Path
) -> Iterator[Callable[[str], Pod]]:
    """Makes an overlay's pod, with nothing started in it."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl on this machine")
    file = tmp_path / "pod.yaml"

    def make(overlay: str) -> Pod:
        command = ["kubectl", "kustomize", str(OVERLAYS / overlay)]
        found = list(yaml.safe_load_all(subprocess.run(command, check=True, capture_output=True).stdout))
        [config] = [one for one in found if one["kind"] == "ConfigMap"]
        [workload] = [one for one in found if one["kind"] == "Deployment"]
        pod, hook = playable(workload["spec"]["template"], image, base, mlserver, tmp_path)
        file.write_text(yaml.safe_dump_all([config, pod]))
        podman("kube", "play", "--network", "none", "--start=false", str(file))
        return Pod(podman, f"{NAME}-tidegauge", f"{NAME}-server", hook)

    yield make
    podman("pod", "rm", "--force", "--time", "5", NAME)


def playable(
    template: dict[str, Any], image: str, base: str, mlserver: Path, folder: Path
) -> tuple[dict[str, Any], list[str]]:
    """The pod as podman takes it, with MLServer for a server; and the agent's preStop command."""
    spec = template["spec"]
    containers = {one["name"]: one for one in [*spec.pop("initContainers", []), *spec["containers"]]}
    agent, server = containers["tidegauge"], containers["server"]
    hook = agent.pop("lifecycle", {"preStop": {"exec": {"command": []}}})["preStop"]["exec"]["command"]
    # No kubelet, so no probes and no restarts; and podman's ports want a network.
    for key in ("restartPolicy", "startupProbe", "livenessProbe", "ports"):
        agent.pop(key, None)
    del server["ports"]
    for one in agent["env"]:
        path = one.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        if path in UNKNOWN:
            one.pop("valueFrom")
            one["value"] = UNKNOWN[path]
    agent["image"] = image
    # MLServer, as a user of its own. Its SDK sends spans once a minute, and when it ends.
    model = folder / "model"
    model.mkdir(mode=0o755)
    (model / "settings.json").write_text(json.dumps(SETTINGS))
    (model / "model-settings.json").write_text(json.dumps(MODEL))
    shutil.copy(SERVERS / "mlserver_model.py", model)
    server["image"] = base
    server["command"] = ["python3", "-c", "from mlserver.cli import main; main()", "start", "/model"]
    server["env"] += [
        {"name": "PATH", "value": "/usr/local/bin:/usr/bin"},
        {"name": "PYTHONPATH", "value": "/packages:/model"},
        {"name": "PYTHONDONTWRITEBYTECODE", "value": "1"},
        {"name": "OTEL_BSP_SCHEDULE_DELAY", "value": "60000"},
    ]
    server["securityContext"] |= {"readOnlyRootFilesystem": True, "runAsUser": 10001}
    server["volumeMounts"] = [
        {"name": "packages", "mountPath": "/packages", "readOnly": True},
        {"name": "model", "mountPath": "/model", "readOnly": True},
    ]
    # The kubelet makes an emptyDir that everyone may write to, podman one for root.
    state = folder / "state"
    state.mkdir()
    state.chmod(0o777)
    folder.chmod(0o755)
    spec["volumes"] = [one for one in spec["volumes"] if "emptyDir" not in one] + [
        {"name": name, "hostPath": {"path": str(path)}}
        for name, path in {"tidegauge-state": state, "packages": mlserver, "model": model}.items()
    ]
    spec |= {"containers": [agent, server], "restartPolicy": "Never"}
    metadata = {"name": NAME, "labels": template["metadata"]["labels"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}, hook


@pytest.fixture
def counted(python: Callable[..., str]) -> Callable[[Pod], float]:
    return lambda pod: float(python(pod.agent, COUNTED))


def test_a_native_sidecar_is_there_before_the_server_and_after_it(
    make_pod: Callable[[str], Pod],
    python: Callable[..., str],
    answers: Callable[..., bool],
    counted: Callable[[Pod], float],
    until: Callable[..., Any],
) -> None:
    pod = make_pod("native")
    pod.begin(pod.agent)
    until(lambda: answers(pod.agent, READY, "200"))  # the startup probe's question
    pod.begin(pod.server)
    until(lambda: answers(pod.server, SERVING, "200"), 60)
    python(pod.server, ASK)
    assert counted(pod) == 0  # the spans are still with the server
    pod.end(pod.server)
    until(lambda: counted(pod) == REQUESTS)
    assert pod.end(pod.agent) == 0
    (agent_began, agent_ended), (server_began, server_ended) = pod.times(pod.agent), pod.times(pod.server)
    assert agent_began < server_began < server_ended < agent_ended


def test_a_plain_sidecar_stays_for_the_servers_last_spans(
    make_pod: Callable[[str], Pod],
    python: Callable[..., str],
    answers: Callable[..., bool],
    counted: Callable[[Pod], float],
    until: Callable[..., Any],
) -> None:
    pod = make_pod("plain")
    pod.begin(pod.agent, pod.server)
    until(lambda: answers(pod.agent, READY, "200"))
    until(lambda: answers(pod.server, SERVING, "200"), 60)
    python(pod.server, ASK)
    # At once, as the kubelet does: SIGTERM to the server, and the agent's hook.
    hook = subprocess.Popen(["podman", "exec", pod.agent, *pod.before_stop])
    pod.end(pod.server)
    until(lambda: counted(pod) == REQUESTS, 9)
    assert hook.wait(20) == 0
    assert pod.end(pod.agent) == 0


def test_both_run_without_privileges(
    make_pod: Callable[[str], Pod],
    python: Callable[..., str],
    answers: Callable[..., bool],
    until: Callable[..., Any],
) -> None:
    pod = make_pod("native")
    pod.begin(pod.agent, pod.server)
    until(lambda: answers(pod.agent, READY, "200"))
    for container, user in ((pod.agent, "65532"), (pod.server, "10001")):
        assert python(container, KEPT) == str(
            {
                "Uid": user,
                "CapEff": "0" * 16,
                "NoNewPrivs": "1",
                "Seccomp": "2",
                "root": "Read-only file system",
            }
        )
