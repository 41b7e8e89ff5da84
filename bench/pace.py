"""Calls at a steady pace, whether or not earlier ones were answered.

A process of its own: `python -m bench.pace PORT RATE SECONDS SPANS`. The latency of a call counts from
when it was due, so that one that waits behind a slow one is not measured as quick (what is known as
coordinated omission).
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from threading import Semaphore

import grpc
import numpy as np

from bench.payload import span_request
from bench.sender import TRACES

PERCENTILES = (50.0, 99.0, 99.9)


def calls(port: int, rate: float, seconds: float, spans: int) -> dict[str, float]:
    """Run the sender as a process of its own: percentiles in ms by name, `failed` and `late_ms`.

    `late_ms` is the 99th percentile of how late the sender itself was, which the others include.
    """
    command = [sys.executable, "-m", "bench.pace", str(port), f"{rate:g}", f"{seconds:g}", str(spans)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def send(port: int, rate: float, seconds: float, spans: int) -> Mapping[str, float]:
    """Make `rate` x `seconds` Export calls of `spans` spans each."""
    request = span_request(count=spans)
    count = int(rate * seconds)
    due_s, begun_s, ended_s = np.zeros(count), np.zeros(count), np.zeros(count)
    failed: list[grpc.StatusCode] = []
    answered = Semaphore(0)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        export: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(TRACES)
        for _ in range(20):
            export(request, timeout=10)  # connects, and warms both sides

        def make(index: int) -> None:
            def note(call: grpc.Future[bytes]) -> None:
                ended_s[index] = time.perf_counter()
                if (code := call.code()) is not grpc.StatusCode.OK:  # type: ignore[attr-defined]
                    failed.append(code)
                answered.release()

            begun_s[index] = time.perf_counter()
            export.future(request, timeout=30).add_done_callback(note)

        gc.collect()
        gc.disable()
        begin = time.perf_counter() + 0.05
        for index in range(count):
            due_s[index] = begin + index / rate
            if (early_s := due_s[index] - time.perf_counter()) > 0:
                time.sleep(early_s)
            make(index)
        for _ in range(count):
            answered.acquire()
    found = {f"p{which:g}": float(np.percentile(ended_s - due_s, which)) * 1e3 for which in PERCENTILES}
    late_ms = float(np.percentile(begun_s - due_s, 99)) * 1e3
    return found | {"failed": len(failed), "late_ms": late_ms}


def main() -> None:
    # The callbacks' thread must not wait 5 ms for the interpreter's lock.
    sys.setswitchinterval(0.0002)
    port, rate, seconds, spans = sys.argv[1:]
    print(json.dumps(send(int(port), float(rate), float(seconds), int(spans))))


if __name__ == "__main__":
    main()
