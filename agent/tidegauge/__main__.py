"""`tidegauge`, and `python -m tidegauge`."""

from __future__ import annotations

import os
import sys

import click

# Before numpy is there: its BLAS would have a thread for each core of the machine, which wait for each other
# busily, and a sidecar has a part of a core.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

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
