"""`tidegauge explain`: why a model is drifted, or is not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from difflib import get_close_matches

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tidegauge.backtest.replay import KEYS, Evaluation, evaluations
from tidegauge.backtest.timeline import Moved, moved, shares
from tidegauge.backtest.wording import figure, moves, percent, when
from tidegauge.cli import slices
from tidegauge.cli.beside import beside
from tidegauge.cli.histograms import side_by_side
from tidegauge.cli.seen import Seen
from tidegauge.cli.together import together
from tidegauge.identity import Identity
from tidegauge.metric import Metric
from tidegauge.snapshot import Snapshot

_REASONS = {
    "few_rows": "the window has fewer values than drift.min_rows",
    "empty_reference": "the reference holds no value of this column",
    "no_reference": "the reference has no such column: build one that has, or leave it out of the records",
    "type_changed": "it is of another type than in the reference",
    "embedding": "embeddings have no bins",
}


def explain(
    snapshot: Snapshot, model: str, version: str | None, feature: str | None, part: str | None = None
) -> None:
    """Print what the snapshot says of a model, or of one of its columns, as a whole or of a slice.

    Raises:
        click.ClickException: where it knows no such model, version, column or slice.
    """
    console = Console()
    for seen in _find(snapshot, model, version):
        found = evaluations(seen.metrics, snapshot.time_ns)
        one = None if feature is None else _named(seen, found, feature)
        _head(console, seen, snapshot)
        if part is not None:
            slices.explain(console, seen.tables, part, feature)
        elif one is None:
            _overview(console, seen, found)
            for what, text in together(seen):
                _say(console, what, text)
            slices.overview(console, seen.tables)
        else:
            _column(console, seen, one)


def _find(snapshot: Snapshot, model: str, version: str | None) -> list[Seen]:
    identities = {
        Identity(*(at.get(name, "") for name in Identity._fields)): None
        for metric in snapshot.metrics
        if metric.name.endswith(".window.rows")
        for at in (dict(point.attributes) for point in metric.points)
    }
    waiting = {
        (at.get("model", ""), at.get("version", ""))
        for metric in snapshot.metrics
        if metric.name.startswith("reference.")
        for at in (dict(point.attributes) for point in metric.points)
    }
    mine = [one for one in identities if one.model == model and version in (None, one.version)]
    if mine:
        return [
            Seen(
                one,
                *(tuple(_of(metric, one) for metric in told) for told in (snapshot.metrics, snapshot.tables)),
            )
            for one in mine
        ]
    versions = sorted({one.version for one in identities if one.model == model})
    if versions:
        raise click.ClickException(f"{model} has no version {version!r}; there are {', '.join(versions)}")
    if any(one == model and version in (None, its) for one, its in waiting):
        raise click.ClickException(f"no row of {model} was received yet that could be compared")
    raise _unknown("model", model, {one.model for one in identities} | {one for one, _ in waiting})


def _unknown(what: str, name: str, known: set[str]) -> click.ClickException:
    near = get_close_matches(name, known, cutoff=0.5) or sorted(known)[:10]
    hint = f"did you mean {' or '.join(near)}?" if near else "no record was received yet"
    return click.ClickException(f"no {what} is called {name!r}; {hint}")


def _of(metric: Metric, identity: Identity) -> Metric:
    """The points of an identity. References have no stage and no data source, and belong to all."""
    whole = dict(identity.attributes())
    keys = ("model", "version") if "reference" in metric.name else Identity._fields
    wanted = {key: whole.get(key) for key in keys}
    mine = tuple(
        point
        for point in metric.points
        if {key: value for key, value in point.attributes if key in wanted}
        == {key: value for key, value in wanted.items() if value is not None}
    )
    return msgspec.structs.replace(metric, points=mine)


def _head(console: Console, seen: Seen, snapshot: Snapshot) -> None:
    name = " ".join(part for part in seen.identity if part)
    alarm = next((value for _, value in seen.numbers("model.drift.alarm")), None)
    state = {None: "learning how much panes vary", 0.0: "no alarm", 1.0: "in alarm"}[alarm]
    rows = next((f"{rows:,.0f} rows, {at['source']}" for at, rows in seen.numbers("reference.rows")), "none")
    _say(console, name, f"{state}; reference of {rows}; seen at {when(snapshot.time_ns)}")
    limits = {at["limit"]: value for at, value in seen.numbers("model.drift.limit")}
    if limits:
        text = "judged from {min_rows:,.0f} rows on; drifted from PSI {threshold:g} on"
        if "mmd_threshold" in limits:
            text += ", embeddings from MMD {mmd_threshold:g} on"
        _say(console, "verdicts", f"{text}, where significant".format(**limits))


def _say(console: Console, what: str, text: str) -> None:
    console.print(f"[bold]{escape(what)}[/]: {escape(text)}", soft_wrap=True, highlight=False)


def _verdict(one: Evaluation) -> str:
    if one.unjudged:
        return "not judged"
    if one.is_alarming:
        return "in alarm"
    return "drifted" if one.is_drifted else "steady"


def _overview(console: Console, seen: Seen, found: Sequence[Evaluation]) -> None:
    table = Table()
    table.add_column("column", overflow="fold", min_width=12)
    table.add_column("verdict", no_wrap=True)
    for heading in ("score", "95 % null", "p", "evidence", "rows"):
        table.add_column(heading, justify="right", no_wrap=True)
    ranked = sorted(found, key=_goodness)
    for one in ranked:
        table.add_row(
            Text(one.column),
            _verdict(one),
            *map(figure, (one.score, one.null_quantile, one.p_value)),
            percent(one.evidence) if math.isfinite(one.evidence) else "",
            f"{one.rows:,.0f}",
            style="red" if one.is_alarming else "yellow" if one.is_drifted else "",
        )
    console.print(table)
    for one in ranked:
        if one.is_drifted or one.is_alarming:
            if most := moves(moved(seen.metrics, one.kind, one.column)):
                _say(console, one.column, f"moved most: {most}")
        elif one.unjudged:
            _say(console, one.column, f"not judged: {_REASONS.get(one.unjudged, one.unjudged)}")
    for name, reason in _skipped(seen).items():
        _say(console, name, f"skipped: {_REASONS.get(reason, reason)}")


def _goodness(one: Evaluation) -> tuple[bool, bool, float]:
    return not one.is_alarming, not one.is_drifted, -one.score if math.isfinite(one.score) else math.inf


def _skipped(seen: Seen) -> dict[str, str]:
    return {
        at[key]: at.get("reason", "")
        for kind, key in KEYS.items()
        for at, _ in seen.numbers(f"{kind}.skipped")
    }


def _named(seen: Seen, found: Sequence[Evaluation], feature: str) -> Evaluation:
    for one in found:
        if one.column == feature:
            return one
    skipped = _skipped(seen)
    if feature in skipped:
        reason = skipped[feature]
        raise click.ClickException(f"{feature} is skipped ({reason}): {_REASONS.get(reason, reason)}")
    raise _unknown("column", feature, {one.column for one in found} | skipped.keys())


def _column(console: Console, seen: Seen, one: Evaluation) -> None:
    _say(console, one.column, "; ".join((_verdict(one), *_sentences(one))))
    if _bins(seen, one, "reference.count"):
        console.print(_histograms(seen, one))
    if unseen := ", ".join(_unseen(seen, one)):
        _say(console, "most frequent of those that the reference lacks", unseen)
    if not one.unjudged:
        console.print(_statistics(seen, one))
    if others := beside(seen, one):
        console.print(others)


def _sentences(one: Evaluation) -> Iterator[str]:
    if one.unjudged:
        yield f"{_REASONS.get(one.unjudged, one.unjudged)} ({one.rows:,.0f} rows)"
    else:
        yield (
            f"{one.statistic.upper()} {figure(one.score)}; without drift it stays below "
            f"{figure(one.null_quantile)} in 95 % of windows of {one.rows:,.0f} rows; p {figure(one.p_value)}"
        )
    if math.isfinite(one.evidence):
        yield f"evidence of drift over time: {percent(one.evidence)} of what makes an alarm"
    if one.missing > 0:
        yield f"{percent(one.missing)} of the rows have no value"


def _unseen(seen: Seen, one: Evaluation) -> Iterator[str]:
    for at, rows in seen.numbers(f"{one.kind}.unseen.category.rows"):
        if at.get(KEYS[one.kind]) == one.column:
            yield f"{at['category']} ({rows:,.0f} rows at least)"


def _histograms(seen: Seen, one: Evaluation) -> Table:
    reference, window = (_bins(seen, one, what) for what in ("reference.count", "window.count"))
    all_shares = {move.bin: move for move in shares(reference, window)}
    shown = [all_shares.get(name) or _only(name, reference) for name in reference]
    return side_by_side(shown, "window", has_parts=bool(all_shares))


def _only(name: str, reference: dict[str, float]) -> Moved:
    """A bin where the window has nothing to compare."""
    return Moved(name, reference[name] / (sum(reference.values()) or 1.0), 0.0, 0.0)


def _bins(seen: Seen, one: Evaluation, what: str) -> dict[str, float]:
    key = KEYS[one.kind]
    return {at["bin"]: value for at, value in seen.numbers(f"{one.kind}.{what}") if at.get(key) == one.column}


def _statistics(seen: Seen, one: Evaluation) -> Table:
    told: dict[str, dict[str, float]] = {}
    for name in ("statistic", "null_quantile", "p_value"):
        for at, value in seen.numbers(f"{one.kind}.drift.{name}"):
            if at.get(KEYS[one.kind]) == one.column and "window" not in at:
                told.setdefault(at["statistic"], {})[name] = value
    table = Table()
    table.add_column("statistic")
    for heading in ("value", "95 % without drift", "p"):
        table.add_column(heading, justify="right")
    for statistic, values in told.items():
        cells = (figure(values.get(name, math.nan)) for name in ("statistic", "null_quantile", "p_value"))
        style = "" if values.get("p_value", 1.0) >= 0.05 else "bold"
        table.add_row(statistic, *cells, style=style)
    return table
