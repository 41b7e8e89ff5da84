"""NVML, opened and read through its own ctypes bindings."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

import pynvml

from tidegauge.metric import Metric
from tidegauge.scrapers.family import Sample, as_metrics
from tidegauge.scrapers.gpu import Gpu, Terms
from tidegauge.scrapers.reading import LOST
from tidegauge.scrapers.watch import XidWatch
from tidegauge.scrapers.xid import Xids

log = logging.getLogger(__name__)

REOPEN_POLLS = 6
"""While a GPU is lost, NVML is opened anew at every sixth poll: its old handle may never answer again."""


class Session:
    """NVML, open, and every GPU that it has listed so far."""

    def __init__(self, terms: Terms, tell_xids: Callable[[tuple[Metric, ...]], None]) -> None:
        """`tell_xids` is given the XID metrics when they change, on whichever thread knows it.

        Raises pynvml.NVMLError without a library, a driver or a GPU.
        """
        self._terms = terms
        self._tell_xids = tell_xids
        self._xids = Xids()
        self._watch: XidWatch | None = None
        self._known: dict[str, Gpu] = {}
        self._listed: set[str] = set()
        self._silent: set[int] = set()
        self._lost: set[str] = set()
        self._polls_since_open = 0
        self._closed = ""
        self._open()

    def poll(self) -> tuple[Metric, ...]:
        """One reading of every GPU; of a lost one its state alone."""
        if (self._lost or self._silent) and self._polls_since_open >= REOPEN_POLLS:
            self._reopen()
        self._polls_since_open += 1
        lost: set[str] = set()
        samples: list[Sample] = []
        for uuid, gpu in self._known.items():
            try:
                samples += self._read(gpu)
            except LOST as error:
                lost.add(uuid)
                samples += gpu.status("failed")
                if uuid not in self._lost:
                    log.warning("GPU %s is lost: %s", uuid, error)
        for uuid in self._lost - lost:
            log.info("GPU %s is back", uuid)
        self._lost = lost
        return as_metrics(samples)

    def close(self) -> None:
        """Close NVML; no GPU is listed any more."""
        unused = self._watch is None or self._watch.close()
        self._watch = None
        for uuid in self._listed:
            self._known[uuid].close()
        self._listed.clear()
        if not unused:
            log.warning("NVML stays open: a wait for XID errors has not returned")
            return
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()

    def _read(self, gpu: Gpu) -> list[Sample]:
        if gpu.uuid not in self._listed:
            raise pynvml.NVMLError_GpuNotFound
        return gpu.read()

    def _open(self) -> None:
        self._polls_since_open = 0
        pynvml.nvmlInit()
        terms = self._terms._replace(driver_version=pynvml.nvmlSystemGetDriverVersion())
        count = pynvml.nvmlDeviceGetCount()
        silent = set()
        for index in range(count):
            try:
                gpu = Gpu(pynvml.nvmlDeviceGetHandleByIndex(index), index, terms)
            except pynvml.NVMLError as error:
                silent.add(index)
                if index not in self._silent:
                    log.warning("GPU %d does not answer: %s", index, error)
            else:
                self._known[gpu.uuid] = gpu
                self._listed.add(gpu.uuid)
        self._silent = silent
        if not count:
            self.close()
            raise pynvml.NVMLError_GpuNotFound
        self._watch_xids()

    def _watch_xids(self) -> None:
        gpus = {uuid: self._known[uuid] for uuid in sorted(self._listed)}
        self._watch = XidWatch.start(gpus, self._xids, lambda: self._tell_xids(self._xids.collect()))

    def _reopen(self) -> None:
        self.close()
        why = ""
        try:
            self._open()
        except pynvml.NVMLError_LibRmVersionMismatch as error:
            why = f"{error} The driver was replaced: restart the agent."
        except pynvml.NVMLError as error:
            # A driver that has gone altogether leaves every GPU lost until it is back.
            why = str(error)
        if why and why != self._closed:
            log.warning("NVML does not open again: %s", why)
        self._closed = why
