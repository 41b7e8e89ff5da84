"""`tidegauge`, and `python -m tidegauge`."""

from __future__ import annotations

import sys

import click

from tidegauge.cli import root


def main() -> None:
    """Run the command line; the only place that exits."""
    try:
        sys.exit(root.commands(standalone_mode=False) or 0)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
