"""SIGTERM before the agent is there."""

from __future__ import annotations

import signal
import subprocess
import sys

# A command that takes long, and says when it has begun.
SLOW = """
import time
from tidegauge import __main__
from tidegauge.cli import root

def commands(standalone_mode):
    print("begun", flush=True)
    time.sleep(60)

root.commands = commands
__main__.main()
"""


def test_a_command_ends_by_sigterm_with_a_status_and_not_by_the_kernel() -> None:
    """As PID 1 it would not end at all by the kernel."""
    with subprocess.Popen([sys.executable, "-c", SLOW], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 128 + signal.SIGTERM
