"""`tidegauge generate`: rules for Prometheus and dashboards for Grafana."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from tidegauge.generate.plan import Plan, Watched
    from tidegauge.profile import Embedding, Profile, Reference

Command = TypeVar("Command", bound=Callable[..., Any])

_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)
_POSITIVE = click.FloatRange(min=0, min_open=True)


class _Seconds(click.ParamType):  # type: ignore[type-arg] # older click's takes none
    """A duration as in the configuration, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> float:
        from tidegauge.units import Duration

        try:
            return float(Duration(value))
        except ValueError as error:
            self.fail(str(error), param, context)


def _sources(command: Command) -> Command:
    """Where models and their columns come from, and where the files go."""
    options = (
        click.option("--config", type=click.Path(path_type=Path), help="The agent's: drift and references."),
        click.option(
            "--reference", "paths", type=click.Path(path_type=Path), multiple=True, help="A model's columns."
        ),
        click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def generate() -> None:
    """Make alerting rules and dashboards for one's own models and objectives."""


@generate.command()
@_sources
@click.option(
    "--feature", "features", multiple=True, metavar="NAME", help="A rule for this one, not for all."
)
@click.option("--drift-score", type=_POSITIVE, default=0.3, show_default=True, help="Of FeatureDriftHigh.")
@click.option(
    "--prediction-change", type=_POSITIVE, default=0.2, show_default=True, help="Of the hourly mean."
)
@click.option("--mean-latency", type=_Seconds(), default="500ms", show_default=True)
@click.option("--latency", type=_Seconds(), default="500ms", show_default=True, help="That answers may take.")
@click.option("--latency-objective", type=_SHARE, default=0.99, show_default=True, help="Share within it.")
@click.option("--error-objective", type=_SHARE, default=0.999, show_default=True, help="Share without error.")
@click.option("--gpu-celsius", type=_POSITIVE, default=87, show_default=True)
@click.option("--gpu-memory", type=_SHARE, default=0.97, show_default=True, help="Share in use.")
@click.option("--runbooks", metavar="URL", help="Where the alerts' pages are; else docs/runbooks.")
@click.option("--operator", is_flag=True, help="PrometheusRules for the Prometheus operator.")
def rules(
    config: Path | None,
    paths: tuple[Path, ...],
    output: Path,
    mean_latency: float,
    latency: float,
    drift_score: float,
    runbooks: str | None,
    operator: bool,
    **others: Any,
) -> None:
    """Write recording and alerting rules to a folder, a file for each subject.

    Without options they are the files that come in deploy/rules. A configuration gives the drift's
    threshold and rows, and with its references, as with --reference, each model gets rules of its
    own, and one that tells when it is silent. Latency counts at the bounds of the classic buckets,
    powers of the square root of two: 500ms is one, 300ms is taken as 354 ms.

    \b
    Examples:
      tidegauge generate rules -o rules/
      tidegauge generate rules --config agent.yaml --runbooks https://wiki.example.com/runbooks -o rules/
      tidegauge generate rules --latency 250ms --latency-objective 0.995 --error-objective 0.99 -o rules/
      tidegauge generate rules --reference fraud.parquet --feature transaction_amount -o rules/
      tidegauge generate rules --operator -o manifests/
    """
    from tidegauge.generate.rule import RUNBOOKS
    from tidegauge.generate.rules import rule_files

    plan = _plan(config, paths, score=drift_score, mean_latency_s=mean_latency, latency_s=latency, **others)
    try:
        files = rule_files(plan)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--latency") from error
    base = runbooks or RUNBOOKS
    written = {
        f"{name}.yaml": one.manifest(f"tidegauge-{name.removeprefix('tidegauge')}".rstrip("-"), base)
        if operator
        else one.text(base)
        for name, one in files.items()
    }
    _write(output, written)


@generate.command()
@_sources
@click.option("--feature", "features", multiple=True, metavar="NAME", help="To choose from.")
@click.option("--latency", type=_Seconds(), default="500ms", show_default=True, help="The line to draw.")
@click.option("--latency-objective", type=_SHARE, default=0.99, show_default=True)
@click.option("--error-objective", type=_SHARE, default=0.999, show_default=True)
@click.option("--gpu-celsius", type=_POSITIVE, default=87, show_default=True)
@click.option("--gpu-memory", type=_SHARE, default=0.97, show_default=True)
def dashboards(
    config: Path | None, paths: tuple[Path, ...], output: Path, latency: float, **others: Any
) -> None:
    """Write Grafana dashboards to a folder: fleet, model, feature, output, GPU and agent.

    Without options they are the files that come in deploy/grafana, where models, features and GPUs
    are chosen from what Prometheus has. With a configuration's references, or --reference, they are
    chosen from those, whether rows have come or not. Grafana imports the files, or takes them from
    a provisioned folder; the data source is chosen on the page.

    \b
    Examples:
      tidegauge generate dashboards -o dashboards/
      tidegauge generate dashboards --config agent.yaml --latency 250ms -o dashboards/
      tidegauge generate dashboards --reference fraud.parquet -o dashboards/
    """
    from tidegauge.generate.dashboards import dashboards as made

    plan = _plan(config, paths, latency_s=latency, **others)
    _write(output, {f"{name}.json": one.text() for name, one in made(plan).items()})


def _plan(config: Path | None, paths: Iterable[Path], **others: Any) -> Plan:
    """What the configuration, the references and the options say."""
    from tidegauge import config_file
    from tidegauge.config import ConfigError
    from tidegauge.generate.plan import Plan

    try:
        settings = config_file.load(config, {})
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    models = [
        _watched(Path(one.path), {"model": one.model, "version": one.version}) for one in settings.references
    ]
    models += [_watched(path, {}) for path in paths]
    return Plan(
        psi=settings.drift.threshold,
        min_rows=settings.drift.min_rows,
        stale_s=max(60.0, 3 * settings.pipeline.publish_interval),
        models=tuple(models),
        **others,
    )


def _watched(path: Path, names: Mapping[str, str]) -> Watched:
    """A model by its reference, which the configuration may name otherwise."""
    from tidegauge.generate.plan import Watched
    from tidegauge.profile import ProfileError, Reference

    try:
        reference = Reference.load(path)
    except ProfileError as error:
        raise click.ClickException(str(error)) from error
    told = {"model": reference.model, "version": reference.version, **names}
    return Watched(**told, features=_columns(reference, True), outputs=_columns(reference, False))


def _columns(reference: Reference, features: bool) -> tuple[str, ...]:
    from tidegauge.layout import Role

    every: tuple[Profile | Embedding, ...] = (*reference.profiles, *reference.embeddings)
    return tuple(one.name for one in every if (one.role is Role.FEATURE) is features)


def _write(folder: Path, files: Mapping[str, str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{folder} cannot be written: {error.strerror}") from error
    click.echo(f"{folder}: {', '.join(files)}")
