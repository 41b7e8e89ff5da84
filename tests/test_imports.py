"""Imports go down only: the floors of docs/architecture.md, read from the source."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

AGENT = Path(__file__).parents[1] / "agent" / "tidegauge"

FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"stats"}),
    frozenset(
        {"metric", "identity", "snapshot", "telemetry", "units", "environment", "config", "config_file"}
        | {"config_listeners", "changes"}
    )
    | {"layout", "plain", "categories", "heavy_hitters", "batch", "runs", "wire", "baked", "memory", "lock"}
    | {"disk_thread", "small_file"},
    frozenset({"profile", "reference", "sample", "shelf", "statefile", "listening", "watched"}),
    frozenset({"receivers", "scrapers", "processors", "exporters", "health"})
    | {"pipeline", "publisher", "checkpointer", "reference_files"},
    frozenset({"app", "footprint", "backtest", "reload", "generate"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)
"""Rooms from the ground up. A room may import what lies below it and itself."""

NEIGHBOURS = {1, 2}
"""Floors whose rooms may import each other: plain, frozen things, and what references are made of."""

EXCEPTIONS = {("publisher", "pipeline"), ("app", "reload")}

CLOSED = {
    "stats": {"numpy", "numba", "llvmlite"},
    "wire": {"numpy", "numba", "llvmlite"},
    "baked": {"numba"},
    "footprint": {"numba"},
}
"""Rooms that may import these third parties only; all others are listed in HOMES."""

HOMES = {
    "grpc": {"receivers", "exporters"},
    "aiohttp": {"receivers", "exporters", "listening"},
    "prometheus_client": set(),  # tests and bench only
    "pynvml": {"scrapers"},
    "uvloop": {"cli"},
    "click": {"cli", "__main__"},
    "rich": {"cli"},
    "dask": {"cli"},
    "matplotlib": {"backtest"},
    "sklearn": {"processors"},
    "yaml": {"config_file"},
}
"""Third parties that have a home, and what may import them."""

GRANTED = {
    # JSON is rare, and protobuf's own reader of it is the specification.
    "wire.otlp_json": {"google", "opentelemetry", "msgspec"},
    # One attribute's value, once per new series.
    "wire.traces": {"opentelemetry"},
    # What to validate, from the messages' own descriptors.
    "wire.logs": {"opentelemetry"},
    "wire.metrics": {"opentelemetry"},
}


def modules() -> dict[str, Path]:
    """Every module of the package but `__init__` files, by its name below `tidegauge`."""
    found = {}
    for path in sorted(AGENT.rglob("*.py")):
        if path.name != "__init__.py":
            found[".".join(path.relative_to(AGENT).with_suffix("").parts)] = path
    return found


def imports(source: str) -> Iterator[str]:
    """What a source imports, as dotted names; `from a import b` gives a.b where a is ours."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            if node.module.split(".")[0] == "tidegauge":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield node.module


def floor_of(room: str) -> int:
    [floor] = [number for number, rooms in enumerate(FLOORS) if room in rooms]
    return floor


def breach(module: str, imported: str) -> str:
    """Why `module` may not import `imported`, or nothing."""
    room, *_ = module.split(".")
    top, *rest = imported.split(".")
    if top == "tidegauge":
        return breach_within(room, rest[0])
    allowed = CLOSED.get(room, {top}) | GRANTED.get(module, set()) | sys.stdlib_module_names
    if top not in allowed:
        return f"{room} imports {', '.join(sorted(CLOSED[room]))} only, not {top}"
    if room not in HOMES.get(top, {room}):
        return f"{top} is at home in {', '.join(sorted(HOMES[top]))}, not in {room}"
    return ""


def breach_within(room: str, other: str) -> str:
    """Why `room` may not import `other`, or nothing."""
    if other == "__version__" and room != "stats":
        return ""
    own, its = floor_of(room), floor_of(other)
    if its > own:
        return f"{other} is above {room}"
    if its == own and room != other and own not in NEIGHBOURS and (room, other) not in EXCEPTIONS:
        return f"{room} and {other} are on one floor"
    return ""


@pytest.mark.parametrize("module", modules())
def test_imports_go_down_only(module: str) -> None:
    found = imports(modules()[module].read_text())
    assert [why for imported in found if (why := breach(module, imported))] == []


def test_every_room_has_a_floor() -> None:
    rooms = {name.split(".")[0] for name in modules()}
    assert rooms == frozenset().union(*FLOORS)


def test_no_module_imports_itself_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for module, path in modules().items():
        names = {name.removeprefix("tidegauge.") for name in imports(path.read_text())}
        # `from tidegauge.stats import bins` is a module, `from tidegauge.metric import Metric` is in one.
        graph[module] = {
            known for name in names for known in modules() if name == known or name.startswith(f"{known}.")
        }
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("stats.bins", "pyarrow"),
        ("stats.bins", "tidegauge.metric.Metric"),
        ("wire.counts", "opentelemetry.proto.common.v1.common_pb2"),
        ("wire.counts", "tidegauge.pipeline.Pipeline"),
        ("metric", "tidegauge.profile.Profile"),
        ("profile", "tidegauge.processors.drift.drift.Drift"),
        ("receivers.http", "tidegauge.exporters.pages.Pages"),
        ("pipeline", "tidegauge.publisher.Publisher"),
        ("processors.drift", "tidegauge.app.run"),
        ("processors.drift", "grpc"),
        ("exporters.prometheus", "prometheus_client.parser"),
        ("app", "tidegauge.cli.run.run_agent"),
        ("app", "click"),
    ],
)
def test_a_breach_is_found(module: str, imported: str) -> None:
    assert breach(module, imported)
