"""Change detectors fed by arrays, beside river's, which take one value a call."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench import peers
from bench.figure import Figure
from tidegauge.stats import adwin, error_rate, page_hinkley

Floats = npt.NDArray[np.float64]

VALUES, BATCH = 1_000_000, 4_096

OWN: dict[str, tuple[Callable[[], Floats], Callable[[Floats, Floats, npt.NDArray[np.int64]], int]]] = {
    "adwin": (adwin.fresh, adwin.update),
    "page_hinkley": (page_hinkley.fresh, page_hinkley.update),
    "ddm": (error_rate.fresh, error_rate.ddm),
    "eddm": (error_rate.fresh, error_rate.eddm),
    "hddm_a": (error_rate.fresh, error_rate.hddm_a),
}


def measure(rounds: int) -> Iterator[Figure | str]:
    """Updates per CPU second on the same stream, of scores or of errors, whose mean shifts now and then."""
    streams = _streams()
    own = {name: _rates(name, values, rounds) for name, values in streams.items()}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "streams.npz")
        np.savez(file, **streams)  # type: ignore[arg-type]
        try:
            found = peers.measure("peer_detectors.py", file, rounds)
        except peers.MissingError as missing:
            yield from (Figure(f"detector {name}", "M updates/core-s", its) for name, its in own.items())
            yield str(missing)
            return
    for (name, its), (peer, others) in zip(own.items(), found.items(), strict=True):
        assert not isinstance(others, str)  # the script has one peer
        what = f"detector {name}, batches of {BATCH}"
        yield Figure(what, "M updates/core-s", its, peer, [rate / 1e6 for rate in others])


def _streams() -> dict[str, Floats]:
    random = np.random.default_rng(11)
    levels = np.repeat(random.uniform(-0.2, 0.2, 10), VALUES // 10)
    scores = np.clip(random.beta(2, 5, VALUES) + levels, 0, 1)
    wrong = (random.random(VALUES) < 0.2 + levels / 2).astype(np.float64)
    return {name: scores if name in ("adwin", "page_hinkley") else wrong for name in OWN}


def _rates(name: str, values: Floats, rounds: int) -> list[float]:
    fresh, update = OWN[name]
    changes = np.empty(BATCH, np.int64)
    found = []
    for _ in range(rounds):
        state = fresh()
        begin = time.thread_time()
        for at in range(0, len(values), BATCH):
            update(state, values[at : at + BATCH], changes)
        found.append(len(values) / (time.thread_time() - begin) / 1e6)
    return found
