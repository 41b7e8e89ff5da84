"""Runs in the peers' environment: `python peer_drift.py ARROW_STREAM ROUNDS`.

Each peer gets the batches as pandas frames, which are made beforehand; only its own CPU time counts.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable

import nannyml
import pandas as pd
import pyarrow as pa
import whylogs
from whylogs.core import DatasetProfile
from whylogs_sketching import kll_doubles_sketch


def rates(values: int, rounds: int, work: Callable[[], object]) -> list[float]:
    """Values per CPU second, of the process with all its threads, once per round."""
    work()  # imports and caches
    found = []
    for _ in range(rounds):
        begin = time.process_time()
        work()
        found.append(values / (time.process_time() - begin))
    return found


def main() -> None:
    logging.disable(logging.CRITICAL)
    with pa.OSFile(sys.argv[1], "rb") as file, pa.ipc.open_stream(file) as stream:
        frames = [batch.to_pandas() for batch in stream]
    rounds = int(sys.argv[2])
    rows, columns = len(frames[0]), list(frames[0].columns)

    drift = nannyml.UnivariateDriftCalculator(
        column_names=columns, continuous_methods=["jensen_shannon"], chunk_size=rows
    )
    drift.fit(pd.concat(frames, ignore_index=True))
    whole = pd.concat(frames, ignore_index=True)

    def profile() -> None:
        profile = DatasetProfile()
        for frame in frames[:2]:
            profile.track(frame)

    def sketch() -> None:
        for frame in frames[:2]:
            for column, values in zip(columns, frame.to_numpy().T, strict=True):
                sketches[column].update(values)

    sketches = {column: kll_doubles_sketch(200) for column in columns}
    found = {
        f"NannyML {nannyml.__version__}, Jensen-Shannon": rates(
            whole.size, rounds, lambda: drift.calculate(whole)
        ),
        f"whylogs {whylogs.__version__}, profile": rates(2 * frames[0].size, rounds, profile),
        "DataSketches KLL (whylogs-sketching)": rates(2 * frames[0].size, rounds, sketch),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
