"""`tidegauge`, and `python -m tidegauge`."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

import click

# Before numpy is there: its BLAS would have a thread for each core of the machine, which wait for each other
# busily, and a sidecar has a part of a core.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from tidegauge.cli import root


def main() -> None:
    """Run the command line; the only place that exits."""
    # To PID 1 of a container a signal without a handler is not delivered: one that comes before the agent
    # is ready would be lost, and the start that was called off last until SIGKILL.
    signal.signal(signal.SIGTERM, _terminated)
    try:
        sys.exit(root.commands(standalone_mode=False) or 0)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)


def _terminated(number: int, _: FrameType | None) -> None:
    # At once, as without a handler: an exception would be lost where it is raised in a callback or a
    # finaliser, of which imports have many.
    os._exit(128 + number)


if __name__ == "__main__":
    main()
