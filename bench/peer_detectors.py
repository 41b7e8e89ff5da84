"""Runs in the peers' environment: `python peer_detectors.py NPZ ROUNDS`.

River's detectors, one update per value.
"""

from __future__ import annotations

import sys
from importlib.metadata import version

import numpy as np
from peer import Found, rates, report
from river import drift

DETECTORS = {
    "adwin": drift.ADWIN,
    "page_hinkley": drift.PageHinkley,
    "ddm": drift.binary.DDM,
    "eddm": drift.binary.EDDM,
    "hddm_a": drift.binary.HDDMA,
}


def main() -> None:
    found: Found = {}
    with np.load(sys.argv[1]) as streams:
        for name, kind in DETECTORS.items():
            values = streams[name].tolist()[:100_000]

            def run(values: list[float] = values, kind: type = kind) -> None:
                detector = kind()
                for value in values:
                    detector.update(value)

            found[f"river {version('river')}, {name}"] = rates(len(values), int(sys.argv[2]), run)
    report(found)


if __name__ == "__main__":
    main()
