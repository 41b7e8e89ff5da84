"""`python -m bench [--quick]`: measures everything and prints one table."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path

from rich.console import Console

import tidegauge
from bench.figure import Figure, show


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Figures beside peers, in one run.")
    parser.add_argument("--quick", action="store_true", help="one round each, in about a minute")
    parser.add_argument("--only", choices=PARTS, help="one part of it")
    arguments = parser.parse_args()
    console, progress = Console(width=180), Console(stderr=True)
    console.print(machine())
    figures: list[Figure] = []
    remarks: list[str] = []
    for part in [arguments.only] if arguments.only else PARTS:
        progress.print(f"measuring: {part}")
        for found in PARTS[part](arguments.quick):
            if isinstance(found, Figure):
                figures.append(found)
            else:
                remarks.append(found)
    console.print("medians, with the range where repeated; core-s: CPU seconds of the whole agent process\n")
    show(figures, console)
    for remark in remarks:
        console.print(f"not measured: {remark}")


def part(name: str, **options: tuple[int, int]) -> Callable[[bool], Iterable[Figure | str]]:
    """A module's `measure`, imported when its turn comes. Options are (when quick, when not)."""

    def measure(quick: bool) -> Iterable[Figure | str]:
        chosen = {key: short if quick else full for key, (short, full) in options.items()}
        figures: Iterable[Figure | str] = import_module(f"bench.{name}").measure(**chosen)
        return figures

    return measure


PARTS: dict[str, Callable[[bool], Iterable[Figure | str]]] = {
    "startup": part("startup", rounds=(1, 5), seconds=(5, 10)),
    "scanner": part("scanner", rounds=(1, 5)),
    "baseline": part("baseline", rounds=(1, 7)),
    "metrics": part("metrics", rounds=(1, 5)),
    "fold": part("fold", rounds=(1, 5)),
    "records": part("records", rounds=(1, 5), batches=(500, 1500)),
    "memory": part("memory", seconds=(15, 60)),
    "detectors": part("detectors", rounds=(1, 5)),
    "spans": part("spans", rounds=(1, 5), requests=(1000, 3000)),
    "relay": part("relay", rounds=(1, 5), requests=(1000, 1000)),
    "export": part("export", rounds=(1, 5), seconds=(5, 5)),
    "forward": part("forward", rounds=(1, 5)),
    "scrape": part("scrape", rounds=(1, 3), seconds=(5, 10)),
    "state": part("state", rounds=(1, 5), models=(4, 20)),
}


def machine() -> str:
    """What all of it ran on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return ", ".join(
        [
            models[0] if models else platform.machine(),
            f"{os.cpu_count()} cores",
            f"{platform.system()} {platform.release()}",
            f"Python {platform.python_version()}",
            f"tidegauge {tidegauge.__version__}",
            f"load {os.getloadavg()[0]:.1f}",
        ]
    )


if __name__ == "__main__":
    main()
