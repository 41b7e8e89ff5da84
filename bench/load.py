"""Steady load of all four kinds on an agent, which is never sent again: what is refused is counted."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Self

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.flight as fl

from bench.payload import MODEL, SPANS, VERSION, logs_request, metrics_request, span_request
from bench.sender import LOGS, METRICS, TRACES

POINTS, LINES, ROWS, COLUMNS = 256, 256, 4096, 50
MOST_IN_FLIGHT = 32
"""Calls of one kind; where they are not answered by then, the next one is not made."""


class Load:
    """Sends spans, points, log lines and records at `rate` calls a second each. A context manager.

    Any thread may set `rate`. `taken`, `refused` and `failed` count items by signal; a failed call is
    one of which nobody knows whether it was taken. `calls` were answered, `skipped` not made.
    """

    def __init__(self, port: int) -> None:
        self.rate = 0.0
        self.taken: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.calls = 0
        self.skipped = 0
        self._port = port
        self._lock = threading.Lock()
        self._stop = threading.Event()
        requests = {
            "traces": (TRACES, span_request(), SPANS),
            "metrics": (METRICS, metrics_request(POINTS), POINTS),
            "logs": (LOGS, logs_request(LINES), LINES),
        }
        self._threads = [
            threading.Thread(target=self._export, args=(signal, *what)) for signal, what in requests.items()
        ]
        self._threads.append(threading.Thread(target=self._records))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _count(self, counter: Counter[str], signal: str, items: int) -> None:
        with self._lock:
            counter[signal] += items
            self.calls += 1

    def _next(self, due: float) -> float:
        """Wait until a call is due; when the next one is."""
        if self.rate == 0:
            self._stop.wait(0.05)
            return time.monotonic()
        self._stop.wait(max(0.0, due - time.monotonic()))
        # What was missed for more than a second is not caught up with.
        return max(due, time.monotonic() - 1) + 1 / self.rate

    def _export(self, signal: str, method: str, request: bytes, items: int) -> None:
        places = threading.Semaphore(MOST_IN_FLIGHT)

        def note(call: grpc.Future[bytes]) -> None:
            match call.code():  # type: ignore[attr-defined]
                case grpc.StatusCode.OK:
                    self._count(self.taken, signal, items)
                case grpc.StatusCode.UNAVAILABLE if "queue" in (call.details() or ""):  # type: ignore[attr-defined]
                    self._count(self.refused, signal, items)
                case _:
                    self._count(self.failed, signal, items)
            places.release()

        with grpc.insecure_channel(f"127.0.0.1:{self._port}") as channel:
            export: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
            due = time.monotonic()
            while not self._stop.is_set():
                due = self._next(due)
                if self.rate == 0 or self._stop.is_set():
                    continue
                if places.acquire(timeout=0.05):
                    export.future(request, timeout=60).add_done_callback(note)
                else:
                    self.skipped += 1
            for _ in range(MOST_IN_FLIGHT):
                places.acquire()

    def _records(self) -> None:
        random = np.random.default_rng(7)
        batch = pa.record_batch({f"f{column:02}": random.normal(size=ROWS) for column in range(COLUMNS)})
        with fl.FlightClient(f"grpc://127.0.0.1:{self._port}") as client:
            path = fl.FlightDescriptor.for_path("records", MODEL, VERSION)
            writer, reader = client.do_put(path, batch.schema)
            due = time.monotonic()
            while not self._stop.is_set():
                due = self._next(due)
                if self.rate == 0 or self._stop.is_set():
                    continue
                writer.write_batch(batch)
                answer = json.loads(reader.read().to_pybytes())  # type: ignore[attr-defined]
                outcome = self.refused if answer["rejected_rows"] else self.taken
                self._count(outcome, "records", batch.num_rows)
            writer.close()
