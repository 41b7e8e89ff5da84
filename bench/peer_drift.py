"""Runs in the peers' environment: `python peer_drift.py ARROW_STREAM ROUNDS`.

Each peer gets the batches as pandas frames or numpy columns, whichever it takes, which are made beforehand;
only its own CPU time counts. The slow ones get one or two of the batches.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import pandas as pd
import pyarrow as pa
from peer import Found, rates, report

Frames = list[pd.DataFrame]
Measured = tuple[str, list[float]]


def nannyml(frames: Frames, rounds: int) -> Measured:
    import nannyml as peer

    whole = pd.concat(frames, ignore_index=True)
    drift = peer.UnivariateDriftCalculator(
        column_names=list(whole.columns), continuous_methods=["jensen_shannon"], chunk_size=len(frames[0])
    )
    drift.fit(whole)
    return f"NannyML {peer.__version__}, Jensen-Shannon", rates(
        whole.size, rounds, lambda: drift.calculate(whole)
    )


def whylogs(frames: Frames, rounds: int) -> Measured:
    import whylogs as peer
    from whylogs.core import DatasetProfile

    def profile() -> None:
        profile = DatasetProfile()
        for frame in frames[:2]:
            profile.track(frame)

    return f"whylogs {peer.__version__}, profile", rates(2 * frames[0].size, rounds, profile)


def datasketches(frames: Frames, rounds: int) -> Measured:
    from datasketches import kll_doubles_sketch

    columns = [[np.ascontiguousarray(values) for values in frame.to_numpy().T] for frame in frames]
    sketches = [kll_doubles_sketch(200) for _ in columns[0]]

    def sketch() -> None:
        for batch in columns:
            for one, values in zip(sketches, batch, strict=True):
                one.update(values)

    size = sum(frame.size for frame in frames)
    return f"DataSketches {version('datasketches')}, KLL alone", rates(size, rounds, sketch)


def alibi_detect(frames: Frames, rounds: int) -> Measured:
    import alibi_detect as peer
    from alibi_detect.cd import KSDrift

    reference, *rest = (frame.to_numpy() for frame in frames)
    drift = KSDrift(reference, p_val=0.05)

    def predict() -> None:
        for rows in rest:
            drift.predict(rows)

    size = sum(rows.size for rows in rest)
    return f"alibi-detect {peer.__version__}, KSDrift", rates(size, rounds, predict)


def evidently(frames: Frames, rounds: int) -> Measured:
    import evidently as peer
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    definition = DataDefinition(numerical_columns=list(frames[0].columns))
    reference = Dataset.from_pandas(frames[0], data_definition=definition)

    def run() -> None:
        current = Dataset.from_pandas(frames[1], data_definition=definition)
        Report([DataDriftPreset(method="psi")]).run(current, reference)

    return f"Evidently {peer.__version__}, PSI", rates(frames[1].size, rounds, run)


def river(frames: Frames, rounds: int) -> Measured:
    from river.drift import ADWIN

    columns = [values.tolist() for values in frames[0].to_numpy().T]

    def update() -> None:
        for values in columns:
            detector = ADWIN()
            for value in values:
                detector.update(value)

    return f"river {version('river')}, ADWIN", rates(frames[0].size, rounds, update)


PEERS: tuple[Callable[[Frames, int], Measured], ...] = (
    nannyml,
    whylogs,
    datasketches,
    alibi_detect,
    evidently,
    river,
)


def main() -> None:
    with pa.OSFile(sys.argv[1], "rb") as file, pa.ipc.open_stream(file) as stream:
        frames = [batch.to_pandas() for batch in stream]
    found: Found = {}
    for peer in PEERS:
        try:
            name, its = peer(frames, int(sys.argv[2]))
        except Exception as error:  # one that does not run must not take the others with it
            found[peer.__name__] = f"{type(error).__name__}: {error}"
        else:
            found[name] = its
    report(found)


if __name__ == "__main__":
    main()
