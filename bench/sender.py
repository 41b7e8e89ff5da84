"""Sends to the agent, as a process of its own: `python -m bench.sender records PORT COUNT FILE` or
`… spans PORT COUNT SPANS`, COUNT requests of so many spans.

A refused batch or request is sent again a little later, so that all of it is folded in the end.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import deque

import grpc
import pyarrow as pa
import pyarrow.flight as fl

from bench.payload import MODEL, VERSION, span_request

_SERVICES = "/opentelemetry.proto.collector"
TRACES = f"{_SERVICES}.trace.v1.TraceService/Export"
METRICS = f"{_SERVICES}.metrics.v1.MetricsService/Export"
LOGS = f"{_SERVICES}.logs.v1.LogsService/Export"
IN_FLIGHT = 8
BACK_OFF_S = 0.02


def send_records(port: int, count: int, file: str) -> int:
    """Send `count` batches, those of an Arrow stream over and over; returns how many were refused."""
    with pa.OSFile(file, "rb") as source, pa.ipc.open_stream(source) as stream:
        batches = list(stream)
    refused, waiting, done = 0, 0, 0
    with fl.FlightClient(f"grpc://127.0.0.1:{port}") as client:
        path = fl.FlightDescriptor.for_path("records", MODEL, VERSION)
        writer, reader = client.do_put(path, batches[0].schema)
        while done < count:
            while waiting < IN_FLIGHT and done + waiting < count:
                writer.write_batch(batches[(done + waiting) % len(batches)])
                waiting += 1
            answer = json.loads(reader.read().to_pybytes())  # type: ignore[attr-defined]
            waiting -= 1
            if answer["rejected_rows"]:
                refused += 1
                time.sleep(BACK_OFF_S)
            else:
                done += 1
        writer.close()
    return refused


def send_spans(port: int, count: int, spans: int) -> int:
    """Send `count` requests of `spans` spans, a few at a time; returns how many were refused."""
    request = span_request(count=spans)
    refused = 0
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        export: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(TRACES)
        calls = deque(export.future(request) for _ in range(min(IN_FLIGHT, count)))
        left = count - len(calls)
        while calls:
            try:
                calls.popleft().result()
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                refused += 1
                time.sleep(BACK_OFF_S)
                calls.append(export.future(request))
                continue
            if left:
                calls.append(export.future(request))
                left -= 1
    return refused


def run(kind: str, port: int, count: int, what: object) -> float:
    """Send as a process of its own; the seconds that it took."""
    command = [sys.executable, "-m", "bench.sender", kind, str(port), str(count), str(what)]
    told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return float(told["wall_s"])


def main() -> None:
    kind, port, count, what = sys.argv[1:]
    begin = time.monotonic()
    if kind == "records":
        refused = send_records(int(port), int(count), what)
    else:
        refused = send_spans(int(port), int(count), int(what))
    print(json.dumps({"refused": refused, "wall_s": time.monotonic() - begin}))


if __name__ == "__main__":
    main()
