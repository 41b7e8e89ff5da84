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

_HERE = Path(__file__).parent
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tidegauge-tools"
_QUIET = {
    # None is to report its use to anyone, and all are to use one thread.
    "DO_NOT_TRACK": "1",
    "NML_DISABLE_USAGE_LOGGING": "1",
    "TRANSFORMERS_VERBOSITY": "error",
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
        raise MissingError("the peers need Python 3.11, which is not on this machine")
    print(f"making the peers' environment in {folder}: a minute, about 1.2 GB", file=sys.stderr)
    install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
    for command in ([base, "-m", "venv", "--clear", str(folder)], [*install, "-r", str(pins)]):
        done = subprocess.run(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        if done.returncode:
            raise MissingError(f"the peers do not install: {done.stdout.strip()[-300:]}")
    (folder / "complete").touch()
    return python


def measure(script: str, file: Path, rounds: int) -> dict[str, list[float] | str]:
    """What a script of this folder measures in the peers' environment: `{name and version: [one per round]}`.

    Where a peer does not run, why not is in the place of its figures.

    Raises:
        MissingError: with the reason, where all are missing.
    """
    done = subprocess.run(
        [str(environment()), str(_HERE / script), str(file), str(rounds)],
        env=os.environ | _QUIET,
        text=True,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise MissingError(f"the peers do not run: {done.stderr.strip()[-300:]}")
    found: dict[str, list[float] | str] = json.loads(done.stdout.splitlines()[-1])
    return found
