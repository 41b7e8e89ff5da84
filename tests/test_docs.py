"""The documents hold: every setting, metric, command and link in them is there, and the other way round."""

from __future__ import annotations

import asyncio
import itertools
import operator
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import click
import pytest
import yaml

from tidegauge import config, config_file
from tidegauge.checkpointer import Checkpointer
from tidegauge.cli.root import commands
from tidegauge.exporters.channel import Collector
from tidegauge.exporters.forward import Forwarder
from tidegauge.exporters.naming import metric_name
from tidegauge.health import health
from tidegauge.metric import Kind
from tidegauge.pipeline import Pipeline
from tidegauge.processors.drift.report import METRICS
from tidegauge.processors.latency import Latency
from tidegauge.processors.logs import LogRecords
from tidegauge.processors.received import Received
from tidegauge.processors.stages import Stages
from tidegauge.processors.timings import Timings
from tidegauge.publisher import Publisher
from tidegauge.reload import Reload
from tidegauge.scrapers.family import FAMILIES
from tidegauge.snapshot import Snapshots
from tidegauge.statefile import StateFile
from tidegauge.telemetry import COUNTERS, Telemetry
from tidegauge.watched import FileWatch

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
AGENT_YAML = yaml.safe_load((ROOT / "configs" / "agent.yaml").read_text())
EXAMPLES = sorted([*(ROOT / "configs").glob("*.yaml"), *(ROOT / "deploy").rglob("agent.yaml")])

SUFFIXES = ("_bucket", "_count", "_sum")
# Labels and columns that look like metrics.
NO_METRICS = {f"hw_{name}" for name in ("id", "name", "type", "vendor", "state", "driver_version")}
NO_METRICS |= {"feature_drift", "prediction_drift"}  # signals
NO_METRICS |= {f"hw_gpu_{name}" for name in ("task", "clock_domain", "clock_reason", "link", "unit")}
NO_METRICS |= {"hw_gpu_xid", "hw_gpu_xid_kind", "hw_gpu_mig_instance", "hw_parent", "hw_limit_type"}
NO_METRICS |= {"hw_slowdown", "hw_thermal", "prediction_id"}

page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def settings(cls: type[config.Settings], path: str = "") -> Iterator[str]:
    """The dotted path of every setting; those of a list's items with [] behind the list's."""
    for name, kind in get_type_hints(cls).items():
        its = f"{path}.{name}" if path else name
        if isinstance(kind, type) and issubclass(kind, config.Settings):
            yield from settings(kind, its)
            continue
        yield its
        item = get_args(kind)[0] if get_origin(kind) is tuple else None
        if isinstance(item, type) and issubclass(item, config.Settings):
            yield from settings(item, f"{its}[]")


def at(tree: Any, path: str) -> Any:
    for key in path.split("."):
        tree = tree[key]
    return tree


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every row of every table."""
    for line in text.splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line[1:-1].split("|")]


def code(text: str, *languages: str) -> list[str]:
    """The fenced blocks in one of `languages`."""
    return [
        body for name, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M) if name in languages
    ]


def documented() -> dict[str, list[str]]:
    """The rows of the settings' tables, by path."""
    text = (ROOT / "docs" / "configuration.md").read_text()
    return {row[0].strip("`"): row for row in rows(text) if len(row) == 4 and row[0].startswith("`")}


def exported() -> dict[str, str]:
    """Every metric that the agent can export: Prometheus name to OpenTelemetry name."""
    return {metric_name(*one): one[0] for one in metrics()}


def metrics() -> list[tuple[str, str, Kind]]:
    """Name, unit and kind of each of them."""
    # Tables are on the page of the snapshot alone.
    found = [
        (name, about.unit, about.kind) for name, about in METRICS.items() if about.kind is not Kind.TABLE
    ]
    found += [(name, unit, Kind.GAUGE) for name, (unit, _) in health.METRICS.items()]
    found += [(name, family.unit, family.kind) for name, family in FAMILIES.items()]
    folded = (
        Latency(config.Latency()),
        Timings(config.Latency()),
        Stages(config.Stages()),
        LogRecords(config.Logs()),
        Received(config.ReceivedMetrics()),
    )
    collected = [metric for one in folded for metric in one.collect(0)]
    collected += asyncio.run(observed()).collect()
    return found + [(one.name, one.unit, one.kind) for one in collected]


async def observed() -> Telemetry:
    """The agent's own metrics, each with a series."""
    telemetry = Telemetry()
    for name in COUNTERS:
        telemetry.add(name, 0)
    pipeline = Pipeline((), telemetry, queue_bytes=1)
    # An entry for a receiver, as the first batch makes it.
    pipeline._pending["otlp_grpc", "traces"] = 0
    pipeline.observe()
    Publisher(pipeline, telemetry, Snapshots(), interval_s=1).observe()
    collector = config.OtlpExporter(endpoint="http://127.0.0.1:4317")
    Forwarder(Collector(collector), telemetry, collector).observe()

    async def nothing() -> None:
        return None

    reload = Reload(config.Config(), config.Config, telemetry)
    reload.observe()
    FileWatch([reload], telemetry, interval_s=1).observe()
    Checkpointer(StateFile("", "drift"), nothing, telemetry, interval_s=1, last_s=1).observe()
    return telemetry


def test_agent_yaml_shows_every_setting() -> None:
    shown = {path for path in settings(config.Config) if "[]" not in path}
    missing = [path for path in sorted(shown) if not _has(AGENT_YAML, path)]
    assert missing == []


def _has(tree: Any, path: str) -> bool:
    try:
        at(tree, path)
    except KeyError:
        return False
    return True


def test_agent_yaml_shows_the_defaults() -> None:
    assert config_file.load(ROOT / "configs" / "agent.yaml", {}) == config.Config()
    # As written, not only as read: a null block reads as its defaults.
    nulls = [path for path in settings(config.Config) if "[]" not in path and at(AGENT_YAML, path) is None]
    assert [path for path in nulls if operator.attrgetter(path)(config.Config()) is not None] == []


def test_every_setting_is_commented() -> None:
    lines = (ROOT / "configs" / "agent.yaml").read_text().splitlines()
    bare = []
    for before, line in itertools.pairwise(lines):
        key = re.fullmatch(r" *(\w+): .+", line)
        # The four attribute lists of `identity` share one comment.
        if key and not before.strip().startswith(("#", "model:", "version:", "stage:")):
            bare.append(line)
    assert bare == []


def test_every_setting_is_documented_with_its_default() -> None:
    table = documented()
    assert sorted(table.keys() & set(settings(config.Config))) == sorted(settings(config.Config))
    for path in settings(config.Config):
        default = table[path][2].strip("`")
        if "[]" not in path:
            assert yaml.safe_load(default) == at(AGENT_YAML, path), path


def test_no_setting_is_documented_that_is_not_there() -> None:
    gone = [path for path in documented() if not path.isupper() and path not in settings(config.Config)]
    assert gone == []


def test_every_environment_variable_is_documented() -> None:
    source = "".join(path.read_text() for path in (ROOT / "agent").rglob("*.py"))
    read = set(re.findall(r"\b(?:OTEL|TIDEGAUGE)_[A-Z_]*[A-Z]\b", source)) - {"OTEL_EXPORTER_OTLP"}
    # Named in a message, as what senders get wrong.
    read -= {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"}
    read |= {f"OTEL_EXPORTER_OTLP_{name}" for name in re.findall(r'prefix \+ "([A-Z]+)"', source)}
    text = (ROOT / "docs" / "configuration.md").read_text()
    assert "OTEL_EXPORTER_OTLP_TIMEOUT" in read
    assert sorted(name for name in read if f"`{name}`" not in text) == []


def test_every_metric_is_documented_under_both_names() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    table = {row[0].strip("`"): row[1].strip("`") for row in rows(text) if len(row) == 6 and "`" in row[0]}
    assert table == exported()


def test_every_metric_is_documented_with_its_unit_and_kind() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    kinds = {kind: kind.value.replace("_", " ") for kind in Kind}
    units = {row[0].strip("`"): (row[2].strip("`"), row[3]) for row in rows(text) if len(row) == 6}
    wrong = [one for one in metrics() if units[metric_name(*one)] != (one[1], kinds[one[2]])]
    assert wrong == []


@page
def test_metrics_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    unknown = unknown_names("".join([*code(text, "promql", "yaml"), *re.findall(r"`[^`\n]+`", text)]))
    assert unknown == []


def unknown_names(text: str) -> list[str]:
    """What looks like a metric of the agent's and is none."""
    ours = r"(?:tidegauge|feature|prediction|model_(?:inference|log|drift)|hw|reference)_\w+"
    names = set(re.findall(rf"(?<![\w:./$]){ours}(?![\w:(])", text)) - NO_METRICS
    known = exported().keys() | {f"{name}{suffix}" for name in exported() for suffix in SUFFIXES}
    return sorted(name for name in names - known if not name.endswith("_"))


def test_a_name_that_is_no_metric_is_found() -> None:
    assert unknown_names("rate(tidegauge_recieved_total[5m]) > feature_drifted") == [
        "tidegauge_recieved_total"
    ]


@page
def test_settings_that_are_named_exist(page: Path) -> None:
    known = set(settings(config.Config))
    blocks = "|".join(sorted({path.split(".")[0] for path in known}))
    spans = re.findall(r"`[^`\n]+`", re.sub(r"```.*?```", "", page.read_text(), flags=re.S))
    named = set(re.findall(rf"(?<![\w./-])(?:{blocks})(?:\[\])?(?:\.[a-z_]+(?:\[\])?)+", " ".join(spans)))
    # A group of settings is named by its path too.
    groups = {path.rsplit(".", depth)[0] for path in known for depth in (1, 2)}
    wrong = named - known - groups
    assert sorted(name for name in wrong if not name.endswith((".md", ".py", ".yaml"))) == []


@page
def test_links_lead_somewhere(page: Path) -> None:
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.S)):
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            lost.append(link)
    assert lost == []


def anchors(path: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@page
def test_commands_exist(page: Path) -> None:
    text = page.read_text()
    lines = "\n".join(code(text, "sh")).replace("\\\n", " ").splitlines()
    lines += re.findall(r"`((?:tidegauge|make) [^`…]+)`", text)
    wrong = [line for line in lines if not known(line)]
    assert wrong == []


def known(line: str) -> bool:
    """Whether the line's `tidegauge` or `make` command is one, with its options; true of any other line."""
    words = shlex.split(line, comments=True)
    words = words[next((place for place, word in enumerate(words) if "=" not in word), 0) :]
    if words[:1] == ["make"]:
        targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M)
        return all(word in targets for word in words[1:] if "=" not in word)
    if words[:1] != ["tidegauge"]:
        return True
    command: click.Command = commands
    rest = words[1:]
    while isinstance(command, click.Group) and rest:
        found = command.commands.get(rest.pop(0))
        if found is None:
            return False
        command = found
    options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    return all(word in options for word in rest if word.startswith("-"))


def test_an_unknown_command_is_found() -> None:
    assert known("tidegauge reference build x.csv --model m -o y")
    assert not known("tidegauge refrence build")
    assert not known("A=1 tidegauge run --conf x")
    assert not known("make everything")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_are_valid(path: Path) -> None:
    config_file.load(path, {})


@page
def test_configurations_in_the_text_are_valid(page: Path, tmp_path: Path) -> None:
    blocks = set(get_type_hints(config.Config))
    for body in code(page.read_text(), "yaml"):
        tree = yaml.safe_load(body)
        if isinstance(tree, dict) and tree.keys() <= blocks:
            (tmp_path / "agent.yaml").write_text(body)
            config_file.load(tmp_path / "agent.yaml", {})


@page
def test_python_in_the_text_compiles(page: Path) -> None:
    for body in code(page.read_text(), "python"):
        compile(body, str(page), "exec")


# "a file for each", which the drawing does not name one by one
ALIKE = {"stats", "generate", "scrapers"}


def test_every_file_stands_in_the_house() -> None:
    agent, text = ROOT / "agent" / "tidegauge", (ROOT / "docs" / "architecture.md").read_text()
    house = set(re.findall(r"\w+", text.split("## The house")[1].split("```")[1]))
    rooms = {path.name for path in agent.iterdir() if path.is_dir()} - {"__pycache__"}
    files = {
        path.stem
        for path in agent.rglob("*.py")
        if not path.stem.startswith("__") and path.relative_to(agent).parts[0] not in ALIKE
    }
    assert rooms | files <= house


def test_the_image_has_what_it_is_built_from() -> None:
    """A file that the Dockerfile copies and .dockerignore hides fails only when an image is built."""
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.M)
    copied = {name for line in copies for name in line.split()}
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)
