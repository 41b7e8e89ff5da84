"""`tidegauge backtest`: what would have alarmed, when and why."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import click
import msgspec
import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tidegauge.backtest import plots
from tidegauge.backtest.history import Clock, History, HistoryError, Survey
from tidegauge.backtest.page import Trial, page
from tidegauge.backtest.replay import Evaluation, Replay, columns, replay
from tidegauge.backtest.timeline import ALARM, Episode, Timeline
from tidegauge.backtest.wording import figure, percent, when, why
from tidegauge.cli import sources
from tidegauge.cli.building import progress_bar
from tidegauge.config import Drift as Settings
from tidegauge.layout import LayoutError
from tidegauge.processors.drift.report import family
from tidegauge.profile import ProfileError, Reference
from tidegauge.units import duration_text


def run_backtest(
    data: Sequence[str],
    reference: Path,
    settings: Settings,
    *,
    clock: Clock,
    thresholds: Sequence[float],
    ignore: Sequence[str],
    keys: bool,
    output: Path | None,
    form: str,
) -> None:
    """Replay the files and tell what came of it, on the terminal and in `output`.

    Raises:
        click.ClickException: for files that cannot be found, read or put in order.
    """
    try:
        known = Reference.load(reference)
        found = sources.find(data, keys=keys)
        made = _Backtest(known, settings, thresholds or [settings.threshold])
        with ExitStack() as stack:
            writer = None
            if output is not None:
                output.mkdir(parents=True, exist_ok=True)
                ending = "csv" if form == "csv" else "jsonl"
                writer = stack.enter_context((output / f"evaluations.{ending}").open("w", newline=""))
            made.play(found, clock, ignore, _writer(writer, form))
    except (ProfileError, HistoryError) as error:
        raise click.ClickException(str(error)) from error
    except LayoutError as error:
        raise click.ClickException(f"{error}; or leave it out with --ignore COLUMN") from error
    except OSError as error:
        raise click.ClickException(f"{error.filename or output}: {error.strerror or error}") from error
    {"table": made.table, "json": made.json_lines, "csv": made.comma_separated}[form]()
    if output is not None:
        made.save(output)


class _Backtest:
    """A backtest: its trials, and how they are told."""

    def __init__(self, reference: Reference, settings: Settings, thresholds: Sequence[float]) -> None:
        # Verdicts and alarms are those of `drift.window`; all else would only be computed.
        alone = msgspec.structs.replace(
            settings,
            other_windows=(),
            other_baselines=(),
            detectors=(),
            slices=msgspec.structs.replace(settings.slices, max_columns=0),
            multivariate=msgspec.structs.replace(settings.multivariate, sample_rows=0),
        )
        self._reference, self._settings = reference, alone
        self._replays = [
            Replay(reference, msgspec.structs.replace(alone, threshold=one)) for one in thresholds
        ]
        watched = columns(reference, alone)
        embeddings = frozenset((family(one.role)[0], one.name) for one in reference.embeddings)
        mmd = settings.multivariate.mmd_threshold
        self._trials = [Trial(one, Timeline(watched), mmd, embeddings) for one in thresholds]
        self._survey: Survey | None = None

    def play(
        self,
        found: Sequence[sources.Source],
        clock: Clock,
        ignore: Sequence[str],
        write: Callable[[float, Evaluation], None],
    ) -> None:
        def read(only: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
            for source in found:
                yield from source.batches(only)

        first = next(read(None), None)
        if first is None:
            raise HistoryError("there are no rows")
        history = History(read, clock, ignore)
        with progress_bar() as progress:
            task = progress.add_task("looking at the times", total=None, detail="")
            self._survey = survey = history.survey(first.schema)
            progress.update(
                task,
                description="replaying" if survey.is_ordered else "sorting and replaying",
                total=survey.last_ns - survey.first_ns,
            )
            for moments in replay(history.batches(survey), self._replays):
                for trial, moment in zip(self._trials, moments, strict=True):
                    trial.timeline.add(moment)
                    for evaluation in moment.evaluations:
                        write(trial.threshold, evaluation)
                now = moments[0].time_ns
                progress.update(task, completed=now - survey.first_ns, detail=when(now))
        self._warn()

    def _warn(self) -> None:
        assert self._survey is not None
        left_out = dict(self._replays[0].left_out) | {"without a time": self._survey.untimed}
        for reason, rows in left_out.items():
            if rows:
                click.echo(f"Warning: {rows:,} rows were left out: {reason}", err=True)
        if not any(one.judged for one in self._trials[0].timeline.summaries()):
            click.echo(
                "Warning: no column was ever judged. A window needs "
                f"{self._settings.min_rows} rows (drift.min_rows, drift.window) and the reference's columns",
                err=True,
            )

    def about(self) -> list[str]:
        """What was replayed, and by which settings."""
        survey, settings = self._survey, self._settings
        assert survey is not None
        pane = duration_text(settings.window / settings.panes)
        return [
            f"{survey.rows:,} rows from {when(survey.first_ns)} to {when(survey.last_ns)}, "
            f"looked at {self._trials[0].timeline.looks:,} times",
            f"window {duration_text(settings.window)}, panes of {pane}, at least {settings.min_rows} rows, "
            f"significance {figure(settings.significance)}, at most one false alarm in "
            f"{duration_text(settings.false_alarm_interval)}",
            f"reference of {self._reference.rows:,} rows",
        ]

    def table(self) -> None:
        console = Console()
        for line in self.about():
            console.print(line, soft_wrap=True, style="dim", highlight=False)
        for trial in self._trials:
            console.print(_table(trial))
        if len(self._trials) > 1:
            console.print(_compared(self._trials))
        for summary in self._trials[0].timeline.summaries():
            if summary.alarms and summary.why:
                text = f"{summary.column[1]} from {when(summary.why.first.time_ns)}: {why(summary.why)}"
                console.print(text, soft_wrap=True, markup=False, highlight=False)

    def json_lines(self) -> None:
        for row in self._rows():
            click.echo(json.dumps(row, ensure_ascii=False))

    def comma_separated(self) -> None:
        writer = csv.writer(sys.stdout)
        writer.writerow(_FIELDS)
        for row in self._rows():
            moved = ";".join(f"{one['bin']}={one['window']:.4g}" for one in row["moved"])
            writer.writerow(["" if row[name] is None else row[name] for name in _FIELDS[:-1]] + [moved])

    def _rows(self) -> Iterator[dict[str, Any]]:
        for trial in self._trials:
            for episode in trial.timeline.episodes:
                yield _row(trial.threshold, self._reference, episode)

    def save(self, folder: Path) -> None:
        title = f"Backtest of {self._reference.model} {self._reference.version}".rstrip()
        (folder / "report.html").write_text(page(title, self.about(), self._trials), encoding="utf-8")
        made = ["report.html", "the evaluations"]
        try:
            made.append(f"{plots.draw(folder, self._trials)} PNGs")
        except ImportError:
            click.echo("Hint: PNGs need matplotlib: pip install 'tidegauge[plots]'", err=True)
        click.echo(f"{folder}: {', '.join(made)}", err=True)


def _table(trial: Trial) -> Table:
    table = Table(title=f"threshold {figure(trial.threshold)}, worst first")
    table.add_column("column", overflow="fold")
    table.add_column("first alarm", no_wrap=True, min_width=20)
    for heading in ("alarms", "in\nalarm", "drifted", "judged", "peak\nscore"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in trial.timeline.summaries():
        start = when(one.why.first.time_ns) if one.alarms and one.why else ""
        numbers = (percent(one.alarming), percent(one.drifted), percent(one.judged), figure(one.peak_score))
        style = "red" if one.alarms else "yellow" if one.drifted else ""
        table.add_row(Text(one.column[1]), start, str(one.alarms), *numbers, style=style)
    return table


def _compared(trials: Sequence[Trial]) -> Table:
    table = Table(title="thresholds compared")
    for heading in ("threshold", "columns in alarm", "alarms", "in alarm"):
        table.add_column(heading, justify="right")
    table.add_column("first alarm", no_wrap=True, min_width=20)
    for threshold, timeline, *_ in trials:
        alarms = [one for one in timeline.episodes if one.what == ALARM]
        start = when(min(one.first.time_ns for one in alarms)) if alarms else "none"
        named = {(one.first.kind, one.first.column) for one in alarms}
        numbers = (str(len(named)), str(len(alarms)), percent(timeline.alarming))
        table.add_row(figure(threshold), *numbers, start)
    return table


_FIELDS = (
    *("threshold", "model", "version", "kind", "column", "what", "begin", "end", "evaluations", "statistic"),
    *("score", "peak_score", "null_quantile", "p_value", "rows", "missing", "moved"),
)


def _row(threshold: float, reference: Reference, episode: Episode) -> dict[str, Any]:
    one = episode.first
    values = (
        *(threshold, reference.model, reference.version, one.kind, one.column, episode.what),
        when(one.time_ns),
        None if episode.end_ns is None else when(episode.end_ns),
        episode.evaluations,
        one.statistic,
        *map(_number, (one.score, episode.peak, one.null_quantile, one.p_value, one.rows, one.missing)),
        [moved._asdict() for moved in episode.moved],
    )
    return dict(zip(_FIELDS, values, strict=True))


def _writer(file: IO[str] | None, form: str) -> Callable[[float, Evaluation], None]:
    """What writes each evaluation down as it comes."""
    names = ("threshold", "time", *Evaluation._fields[1:])
    if file is None:
        return lambda threshold, evaluation: None
    if form == "csv":
        writer = csv.writer(file)
        writer.writerow(names)
        return lambda threshold, one: writer.writerow(_values(threshold, one))
    return lambda threshold, one: print(
        json.dumps(dict(zip(names, _values(threshold, one), strict=True)), ensure_ascii=False), file=file
    )


def _values(threshold: float, one: Evaluation) -> list[Any]:
    return [threshold, when(one.time_ns), *map(_number, one[1:])]


def _number(value: Any) -> Any:
    """JSON has no word for NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
