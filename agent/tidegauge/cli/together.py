"""What a snapshot says of all features together, in words."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

from tidegauge.backtest.wording import figure
from tidegauge.cli.seen import Seen

_REASONS = {
    "few_rows": "the window has fewer rows than drift.min_rows",
    "no_sample": "the reference has no rows to compare with: build it anew",
}


def together(seen: Seen) -> Iterator[tuple[str, str]]:
    """What is spoken of, and a sentence on it."""
    statistics = {at["statistic"]: value for at, value in seen.numbers("model.drift.statistic")}
    usual = {at["statistic"]: value for at, value in seen.numbers("model.drift.null_quantile")}
    for _, verdict in seen.numbers("model.drifted"):
        word = "drifted" if verdict == 1 else "steady"
        yield (
            "all features together",
            f"{word}; a classifier tells window from reference with an AUC of "
            + (
                f"{figure(statistics.get('domain_auc', math.nan))}, without drift below "
                f"{figure(usual.get('domain_auc', math.nan))} in 95 %"
            ),
        )
    for at, _ in seen.numbers("model.drift.unjudged"):
        yield "all features together", f"not judged: {_REASONS.get(at['reason'], at['reason'])}"
    members: defaultdict[str, list[str]] = defaultdict(list)
    for at, _ in seen.numbers("feature.drift.group"):
        members[at["group"]].append(at["feature"])
    for group in members.values():
        if len(group) > 1:
            yield "drift as one", ", ".join(group)
