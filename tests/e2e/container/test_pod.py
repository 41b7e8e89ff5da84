"""The overlays' pods, run by `podman kube play`: MLServer with the agent beside it, hardened as they say.

Podman knows no native sidecars, hooks or probes, so the kubelet's part is played here: which container is
started and stopped when, and how a ConfigMap is mounted. What differs from the manifest is all in `playable`.
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

SPAN = """
import json, time
from urllib.request import Request, urlopen
now = time.time_ns()
span = {"traceId": "1" * 32, "spanId": "2" * 16, "name": "predict", "kind": 2}
span |= {"startTimeUnixNano": str(now - 10**6), "endTimeUnixNano": str(now)}
body = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}).encode()
url = "http://127.0.0.1:4318/v1/traces"
print(urlopen(Request(url, body, {"Content-Type": "application/json"})).status)
"""
SAID = """
import re, sys
from urllib.request import urlopen
text = urlopen("http://127.0.0.1:9464/metrics").read().decode()
print(*(found[1] for found in re.finditer(sys.argv[1], text, re.M)))
"""
HASH = r'^tidegauge_config_info\{hash="(\w+)"\} 1'
TAKEN = r"^tidegauge_config_last_reload_successful (\S+)"
FAILING = r'^tidegauge_reload_failing\{setting="config"\} (\S+)'
FOLDED = r'^tidegauge_folded_total\{[^}]*signal="traces"\} (\S+)'

Podman = Callable[..., str]


class Mount:
    """A ConfigMap as the kubelet mounts it: files are links through `..data`, which is swapped at once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._version = folder, 0
        folder.mkdir()

    def put(self, files: dict[str, str]) -> None:
        self._version += 1
        version = self.folder / f"..{self._version}"
        version.mkdir()
        for name, text in files.items():
            (version / name).write_text(text)
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(f"..data/{name}")
        (self.folder / "..data_tmp").symlink_to(version.name)
        (self.folder / "..data_tmp").replace(self.folder / "..data")


class Pod(NamedTuple):
    """A pod made of an overlay: its two containers, the agent's preStop command, its configuration."""

    podman: Podman
    agent: str
    server: str
    before_stop: list[str]
    config: Mount

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
    tool: Callable[[str, str], Path],
    podman: Podman,
    image: str,
    base: str,
    mlserver: Path,
    tmp_path: Path,
) -> Iterator[Callable[[str], Pod]]:
    """Makes an overlay's pod, with nothing started in it."""
    binary = str(tool("kustomize", "kustomize"))
    file = tmp_path / "pod.yaml"

    def make(overlay: str) -> Pod:
        command = [binary, "build", str(OVERLAYS / overlay)]
        found = list(yaml.safe_load_all(subprocess.run(command, check=True, capture_output=True).stdout))
        [config] = [one for one in found if one["kind"] == "ConfigMap"]
        [workload] = [one for one in found if one["kind"] == "Deployment"]
        mount = Mount(tmp_path / "config")
        mount.put(config["data"])
        pod, hook = playable(workload["spec"]["template"], image, base, mlserver, tmp_path)
        file.write_text(yaml.safe_dump(pod))
        podman("kube", "play", "--network", "none", "--start=false", str(file))
        return Pod(podman, f"{NAME}-tidegauge", f"{NAME}-server", hook, mount)

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
    # Podman copies a ConfigMap once; the kubelet swaps a link when it changes.
    assert {one["name"] for one in spec["volumes"]} == {"tidegauge-config", "tidegauge-state"}
    volumes = {"tidegauge-config": folder / "config", "tidegauge-state": state}
    spec["volumes"] = [
        {"name": name, "hostPath": {"path": str(path)}}
        for name, path in (volumes | {"packages": mlserver, "model": model}).items()
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


def test_a_change_of_the_config_map_is_taken_by_the_running_agent(
    make_pod: Callable[[str], Pod],
    python: Callable[..., str],
    answers: Callable[..., bool],
    until: Callable[..., Any],
) -> None:
    """No new pod and no lost count; what a running agent cannot take is refused, and waits for a restart."""

    def said(pattern: str) -> str:
        return python(pod.agent, SAID, pattern)

    def put(settings: dict[str, Any]) -> str:
        """Swap the configuration; returns the hash that it has with the container's environment."""
        pod.config.put({"agent.yaml": yaml.safe_dump(settings)})
        told = pod.podman(
            "exec", pod.agent, "python", "-m", "tidegauge", "check", "/etc/tidegauge/agent.yaml"
        )
        return next(line.removeprefix("hash: ") for line in told.splitlines() if line.startswith("hash: "))

    pod = make_pod("native")
    pod.begin(pod.agent)
    until(lambda: answers(pod.agent, READY, "200"))
    assert python(pod.agent, SPAN) == "200"
    until(lambda: said(FOLDED) == "1.0")
    settings = yaml.safe_load((pod.config.folder / "agent.yaml").read_text())
    first = said(HASH)
    settings["drift"]["threshold"] = 0.25
    settings["pipeline"]["publish_interval"] = "1s"
    taken = put(settings)
    until(lambda: said(HASH) == taken != first)
    assert (said(TAKEN), said(FOLDED)) == ("1.0", "1.0")

    refused = put(settings | {"state_dir": "/var/lib/tidegauge/elsewhere"})
    until(lambda: said(TAKEN) == "0.0")
    assert said(HASH) == taken != refused
    assert (said(FAILING), said(FOLDED)) == ("1.0", "1.0")
    pod.podman("restart", "--time", "20", pod.agent)
    until(lambda: answers(pod.agent, READY, "200"))
    until(lambda: (said(HASH), said(TAKEN)) == (refused, "1.0"))
