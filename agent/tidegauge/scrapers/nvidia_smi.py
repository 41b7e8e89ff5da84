"""What nvidia-smi says at the same moment, to check readings against."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tidegauge.metric import Attributes, Metric, Number

MIB = 2**20


class Query(NamedTuple):
    """A column of nvidia-smi, and the series that is the same: `factor` times the column.

    `moves`: how far the two may lie apart for being read one after the other, in the column's unit.
    """

    family: str
    attributes: Attributes
    factor: float
    moves: float


QUERIES = {
    "memory.total": Query("hw.gpu.memory.limit", (), MIB, 1),
    "memory.reserved": Query("hw.gpu.memory.reserved", (), MIB, 1),
    "memory.used": Query("hw.gpu.memory.usage", (), MIB, 64),
    "memory.free": Query("hw.gpu.memory.free", (), MIB, 64),
    "utilization.gpu": Query("hw.gpu.utilization", (("hw.gpu.task", "general"),), 0.01, 30),
    "utilization.memory": Query("hw.gpu.utilization", (("hw.gpu.task", "memory"),), 0.01, 30),
    "temperature.gpu": Query("hw.temperature", (), 1, 3),
    "power.draw": Query("hw.power", (), 1, 60),
    "enforced.power.limit": Query("hw.power.limit", (("hw.limit_type", "enforced"),), 1, 0.1),
    "clocks.sm": Query("hw.gpu.clock", (("hw.gpu.clock.domain", "sm"),), 1e6, 600),
    "clocks.mem": Query("hw.gpu.clock", (("hw.gpu.clock.domain", "memory"),), 1e6, 1),
    "ecc.errors.uncorrected.volatile.total": Query("hw.errors", (("error.type", "uncorrected"),), 1, 0),
    "pcie.link.gen.current": Query("hw.gpu.pcie.generation", (), 1, 2),
    "pcie.link.width.current": Query("hw.gpu.pcie.lanes", (), 1, 0),
}

Answer = dict[str, dict[str, str]]
"""What nvidia-smi printed, by the GPU's UUID and column."""


class Difference(NamedTuple):
    """A column beside the reading that should be the same, in the column's unit."""

    uuid: str
    column: str
    told: float
    read: float
    agrees: bool


def ask() -> Answer:
    """All columns of every GPU; nothing where there is no nvidia-smi, or it fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    columns = ("uuid", *QUERIES)
    command = [program, f"--query-gpu={','.join(columns)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return {}
    if done.returncode:
        return {}
    rows = csv.reader(io.StringIO(done.stdout), skipinitialspace=True)
    return {row[0]: dict(zip(QUERIES, row[1:], strict=True)) for row in rows if len(row) == len(columns)}


def compare(answer: Answer, metrics: Iterable[Metric]) -> Iterator[Difference]:
    """Each column beside the reading of the same moment, where both are there."""
    read = {
        (metric.name, point.attributes): point.value
        for metric in metrics
        for point in metric.points
        if isinstance(point, Number)
    }
    own = {key for query in QUERIES.values() for key, _ in query.attributes} | {"hw.id"}
    by_own = {
        (name, tuple(sorted(pair for pair in attributes if pair[0] in own))): value
        for (name, attributes), value in read.items()
    }
    for uuid, columns in answer.items():
        for column, text in columns.items():
            query = QUERIES[column]
            key = (query.family, tuple(sorted((*query.attributes, ("hw.id", uuid)))))
            try:
                told = float(text)
            except ValueError:  # [N/A]
                continue
            if key in by_own:
                value = by_own[key] / query.factor
                yield Difference(uuid, column, told, value, abs(told - value) <= query.moves + 1e-6)
