"""The overlays and the chart, rendered by kustomize and helm, judged by what a cluster would judge them by.

Kubernetes' schemas of several versions, the Prometheus operator's definitions, Pod Security admission's own
code at its strictest level, and the collector's own check of its configuration.
"""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tidegauge import config_file

pytestmark = pytest.mark.e2e

DEPLOY = Path(__file__).parents[2] / "deploy"
CHART = DEPLOY / "helm" / "tidegauge"
VALIDATOR = Path(__file__).with_name("validate_manifests.py")
OVERLAYS = sorted(path.name for path in (DEPLOY / "kustomize" / "overlays").iterdir())
# Native sidecars are since 1.28 in the schema, on by default since 1.29.
NATIVE = ("1.29", "1.31", "1.33", "1.35", "1.37")
VERSIONS = dict.fromkeys(OVERLAYS, NATIVE) | {"plain": ("1.25", "1.27", *NATIVE)}

Tool = Callable[[str, str], Path]
Manifests = list[dict[str, Any]]

overlays = pytest.mark.parametrize("overlay", OVERLAYS)


@pytest.fixture(scope="session")
def kustomized(tool: Tool) -> Callable[[str], Manifests]:
    """An overlay as kustomize renders it, which kubectl has built in."""
    binary = str(tool("kustomize", "kustomize"))
    return lambda overlay: rendered(binary, "build", str(DEPLOY / "kustomize" / "overlays" / overlay))


@pytest.fixture(scope="session")
def helm(tool: Tool, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """A command line of helm's."""
    binary = tool("helm", "helm")
    home = tmp_path_factory.mktemp("helm")
    environ = [f"HELM_{kind}_HOME={home}" for kind in ("CACHE", "CONFIG", "DATA")]
    return lambda *arguments: ["env", *environ, str(binary), *arguments]


@pytest.fixture(scope="session")
def charted(helm: Callable[..., list[str]]) -> Callable[..., Manifests]:
    """The chart as helm renders it with the values of ci/."""

    def render(overlay: str, *more: str) -> Manifests:
        # A helm that was built from source thinks itself in an ancient cluster.
        values = ["--values", str(CHART / "ci" / f"{overlay}-values.yaml"), "--kube-version", "1.33.0"]
        return rendered(*helm("template", "fraud", str(CHART), *values, *more))

    return render


def rendered(*command: str) -> Manifests:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


@pytest.fixture(scope="session")
def invalid(tool: Tool) -> Callable[[Manifests, tuple[str, ...]], str]:
    """What the schemas of these versions say against manifests."""
    python, crds = tool("kubernetes-validate", "bin/python"), tool("crds", "")

    def judge(manifests: Manifests, versions: tuple[str, ...]) -> str:
        command = [str(python), str(VALIDATOR), str(crds), *versions]
        return subprocess.run(
            command, input=yaml.safe_dump_all(manifests), check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    return judge


@pytest.fixture(scope="session")
def forbidden(tool: Tool) -> Callable[[Manifests], list[str]]:
    """What Pod Security's restricted profile has against each workload."""
    binary = tool("podsecurity", "podsecurity")

    def judge(manifests: Manifests) -> list[str]:
        pods = [workload["spec"]["template"] for workload in workloads(manifests)]
        done = subprocess.run(
            [str(binary), "restricted"], input=json.dumps(pods), check=True, capture_output=True, text=True
        )
        return list(json.loads(done.stdout))

    return judge


def workloads(manifests: Manifests) -> Manifests:
    found = [one for one in manifests if one["kind"] in {"Deployment", "DaemonSet", "StatefulSet"}]
    assert found
    return found


def containers(manifests: Manifests) -> Manifests:
    specs = [workload["spec"]["template"]["spec"] for workload in workloads(manifests)]
    return [one for spec in specs for one in [*spec.get("initContainers", []), *spec["containers"]]]


def agent(manifests: Manifests) -> dict[str, Any]:
    [found] = [one for one in containers(manifests) if one["name"] == "tidegauge"]
    return found


@overlays
def test_overlays_hold_by_the_schemas(
    kustomized: Callable[..., Manifests], invalid: Callable[..., str], overlay: str
) -> None:
    assert invalid(kustomized(overlay), VERSIONS[overlay]) == ""


@overlays
def test_the_chart_holds_by_the_schemas(
    charted: Callable[..., Manifests], invalid: Callable[..., str], overlay: str
) -> None:
    assert invalid(charted(overlay), VERSIONS[overlay]) == ""


@overlays
def test_pods_are_restricted(
    kustomized: Callable[..., Manifests],
    charted: Callable[..., Manifests],
    forbidden: Callable[..., list[str]],
    overlay: str,
) -> None:
    for manifests in (kustomized(overlay), charted(overlay)):
        assert set(forbidden(manifests)) == {""}


@overlays
def test_the_agent_is_hardened_beyond_what_is_asked(
    kustomized: Callable[..., Manifests], overlay: str
) -> None:
    manifests = kustomized(overlay)
    context = agent(manifests)["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["runAsUser"] != 0
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert [w["spec"]["template"]["spec"]["automountServiceAccountToken"] for w in workloads(manifests)] == [
        False
    ] * len(workloads(manifests))
    assert "readinessProbe" not in agent(manifests)


@overlays
def test_the_chart_has_the_same_agent(
    kustomized: Callable[..., Manifests], charted: Callable[..., Manifests], overlay: str
) -> None:
    ours, charts = agent(kustomized(overlay)), agent(charted(overlay))
    assert charts.pop("imagePullPolicy") == "IfNotPresent"
    for one in (ours, charts):
        one["env"].sort(key=lambda variable: str(variable["name"]))
        one["volumeMounts"].sort(key=lambda mount: str(mount["mountPath"]))
    assert charts == ours


def test_a_guarded_page_is_scraped_as_it_wants_and_probed_as_it_can_be(
    kustomized: Callable[..., Manifests], charted: Callable[..., Manifests]
) -> None:
    for manifests in (kustomized("secure"), charted("secure")):
        [monitor] = [one for one in manifests if one["kind"] == "PodMonitor"]
        [endpoint] = monitor["spec"]["podMetricsEndpoints"]
        assert (endpoint["scheme"], endpoint["authorization"]["type"]) == ("https", "Bearer")
        assert endpoint["tlsConfig"]["serverName"] == "tidegauge"
        for probe in ("startupProbe", "livenessProbe"):
            asked = agent(manifests)[probe]["httpGet"]
            assert (asked["scheme"], asked["port"]) == ("HTTPS", "metrics")
            assert asked["path"] in {"/readyz", "/healthz"}
        # What the configuration names is mounted, and what Prometheus shows is what the agent reads.
        [spec] = [one["spec"]["template"]["spec"] for one in workloads(manifests)]
        [secrets] = [one["projected"]["sources"] for one in spec["volumes"] if "projected" in one]
        names = {one["secret"]["name"] for one in secrets}
        shown = (
            endpoint["tlsConfig"]["ca"]["secret"]["name"],
            endpoint["authorization"]["credentials"]["name"],
        )
        assert names == set(shown)


@pytest.mark.parametrize("overlay", ["native", "gpu", "collector", "secure"])
def test_a_native_sidecar_comes_before_other_init_containers(
    kustomized: Callable[..., Manifests], overlay: str
) -> None:
    [spec] = [
        one["spec"]["template"]["spec"]
        for one in workloads(kustomized(overlay))
        if "initContainers" in one["spec"]["template"]["spec"]
    ]
    first = spec["initContainers"][0]
    assert (first["name"], first["restartPolicy"]) == ("tidegauge", "Always")
    assert "startupProbe" in first


def test_a_workload_of_ones_own_gets_the_sidecar_by_its_label(tool: Tool, tmp_path: Path) -> None:
    """The few lines of docs/deployment.md."""
    shutil.copytree(DEPLOY / "kustomize" / "components", tmp_path / "components")
    page = (DEPLOY.parent / "docs" / "deployment.md").read_text()
    lines = page.split("<!-- kustomization.yaml -->\n```yaml\n")[1].split("```")[0]
    own = yaml.safe_load(lines)
    own["components"] = [f"../components/{Path(one.partition('?')[0]).name}" for one in own["components"]]
    place = tmp_path / "own"
    place.mkdir()
    (place / "kustomization.yaml").write_text(yaml.safe_dump(own))
    (place / "agent.yaml").write_text("exporters: {prometheus: {endpoint: '0.0.0.0:9464'}}\n")
    pod = {
        "initContainers": [{"name": "weights", "image": "fetch"}],
        "containers": [{"name": "own", "image": "own"}],
    }
    made = {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "own", "labels": {"tidegauge/sidecar": "true"}},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"spec": pod}},
    }
    other = copy.deepcopy(made) | {"metadata": {"name": "other"}}
    (place / "server.yaml").write_text(yaml.safe_dump_all([made, other]))
    manifests = rendered(str(tool("kustomize", "kustomize")), "build", str(place))
    specs = {one["metadata"]["name"]: one["spec"]["template"]["spec"] for one in workloads(manifests)}
    changed, same = specs["own"], specs["other"]
    assert [one["name"] for one in same["containers"]] == ["own"]
    assert [one["name"] for one in changed["initContainers"]] == ["tidegauge", "weights"]
    assert [one["name"] for one in changed["containers"]] == ["own"]
    [config] = [one for one in manifests if one["kind"] == "ConfigMap"]
    assert changed["volumes"][0]["configMap"]["name"] == config["metadata"]["name"]


@overlays
def test_the_configuration_that_comes_along_holds(
    kustomized: Callable[..., Manifests], charted: Callable[..., Manifests], overlay: str, tmp_path: Path
) -> None:
    read = []
    for manifests in (kustomized(overlay), charted(overlay)):
        texts = [one["data"] for one in manifests if one["kind"] == "ConfigMap"]
        [text] = [data["agent.yaml"] for data in texts if "agent.yaml" in data]
        (tmp_path / "agent.yaml").write_text(text)
        read.append(config_file.load(tmp_path / "agent.yaml", {}))
    assert read[0] == read[1]


def test_the_collectors_configuration_holds(
    kustomized: Callable[..., Manifests], tool: Tool, tmp_path: Path
) -> None:
    [text] = [
        one["data"]["collector.yaml"]
        for one in kustomized("collector")
        if one["kind"] == "ConfigMap" and "collector.yaml" in one["data"]
    ]
    (tmp_path / "collector.yaml").write_text(text)
    binary = tool("collector", "otelcol-tidegauge")
    command = [str(binary), "validate", f"--config={tmp_path / 'collector.yaml'}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_rules_that_come_along_hold(
    kustomized: Callable[..., Manifests], tool: Tool, tmp_path: Path
) -> None:
    [rules] = [one["spec"] for one in kustomized("native") if one["kind"] == "PrometheusRule"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    command = [str(tool("prometheus", "promtool")), "check", "rules", str(tmp_path / "rules.yaml")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["--set", "mode=sidecar"], "mode"),
        (["--set", "podmonitor.enabled=true"], "podmonitor"),
        (["--set", "server=null"], "server"),
        (["--set", "collector.endpoint=otel:4317"], "endpoint"),
        (["--set", "resources.limits.memory=lots"], "memory"),
        (["--set-string", "gpu.enabled=yes"], "enabled"),
        (["--set", "pages.tlsSecret=Not A Name"], "tlsSecret"),
    ],
)
def test_values_that_do_not_hold_are_refused(
    helm: Callable[..., list[str]], values: list[str], said: str
) -> None:
    given = ["--values", str(CHART / "ci" / "native-values.yaml"), *values]
    command = helm("template", "fraud", str(CHART), "--kube-version", "1.33.0", *given)
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode != 0
    assert "values don't meet the specifications" in done.stderr
    assert said in done.stderr


def test_the_chart_lints(helm: Callable[..., list[str]]) -> None:
    values = str(CHART / "ci" / "native-values.yaml")
    command = helm("lint", "--strict", "--quiet", str(CHART), "--values", values)
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_an_error_would_be_seen(
    kustomized: Callable[..., Manifests], invalid: Callable[..., str], forbidden: Callable[..., list[str]]
) -> None:
    """The judges judge: one fault each, and each is found."""
    broken = kustomized("native")
    agent(broken)["securityContext"]["allowPrivilegeEscalation"] = True
    agent(broken)["restartpolicy"] = "Always"
    [monitor] = [one for one in broken if one["kind"] == "PodMonitor"]
    monitor["spec"]["podMetricsEndpoints"][0]["intervall"] = "15s"
    [rule] = [one for one in broken if one["kind"] == "PrometheusRule"]
    del rule["spec"]["groups"][0]["rules"][0]["expr"]
    said = invalid(broken, ("1.33",))
    assert all(word in said for word in ("'restartpolicy'", "'intervall'", "'expr'"))
    assert "allowPrivilegeEscalation" in forbidden(broken)[0]
