"""What can be held about deploy/ without a cluster's tools; tests/e2e/test_manifests.py has the rest."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tidegauge import config, config_file

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
KUSTOMIZE = DEPLOY / "kustomize"
CHART = DEPLOY / "helm" / "tidegauge"
AGENTS = sorted(KUSTOMIZE.rglob("agent.yaml"))
SIDECAR = yaml.safe_load((KUSTOMIZE / "components" / "native" / "sidecar.yaml").read_text())
MIB = 2**20

configuration = pytest.mark.parametrize("path", AGENTS, ids=lambda path: path.parent.name)


def bounds(settings: config.Config) -> int:
    """What the agent takes at most in bytes, by the table of docs/operations.md, "Sizing"."""
    grpc, http = settings.receivers.grpc, settings.receivers.http
    return (
        130 * MIB
        + settings.pipeline.queue_size
        + grpc.max_receiving
        + http.max_receiving
        + http.max_message_size
        + round(1.2 * settings.exporters.otlp.queue_size)
        + grpc.max_connections * 17 * 1024
        + http.max_connections * 5 * 1024
        + settings.drift.reference_memory
    )


@configuration
def test_the_bounds_fit_the_containers_memory(path: Path) -> None:
    [container] = SIDECAR["spec"]["template"]["spec"]["initContainers"]
    limit = int(container["resources"]["limits"]["memory"].removesuffix("Mi")) * MIB
    assert bounds(config_file.load(path, {})) < limit


@configuration
def test_the_disk_queue_fits_its_volume(path: Path) -> None:
    volumes = {one["name"]: one for one in SIDECAR["spec"]["template"]["spec"]["volumes"]}
    room = int(volumes["tidegauge-state"]["emptyDir"]["sizeLimit"].removesuffix("Mi")) * MIB
    assert config_file.load(path, {}).exporters.otlp.disk_queue.size < room


def test_a_sidecars_receivers_are_on_loopback_and_a_nodes_are_not() -> None:
    for path in AGENTS:
        receivers = config_file.load(path, {}).receivers
        local = "daemonset" not in path.parts
        for endpoint in (receivers.grpc.endpoint, receivers.http.endpoint):
            assert str(endpoint).startswith("127.0.0.1:" if local else "0.0.0.0:")


def test_the_rules_in_manifests_are_those_of_the_rule_files() -> None:
    """`python3 deploy/rules.py` makes them so."""
    for path, text in runpy.run_path(str(DEPLOY / "rules.py"))["written"]().items():
        assert path.read_text() == text, path


def test_a_change_of_the_configuration_makes_no_new_pods() -> None:
    """The agent takes it by itself: no hash in the name, no checksum on pods, no `subPath`."""
    made = [
        one
        for path in KUSTOMIZE.rglob("kustomization.yaml")
        for one in yaml.safe_load(path.read_text()).get("configMapGenerator", ())
        if "agent.yaml" in one["files"]
    ]
    assert len(made) == len(AGENTS)
    assert all(one["options"] == {"disableNameSuffixHash": True} for one in made)
    assert "checksum" not in "".join(path.read_text() for path in (CHART / "templates").iterdir())
    [container] = SIDECAR["spec"]["template"]["spec"]["initContainers"]
    assert all("subPath" not in one for one in container["volumeMounts"])


def test_a_guarded_page_lets_probes_in() -> None:
    """Kubelets show neither a token nor a certificate: the probes' pages want no token, mTLS is for all."""
    pages = config_file.load(KUSTOMIZE / "overlays" / "secure" / "agent.yaml", {}).exporters.prometheus
    folder = "/etc/tidegauge-secrets/"
    named = (pages.tls.cert_file, pages.tls.key_file, pages.auth.bearer_token_file)
    assert named == (f"{folder}tls.crt", f"{folder}tls.key", f"{folder}token")
    assert pages.tls.client_ca_file is None


def test_versions_agree() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    component = yaml.safe_load((KUSTOMIZE / "components" / "native" / "kustomization.yaml").read_text())
    [argument] = re.findall(r"^ARG VERSION=(.*)$", (ROOT / "Dockerfile").read_text(), re.M)
    assert {chart["version"], chart["appVersion"], component["images"][0]["newTag"], argument} == {version}


def test_the_container_is_restricted() -> None:
    """The controls of Pod Security's restricted profile, as far as a container has them.

    https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
    """
    spec = SIDECAR["spec"]["template"]["spec"]
    [container] = spec["initContainers"]
    context = container["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] > 0
    assert context["seccompProfile"]["type"] in {"RuntimeDefault", "Localhost"}
    assert context.keys() <= {
        *("allowPrivilegeEscalation", "capabilities", "readOnlyRootFilesystem"),
        *("runAsNonRoot", "runAsUser", "seccompProfile"),
    }
    assert spec.keys() == {"initContainers", "volumes"}
    allowed = {"configMap", "downwardAPI", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
    assert {kind for one in spec["volumes"] for kind in one if kind != "name"} <= allowed
    assert all("hostPort" not in port for port in container["ports"])
    assert all("host" not in probe["httpGet"] for probe in probes(container))


def test_variables_are_told_before_they_are_used() -> None:
    """Kubernetes puts $(NAME) in from the variables above it alone, and else leaves it as it stands."""
    [container] = SIDECAR["spec"]["template"]["spec"]["initContainers"]
    known: set[str] = set()
    for variable in container["env"]:
        assert set(re.findall(r"\$\((\w+)\)", variable.get("value", ""))) <= known
        known.add(variable["name"])
    attributes = dict(pair.split("=") for pair in container["env"][-1]["value"].split(","))
    assert attributes.keys() == {"k8s.pod.name", "k8s.pod.uid", "k8s.namespace.name", "k8s.node.name"}


def probes(container: dict[str, Any]) -> list[dict[str, Any]]:
    return [container[key] for key in container if key.endswith("Probe")]


def test_the_image_is_built_from_what_it_needs_alone() -> None:
    """Every path that the Dockerfile copies is let into the build, and nothing else is."""
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.M)
    wanted = {name for line in copied for name in line.split()}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == wanted
