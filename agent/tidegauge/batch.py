"""Batches: what receivers decode and processors fold. Plain columns, no behaviour."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidegauge.identity import Identity
from tidegauge.layout import Layout
from tidegauge.plain import Plain

OVERHEAD = 400
"""Bytes that a batch of OTLP costs besides its own: the objects around them, as measured with one span each.
In a queue of 128 MiB they are 340 MB of such batches."""


class Signal(enum.StrEnum):
    """What a batch carries. The first three are OpenTelemetry's signals."""

    TRACES = "traces"
    METRICS = "metrics"
    LOGS = "logs"
    RECORDS = "records"


class Batch(Protocol):
    """What the pipeline asks of every batch."""

    @property
    def receiver(self) -> str:
        """The receiver that accepted it, as named on the agent's own metrics."""

    @property
    def signal(self) -> Signal: ...

    @property
    def items(self) -> int:
        """Spans, data points, log records or rows: the unit of every own counter."""

    @property
    def nbytes(self) -> int:
        """Bytes that the batch keeps alive."""


@dataclass(frozen=True, slots=True)
class Spans:
    """The spans of one OTLP trace request, as columns over its wire bytes.

    `columns` is a structured array of `wire.traces.SPAN`, one element per span; its offsets point
    into `raw`, the request as received. `marks` is one of `wire.traces.MARK`, in the order of spans.
    """

    receiver: str
    raw: bytes
    columns: npt.NDArray[np.void]
    marks: npt.NDArray[np.void]

    @property
    def signal(self) -> Signal:
        return Signal.TRACES

    @property
    def items(self) -> int:
        return len(self.columns)

    @property
    def nbytes(self) -> int:
        return len(self.raw) + self.columns.nbytes + self.marks.nbytes + OVERHEAD


@dataclass(frozen=True, slots=True)
class Points:
    """The data points of one OTLP metrics request, as columns over its wire bytes.

    `columns` is a structured array of `wire.metrics.POINT`; offsets point into `raw`, the request.
    """

    receiver: str
    raw: bytes
    columns: npt.NDArray[np.void]

    @property
    def signal(self) -> Signal:
        return Signal.METRICS

    @property
    def items(self) -> int:
        return len(self.columns)

    @property
    def nbytes(self) -> int:
        return len(self.raw) + self.columns.nbytes + OVERHEAD


@dataclass(frozen=True, slots=True)
class Logs:
    """The log records of one OTLP logs request, as columns over its wire bytes.

    `columns` is a structured array of `wire.logs.LOG`; offsets point into `raw`, the request.
    """

    receiver: str
    raw: bytes
    columns: npt.NDArray[np.void]

    @property
    def signal(self) -> Signal:
        return Signal.LOGS

    @property
    def items(self) -> int:
        return len(self.columns)

    @property
    def nbytes(self) -> int:
        return len(self.raw) + self.columns.nbytes + OVERHEAD


Content = pa.RecordBatch | Plain
"""Rows as Arrow has them, or as their message has."""


@dataclass(frozen=True, slots=True)
class Records:
    """Feature and prediction rows of one model, validated in full.

    `layout` tells what the columns are for, `rows` are they; `content` is these, or what they can be made
    of. `received_ns` is the Unix time at which the batch
    arrived: the event time of rows where no column has the role `timestamp`.
    """

    receiver: str
    identity: Identity
    layout: Layout
    content: Content
    received_ns: int
    nbytes: int

    @property
    def signal(self) -> Signal:
        return Signal.RECORDS

    @property
    def items(self) -> int:
        return int(self.content.num_rows)

    @property
    def rows(self) -> pa.RecordBatch:
        return self.content.rows if isinstance(self.content, Plain) else self.content
