"""Backtests of real data sets with the installed `tidegauge`, and the table of them in docs/backtest.md.

pip install scikit-learn river matplotlib
python examples/backtest/figures.py                 all of them, as a table
python examples/backtest/figures.py cancer_scale    some of them
python examples/backtest/figures.py --reports DIR   keep each report
python examples/backtest/figures.py --write         put the table into docs/backtest.md
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from histories import ALL, History

PAGE = Path(__file__).parents[2] / "docs" / "backtest.md"
BEGIN, END = "<!-- figures: examples/backtest/figures.py -->", "<!-- end of figures -->"
THRESHOLDS = (0.05, 0.1, 0.2)
HEADER = (
    *("history", "rows", "columns", "threshold", "alarms before the change", "columns in alarm after it"),
    "first alarm",
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("names", nargs="*", help="; ".join(one.__name__ for one in ALL))
    options.add_argument("--reports", type=Path, help="folder for the reports")
    options.add_argument("--write", action="store_true", help=f"write the table into {PAGE.name}")
    chosen = options.parse_args()
    rows = [HEADER, ("---",) * len(HEADER)]
    for make in ALL:
        if not chosen.names or make.__name__ in chosen.names:
            history = make()
            with tempfile.TemporaryDirectory() as folder:
                reports = None if chosen.reports is None else chosen.reports / make.__name__
                rows += figures(history, backtest(history, Path(folder), reports))
            print(f"{make.__name__}: done", file=sys.stderr)
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    print(table)
    if chosen.write:
        text = PAGE.read_text()
        start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
        PAGE.write_text(f"{text[:start]}\n\n{table}\n{text[end:]}")


def backtest(history: History, folder: Path, reports: Path | None) -> list[dict[str, Any]]:
    """Every alarm of every threshold, as the command tells it."""
    pq.write_table(history.train, folder / "train.parquet")
    pq.write_table(history.past, folder / "past.parquet", row_group_size=50_000)
    (folder / "agent.yaml").write_text(f"drift: {history.drift or '{}'}\n")
    tidegauge(folder, "reference", "build", "train.parquet", "--model", history.title, "-o", "ref.parquet")
    output = () if reports is None else ("--output", str(reports.resolve()))
    told = tidegauge(
        folder,
        *("backtest", "past.parquet", "--reference", "ref.parquet", "--config", "agent.yaml"),
        *("--threshold", ",".join(map(str, THRESHOLDS)), "--format", "json", *output),
    )
    return [row for line in told.splitlines() if (row := json.loads(line))["what"] == "alarm"]


def figures(history: History, alarms: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A row of the table for each threshold."""
    columns = len(history.train.schema.names) - ("timestamp" in history.train.schema.names)
    found = []
    for threshold in THRESHOLDS:
        mine = [one for one in alarms if one["threshold"] == threshold]
        early = [one for one in mine if history.change_s is None or seconds(one) < history.change_s]
        late = [one for one in mine if one not in early]
        found.append(
            (
                history.title,
                f"{len(history.past):,}",
                str(columns),
                f"{threshold:g}",
                str(len(early)),
                str(len({one["column"] for one in late})) if history.change_s is not None else "",
                first(history, early if history.change_s is None else late),
            )
        )
    return found


def first(history: History, alarms: Sequence[dict[str, Any]]) -> str:
    if not alarms:
        return "none"
    one = min(alarms, key=seconds)
    if history.change_s is None:
        return f"{one['begin']}, {one['column']}"
    return f"{(seconds(one) - history.change_s) / 60:.0f} min after it, {one['column']}"


def seconds(alarm: dict[str, Any]) -> float:
    return datetime.fromisoformat(alarm["begin"]).timestamp()


def tidegauge(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "tidegauge", *arguments]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    main()
