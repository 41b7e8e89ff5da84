"""Fetches or builds the real components that the e2e tests talk to.

    python3 tests/e2e/tools.py           get what is missing; quick when all is there
    python3 tests/e2e/tools.py --where   print as JSON where each is, or why it is not

Everything goes to ${XDG_CACHE_HOME:-~/.cache}/tidegauge-tools, in a directory per version, and
comes into place whole or not at all. Uses the standard library, apt-get, go and pip; what cannot
be had is named with the reason, and the exit status stays 0: the tests decide what its absence means.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tidegauge-tools"
MANIFEST = Path(__file__).with_name("collector-build.yaml")
SERVERS = Path(__file__).with_name("servers")
PODSECURITY = Path(__file__).with_name("podsecurity")
# The pins are for this one, which Debian 12 has; MLServer takes none later than 3.12.
PYTHON = sys.executable if sys.version_info[:2] == (3, 11) else "python3.11"
BUILDER = "go.opentelemetry.io/collector/cmd/builder"
HELM = "3.22.0"
KUSTOMIZE = "5.7.1"
OPERATOR = "0.93.0"


class Tool(NamedTuple):
    """A component: its binaries lie in `directory`, and `fetch` fills an empty directory so."""

    name: str
    directory: Path
    binaries: tuple[str, ...]
    at_least: tuple[int, ...]
    needs: str
    fetch: Callable[[Path], None]
    version: Callable[[Path], tuple[int, ...]]


def main() -> None:
    if sys.argv[1:] == ["--where"]:
        print(json.dumps({tool.name: where(tool) for tool in TOOLS}))
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for tool in TOOLS:
            get(tool)


def where(tool: Tool) -> dict[str, object]:
    """`{"path", "version"}` of a tool in the cache, else `{"missing", "obtainable"}`."""
    obtainable = shutil.which(tool.needs) is not None
    if not all((tool.directory / name).is_file() for name in tool.binaries):
        reason = "run `make tools`" if obtainable else f"{tool.needs} is not on this machine"
        return {"missing": reason, "obtainable": obtainable}
    try:
        version = tool.version(tool.directory)
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        return {"missing": f"the cached one does not run: {error}", "obtainable": obtainable}
    if version < tool.at_least:
        wanted = ".".join(map(str, tool.at_least))
        return {"missing": f"{wanted} or later is needed, not {version}", "obtainable": obtainable}
    return {"path": str(tool.directory), "version": ".".join(map(str, version))}


def get(tool: Tool) -> None:
    found = where(tool)
    if "missing" in found and found["obtainable"]:
        say(f"{tool.name}: to {tool.directory}")
        try:
            fill(tool)
        except (OSError, subprocess.CalledProcessError) as error:
            output = getattr(error, "stdout", None) or ""
            say(f"{tool.name}: cannot be had: {error}\n{output[-3000:]}")
            return
        found = where(tool)
    if "missing" in found:
        say(f"{tool.name}: cannot be had: {found['missing']}")
    else:
        say(f"{tool.name} {found['version']}: ready")


def fill(tool: Tool) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="making-") as scratch:
        made = Path(scratch, "made")
        made.mkdir()
        tool.fetch(made)
        shutil.rmtree(tool.directory, ignore_errors=True)
        made.rename(tool.directory)


def version_of(text: str, before: str = "version v?") -> tuple[int, ...]:
    """The three numbers that follow `before`."""
    found = re.search(before + r"(\d+)\.(\d+)\.(\d+)", text)
    if found is None:
        raise ValueError(f"no version in {text[:80]!r}")
    return tuple(map(int, found.groups()))


def told(*binaries: str) -> Callable[[Path], tuple[int, ...]]:
    """The version that binaries give for themselves."""
    return lambda directory: max(version_of(run([str(directory / name), "--version"])) for name in binaries)


def run(command: list[str], cwd: Path | None = None, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | (environment or {}),
        check=True,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.stdout


def say(text: str) -> None:
    print(f"[tools] {text}", flush=True)


def fetch_prometheus(made: Path) -> None:
    """Unpacks Debian's package: both binaries need nothing of its dependencies but libc."""
    unpacked = made / "package"
    say("prometheus: apt-get download")
    try:
        run(["apt-get", "download", "prometheus"], cwd=made)
    except subprocess.CalledProcessError:
        # The package lists are missing, or older than what the mirror still has.
        say("prometheus: apt-get update, and again")
        run(["apt-get", "update"])
        run(["apt-get", "download", "prometheus"], cwd=made)
    [package] = made.glob("prometheus_*.deb")
    run(["dpkg-deb", "-x", str(package), str(unpacked)])
    for name in ("prometheus", "promtool"):
        (unpacked / "usr" / "bin" / name).rename(made / name)
    shutil.rmtree(unpacked)
    package.unlink()


def fetch_collector(made: Path) -> None:
    """Builds a collector of the manifest's parts: about two minutes on two cores, once."""
    # GOTOOLCHAIN=local: a go that is too old says so, and downloads no other.
    go = {"GOBIN": str(made), "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
    say("collector: go install of its builder")
    run(["go", "install", f"{BUILDER}@v{COLLECTOR_VERSION}"], environment=go)
    say("collector: build, about two minutes")
    manifest = made / "manifest.yaml"
    manifest.write_text(
        MANIFEST.read_text().replace("\ndist:\n", f"\ndist:\n  output_path: {made / 'source'}\n")
    )
    run([str(made / "builder"), "--config", str(manifest)], environment=go)
    (made / "source" / "otelcol-tidegauge").rename(made / "otelcol-tidegauge")
    shutil.rmtree(made / "source")
    (made / "builder").unlink()
    manifest.unlink()


def fetch_helm(made: Path) -> None:
    say("helm: go install, about four minutes")
    go = {"GOBIN": str(made), "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
    run(["go", "install", f"helm.sh/helm/v3/cmd/helm@v{HELM}"], environment=go)


def fetch_kustomize(made: Path) -> None:
    """Builds what kubectl has built in: Debian's is of 2021, and older than what is used."""
    say("kustomize: go install, about a minute")
    go = {"GOBIN": str(made), "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
    run(["go", "install", f"sigs.k8s.io/kustomize/kustomize/v5@v{KUSTOMIZE}"], environment=go)


def fetch_podsecurity(made: Path) -> None:
    """Builds Kubernetes' own Pod Security admission into a command."""
    say("podsecurity: go build, about a minute")
    go = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
    run(["go", "build", "-o", str(made / "podsecurity"), "."], cwd=PODSECURITY, environment=go)


def fetch_crds(made: Path) -> None:
    """Takes the custom resources' definitions out of the Prometheus operator's source."""
    say("crds: go mod download of prometheus-operator")
    module = f"github.com/prometheus-operator/prometheus-operator@v{OPERATOR}"
    found = json.loads(run(["go", "mod", "download", "-json", module], cwd=made))
    for kind in ("podmonitors", "prometheusrules"):
        name = f"monitoring.coreos.com_{kind}.yaml"
        shutil.copyfile(Path(found["Dir"], "example", "prometheus-operator-crd", name), made / f"{kind}.yaml")


def fixed(version: str) -> Callable[[Path], tuple[int, ...]]:
    """For what does not tell its version: it is the one that its directory is named by."""
    return lambda directory: numbers(version)


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def server(name: str, package: str) -> Tool:
    """A server from PyPI in a virtual environment of its own; its pins are its whole content."""
    pins = SERVERS / f"{name}.txt"
    key = hashlib.sha256(pins.read_bytes()).hexdigest()[:8]

    def fetch(made: Path) -> None:
        # pip writes the interpreter's path into scripts, and `made` is not where they end up: they are
        # run as modules.
        say(f"{name}: pip install, a minute or two")
        run([PYTHON, "-m", "venv", str(made)])
        install = [str(made / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps"]
        run([*install, "--disable-pip-version-check", "--requirement", str(pins)])

    def version(directory: Path) -> tuple[int, ...]:
        ask = f"from importlib.metadata import version; print('version', version({package!r}))"
        return version_of(run([str(directory / "bin" / "python"), "-c", ask]))

    wanted = version_of(pins.read_text(), f"(?m)^{package}==")
    return Tool(name, CACHE / f"{name}-{key}", ("bin/python",), wanted, PYTHON, fetch, version)


def _release() -> str:
    try:
        names = platform.freedesktop_os_release()
    except OSError:
        return "unknown"
    return names["ID"] + names.get("VERSION_ID", "")


def _collector() -> tuple[str, str]:
    """The manifest's version, and a key that changes with any line of it."""
    text = MANIFEST.read_text()
    version = re.search(r"^  version: (\S+)$", text, re.MULTILINE)
    assert version is not None
    return version[1], hashlib.sha256(text.encode()).hexdigest()[:8]


def _podsecurity() -> tuple[str, str]:
    """The version of Kubernetes that it is built from, and a key that changes with its source."""
    texts = [(PODSECURITY / name).read_text() for name in ("go.mod", "main.go")]
    version = re.search(r"k8s.io/pod-security-admission v(\S+)$", texts[0], re.MULTILINE)
    assert version is not None
    return version[1], hashlib.sha256("".join(texts).encode()).hexdigest()[:8]


COLLECTOR_VERSION, COLLECTOR_KEY = _collector()
PODSECURITY_VERSION, PODSECURITY_KEY = _podsecurity()

TOOLS = (
    Tool(
        "prometheus",
        CACHE / f"prometheus-{_release()}",
        ("prometheus", "promtool"),
        (2, 42, 0),  # Debian 12's
        "apt-get",
        fetch_prometheus,
        told("prometheus", "promtool"),
    ),
    Tool(
        "collector",
        CACHE / f"collector-{COLLECTOR_VERSION}-{COLLECTOR_KEY}",
        ("otelcol-tidegauge",),
        numbers(COLLECTOR_VERSION),
        "go",
        fetch_collector,
        told("otelcol-tidegauge"),
    ),
    Tool(
        "helm",
        CACHE / f"helm-{HELM}",
        ("helm",),
        numbers(HELM),
        "go",
        fetch_helm,
        fixed(HELM),  # what `go install` makes says v3.22, and no more
    ),
    Tool(
        "kustomize",
        CACHE / f"kustomize-{KUSTOMIZE}",
        ("kustomize",),
        numbers(KUSTOMIZE),
        "go",
        fetch_kustomize,
        fixed(KUSTOMIZE),  # what `go install` makes says (devel)
    ),
    Tool(
        "podsecurity",
        CACHE / f"podsecurity-{PODSECURITY_VERSION}-{PODSECURITY_KEY}",
        ("podsecurity",),
        numbers(PODSECURITY_VERSION),
        "go",
        fetch_podsecurity,
        fixed(PODSECURITY_VERSION),
    ),
    Tool(
        "crds",
        CACHE / f"crds-{OPERATOR}",
        ("podmonitors.yaml", "prometheusrules.yaml"),
        numbers(OPERATOR),
        "go",
        fetch_crds,
        fixed(OPERATOR),
    ),
    server("mlserver", "mlserver"),
    server("bentoml", "bentoml"),
    server("litserve", "litserve"),
    server("moto", "moto"),
    server("kubernetes-validate", "kubernetes-validate"),
    server("spdx-tools", "spdx-tools"),
)

if __name__ == "__main__":
    main()
