"""Sends what the model saw and said to the agent, beside the requests and never in their way.

A stock `pyarrow.flight` client: nothing of Tidegauge is needed in a model server.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import flight

log = logging.getLogger(__name__)

FLUSH_S = 0.25
FLUSH_ROWS = 4096


class Answered(NamedTuple):
    """One request's rows (rows x features), and what was answered."""

    time_us: int
    rows: npt.NDArray[np.float64]
    predictions: list[str]
    scores: npt.NDArray[np.float64]


class RecordSender:
    """A bounded queue, and a thread that empties it into record batches.

    `offer` never waits: when the agent is slow or away the queue fills and further rows are dropped
    and counted. A context manager: leaving it sends what is queued, for at most 5 s.
    """

    def __init__(
        self, location: str, model: str, version: str, features: tuple[str, ...], *, capacity: int = 1000
    ) -> None:
        self._location = location
        self._descriptor = flight.FlightDescriptor.for_path("records", model, version)
        columns: dict[str, pa.DataType] = {
            "timestamp": pa.timestamp("us", tz="UTC"),
            **dict.fromkeys(features, pa.float64()),
            "prediction": pa.string(),
            "score": pa.float64(),
        }
        self._schema = pa.schema(columns)
        self._queue: queue.Queue[Answered] = queue.Queue(capacity)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="records", daemon=True)
        self._failing = False
        self.sent = 0
        self.dropped = 0

    def offer(
        self, rows: npt.NDArray[np.float64], predictions: list[str], scores: npt.NDArray[np.float64]
    ) -> None:
        """Queue a request's rows, or drop them, at once."""
        try:
            self._queue.put_nowait(Answered(time.time_ns() // 1000, rows, predictions, scores))
        except queue.Full:
            self.dropped += len(rows)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join(5)
        log.info("sent %d rows, dropped %d", self.sent, self.dropped)

    def _run(self) -> None:
        with flight.connect(self._location) as client:
            while not (self._closing.is_set() and self._queue.empty()):
                answered = self._collect()
                if answered:
                    self._send(client, self._batch(answered))

    def _collect(self) -> list[Answered]:
        """What arrives within FLUSH_S, up to about FLUSH_ROWS rows."""
        answered: list[Answered] = []
        rows = 0
        deadline = time.monotonic() + FLUSH_S
        while rows < FLUSH_ROWS and (left := deadline - time.monotonic()) > 0:
            try:
                answered.append(self._queue.get(timeout=left))
            except queue.Empty:
                break
            rows += len(answered[-1].rows)
        return answered

    def _batch(self, answered: list[Answered]) -> pa.RecordBatch:
        times = np.repeat([one.time_us for one in answered], [len(one.rows) for one in answered])
        columns = [
            pa.array(times, self._schema.field("timestamp").type),
            *(pa.array(column) for column in np.concatenate([one.rows for one in answered]).T),
            pa.array([prediction for one in answered for prediction in one.predictions]),
            pa.array(np.concatenate([one.scores for one in answered])),
        ]
        return pa.record_batch(columns, schema=self._schema)

    def _send(self, client: flight.FlightClient, batch: pa.RecordBatch) -> None:
        try:
            options = flight.FlightCallOptions(timeout=5)
            writer, results = client.do_put(self._descriptor, self._schema, options)
            with writer:
                writer.write_batch(batch)
                writer.done_writing()
                # One answer comes for each batch (the stubs do not know `read`).
                answer = json.loads(results.read().to_pybytes())  # type: ignore[attr-defined]
        except pa.ArrowException as error:
            self.dropped += len(batch)
            if not self._failing:
                log.warning("rows are dropped: %s", str(error).partition(". ")[0])
            self._failing = True
            return
        self._failing = False
        self.sent += answer["accepted_rows"]
        self.dropped += answer["rejected_rows"]
        if answer["rejected_rows"]:
            log.warning("%d rows rejected: %s", answer["rejected_rows"], answer["reason"])
