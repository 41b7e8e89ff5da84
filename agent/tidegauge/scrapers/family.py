"""The metrics of GPUs, in OpenTelemetry's names and base units.

Names and attributes follow the semantic conventions for hardware (`hw.*`, and `hw.gpu.*` for GPUs).
What has no convention yet is called `hw.gpu.` and what it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tidegauge.metric import Attributes, Kind, Metric, Number


class Family(NamedTuple):
    """A metric of GPUs: its kind, UCUM unit and description."""

    kind: Kind
    unit: str
    description: str


class Sample(NamedTuple):
    """One value of a family of FAMILIES, in its unit."""

    family: str
    attributes: Attributes
    value: float


def _gauge(unit: str, description: str) -> Family:
    return Family(Kind.GAUGE, unit, description)


def _counter(unit: str, description: str) -> Family:
    return Family(Kind.COUNTER, unit, description)


FAMILIES = {
    "hw.gpu.utilization": _gauge(
        "1",
        "Share of the driver's last sample period in which a kernel ran (task general), device memory "
        "was read or written (task memory), or the encoder or decoder was busy.",
    ),
    "hw.gpu.performance_state": _gauge("{state}", "The state P0 (fastest) to P15."),
    "hw.gpu.activity": _gauge(
        "1", "Share of its peak at which a unit of the GPU worked between the last two polls (GPM)."
    ),
    "hw.gpu.sm.occupancy": _gauge(
        "1", "Warps on the SMs between the last two polls, as a share of what they hold at most (GPM)."
    ),
    "hw.gpu.memory.usage": _gauge("By", "GPU memory in use, without what the driver reserves."),
    "hw.gpu.memory.limit": _gauge("By", "Size of the GPU memory."),
    "hw.gpu.memory.utilization": _gauge("1", "GPU memory in use, as a share of its size."),
    "hw.gpu.memory.free": _gauge("By", "GPU memory that can still be allocated, in pieces of any size."),
    "hw.gpu.memory.reserved": _gauge("By", "GPU memory that driver and firmware keep for themselves."),
    "hw.gpu.bar1.usage": _gauge("By", "BAR1 space in use, through which host and peers reach GPU memory."),
    "hw.gpu.bar1.limit": _gauge("By", "Size of the BAR1 space."),
    "hw.temperature": _gauge("Cel", "Temperature of the GPU die."),
    "hw.temperature.limit": _gauge("Cel", "Temperature of the die at which the GPU slows or shuts down."),
    "hw.gpu.temperature.margin": _gauge("Cel", "How much hotter the GPU may become before it slows down."),
    "hw.gpu.memory.temperature": _gauge("Cel", "Temperature of the GPU memory."),
    "hw.power": _gauge("W", "Power drawn by the GPU, averaged over 1 s on most models."),
    "hw.power.limit": _gauge("W", "Power that the GPU may draw."),
    "hw.energy": _counter("J", "Energy consumed since the driver was loaded."),
    "hw.gpu.clock": _gauge("Hz", "Current clock frequency."),
    "hw.gpu.clock.limit": _gauge("Hz", "Highest clock frequency."),
    "hw.gpu.clock.held": _gauge("", "1 for each reason for which the clocks are held down now, 0 else."),
    "hw.gpu.clock.held.time": _counter("s", "Time for which a policy has held the clocks down."),
    "hw.errors": _counter(
        "{error}", "ECC memory errors since the driver was loaded, corrected or uncorrected."
    ),
    "hw.gpu.ecc.aggregate_errors": _counter(
        "{error}", "ECC memory errors in the board's life, or since they were last cleared."
    ),
    "hw.gpu.ecc.enabled": _gauge("", "1 where ECC is on."),
    "hw.gpu.memory.remapped_rows": _gauge("{row}", "Rows of GPU memory replaced by spare ones."),
    "hw.gpu.memory.remap.pending": _gauge("", "1 where a row is to be replaced at the next reset."),
    "hw.gpu.memory.remap.failed": _gauge("", "1 where a row could not be replaced: the board is due."),
    "hw.gpu.memory.retired_pages": _gauge("{page}", "Pages of GPU memory that are used no more."),
    "hw.gpu.memory.retirement.pending": _gauge("", "1 where a page is retired at the next reset."),
    "hw.gpu.io": _counter("By", "Bytes that went over PCIe or NVLink, as seen from the GPU."),
    "hw.gpu.io.rate": _gauge("By/s", "Bytes over PCIe in 20 ms of the poll, where they are not counted."),
    "hw.gpu.link.errors": _counter("{error}", "Errors on PCIe or NVLink that the hardware noticed."),
    "hw.gpu.pcie.generation": _gauge("{generation}", "PCIe generation in use; lower when the GPU idles."),
    "hw.gpu.pcie.generation.limit": _gauge("{generation}", "PCIe generation that GPU and slot can do."),
    "hw.gpu.pcie.lanes": _gauge("{lane}", "PCIe lanes in use."),
    "hw.gpu.pcie.lanes.limit": _gauge("{lane}", "PCIe lanes that GPU and slot can do."),
    "hw.gpu.nvlink.active": _gauge("{link}", "NVLink links that are up."),
    "hw.gpu.processes": _gauge("{process}", "Processes that compute on the GPU, as far as NVML shows them."),
    "hw.gpu.process.memory.usage": _gauge("By", "GPU memory of a process."),
    "hw.gpu.process.utilization": _gauge(
        "1", "Share of the time since the poll before in which a process kept SMs or memory busy."
    ),
    "hw.gpu.model": _gauge("", "1 for each model that is known to run on the GPU."),
    "hw.gpu.mig.enabled": _gauge("", "1 where the GPU is divided into MIG instances."),
    # A gauge with the conventions' unit 1 would become hw_status_ratio on /metrics.
    "hw.status": _gauge(
        "",
        "1 for the GPU's present state, 0 for the others: ok; degraded, where a reading failed; "
        "failed, where the driver has lost the GPU.",
    ),
    "hw.gpu.xid.events": _counter("{event}", "XID errors that the driver told since the agent started."),
    "hw.gpu.xid.time": _gauge("s", "Unix time of the latest XID error of that number."),
    "tidegauge.gpu.unsupported": _gauge(
        "{reading}", "Readings that the GPU or its driver does not have; none is asked for again."
    ),
    "tidegauge.gpu.poll.duration": _gauge("s", "How long the latest poll of the GPU took."),
}


def as_metrics(samples: Iterable[Sample]) -> tuple[Metric, ...]:
    """Samples grouped by family, in the order of FAMILIES."""
    points: dict[str, list[Number]] = {name: [] for name in FAMILIES}
    for name, attributes, value in samples:
        points[name].append(Number(attributes, value))
    return tuple(
        Metric(name, family.kind, family.unit, family.description, tuple(points[name]))
        for name, family in FAMILIES.items()
        if points[name]
    )
