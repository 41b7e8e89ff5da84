"""Makes a recording of this machine's NVML."""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable
from importlib.metadata import version

from tidegauge import __version__
from tidegauge.config import IdentityAttributes
from tidegauge.scrapers import nvidia_smi, table
from tidegauge.scrapers.gpu import Terms
from tidegauge.scrapers.models import Models
from tidegauge.scrapers.nvidia_smi import Difference
from tidegauge.scrapers.nvml import LIBRARY
from tidegauge.scrapers.recorder import Recorder
from tidegauge.scrapers.recording import Origin, Recording
from tidegauge.scrapers.session import Session

STUB = "tidegauge_nvml_stub"
"""A symbol that only the C library of the tests has: what it answers is no GPU's."""
ABOUT: dict[Origin, str] = {
    "machine": "Answers of a GPU's driver.",
    "stub": "Made up by the C library of Tidegauge's tests. No GPU has ever answered this.",
}
PROCESSES = 64


def record(polls: int, interval_s: float, compared: Callable[[list[Difference]], None]) -> Recording:
    """Poll as the agent does, and keep all that NVML answers; beside each poll nvidia-smi is asked.

    Raises:
        OSError: without the library.
        pynvml.NVMLError: without a driver or a GPU.
    """
    library = ctypes.CDLL(LIBRARY)
    recorder = Recorder(library)
    table.install(recorder)
    told = []
    terms = Terms(Models((), IdentityAttributes()), PROCESSES)
    with contextlib.closing(Session(terms, lambda _metrics: None)) as session:
        for poll in range(polls):
            if poll:
                time.sleep(interval_s)
            metrics = session.poll()
            answer = nvidia_smi.ask()
            told.append(answer)
            compared(list(nvidia_smi.compare(answer, metrics)))
    origin: Origin = "stub" if hasattr(library, STUB) else "machine"
    return Recording(
        origin=origin,
        about=ABOUT[origin],
        agent=__version__,
        bindings=version("nvidia-ml-py"),
        polls=polls,
        interval_s=interval_s,
        calls=recorder.calls,
        nvidia_smi=told if any(told) else [],
    )
