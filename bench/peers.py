"""The peers' own environment, and what runs in it.

Their pins conflict with the agent's, so they live in the tools' cache: `python -m bench` makes the
environment on its first run, and goes on without where it cannot be had.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tidegauge-tools"
_QUIET = {
    # Neither is to report its use to anyone, and both are to use one thread.
    "NML_DISABLE_USAGE_LOGGING": "1",
    "WHYLOGS_NO_ANALYTICS": "True",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
}


class MissingError(Exception):
    """The peers cannot be had, and why."""


def environment() -> Path:
    """The Python of the peers' environment, which is made where it is not there yet.

    Raises:
        MissingError: with the reason.
    """
    pins = _HERE / "peers.txt"
    folder = _CACHE / f"peers-{hashlib.sha256(pins.read_bytes()).hexdigest()[:8]}"
    python = folder / "bin" / "python"
    if (folder / "complete").exists():
        return python
    base = sys.executable if sys.version_info[:2] == (3, 11) else shutil.which("python3.11")
    if base is None:
        raise MissingError("NannyML and whylogs need Python 3.11, which is not on this machine")
    print(f"making the peers' environment in {folder}: a minute, about 1 GB", file=sys.stderr)
    install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
    for command in ([base, "-m", "venv", "--clear", str(folder)], [*install, "-r", str(pins)]):
        done = subprocess.run(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        if done.returncode:
            raise MissingError(f"NannyML and whylogs do not install: {done.stdout.strip()[-300:]}")
    (folder / "complete").touch()
    return python


def measure(batches: Path, rounds: int) -> dict[str, Any]:
    """Values per CPU second of each peer over the batches: `{name and version: [one per round]}`.

    Raises:
        MissingError: with the reason.
    """
    done = subprocess.run(
        [str(environment()), str(_HERE / "peer_drift.py"), str(batches), str(rounds)],
        env=os.environ | _QUIET,
        text=True,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise MissingError(f"NannyML and whylogs do not run: {done.stderr.strip()[-300:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
