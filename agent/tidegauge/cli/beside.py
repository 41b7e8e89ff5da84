"""What is said of a column besides `drift.window` against its reference: other windows, other baselines."""

from __future__ import annotations

import math

from rich.table import Table

from tidegauge.backtest.replay import KEYS, SCORES, Evaluation
from tidegauge.backtest.wording import figure
from tidegauge.cli.seen import Seen

_KEYS = ("window", "baseline", "reference")


def beside(seen: Seen, one: Evaluation) -> Table | None:
    """Their scores, where there are any."""
    told: dict[str, dict[str, float | str]] = {}
    for name in ("drift.score", "drift.null_quantile", "drift.p_value", "drifted", "drift.unjudged"):
        for at, value in seen.all_numbers(f"{one.kind}.{name}"):
            mine = at.get(KEYS[one.kind]) == one.column and at.get("statistic", SCORES[0]) in SCORES
            if mine and (where := _where(at)):
                told.setdefault(where, {})[name] = at.get("reason", value)
    if not told:
        return None
    table = Table()
    for heading in ("beside", "score", "95 % without drift", "p", "verdict"):
        table.add_column(heading, justify="left" if heading in ("beside", "verdict") else "right")
    for where, values in told.items():
        cells = (values.get(f"drift.{name}", math.nan) for name in ("score", "null_quantile", "p_value"))
        reason = values.get("drift.unjudged")
        verdict = f"not judged: {reason}" if reason else "drifted" if values.get("drifted") == 1 else "steady"
        table.add_row(where, *(figure(float(cell)) for cell in cells), verdict)
    return table


def _where(at: dict[str, str]) -> str:
    """What is compared, empty for `drift.window` with the reference."""
    return ", ".join(f"{key} {at[key]}" for key in _KEYS if key in at)
