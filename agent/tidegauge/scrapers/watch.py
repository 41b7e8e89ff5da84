"""Waits for XID errors on a thread of its own: a poll that hangs is just when one is likely."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

import pynvml

from tidegauge.scrapers.gpu import Gpu
from tidegauge.scrapers.xid import Xids, kind_of

log = logging.getLogger(__name__)

WAIT_MS = 250
"""How long one wait takes at most, and so how long an end of the watch may take."""
JOIN_S = 3 * WAIT_MS / 1000
XID = pynvml.nvmlEventTypeXidCriticalError


class XidWatch:
    """A subscription to the XID errors of some GPUs, for as long as an NVML session is open."""

    def __init__(self, events: Any, xids: Xids, told: Callable[[], None]) -> None:
        self._events = events
        self._xids = xids
        self._told = told
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nvml-xid", daemon=True)

    @classmethod
    def start(cls, gpus: Mapping[str, Gpu], xids: Xids, told: Callable[[], None]) -> Self | None:
        """Watch GPUs, by UUID; `told` is called here, and on the watch's thread with each error.

        None where none of them can be watched.
        """
        events = None
        watched = []
        for uuid, gpu in gpus.items():
            try:
                if not pynvml.nvmlDeviceGetSupportedEventTypes(gpu.handle) & XID:
                    continue
                events = events or pynvml.nvmlEventSetCreate()
                pynvml.nvmlDeviceRegisterEvents(gpu.handle, XID, events)
            except pynvml.NVMLError as error:
                log.info("GPU %s: XID errors are not told: %s", uuid, error)
            else:
                watched.append(uuid)
        if events is None:
            return None
        if not watched:
            _free(events)
            return None
        for uuid in watched:
            xids.watch(uuid, gpus[uuid].attributes)
        watch = cls(events, xids, told)
        watch._thread.start()
        told()
        return watch

    def close(self) -> bool:
        """End it; False where a wait never came back, so that NVML is still in use."""
        self._stop.set()
        self._thread.join(JOIN_S)
        if self._thread.is_alive():
            return False
        _free(self._events)
        return True

    def _run(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                self._count(pynvml.nvmlEventSetWait_v2(self._events, WAIT_MS))
            except pynvml.NVMLError as error:
                if not isinstance(error, pynvml.NVMLError_Timeout):
                    log.debug("no XID errors for now: %s", error)
                # It may return early (nvml.h), and a lost GPU at once: neither may spin.
                self._stop.wait(max(0.0, WAIT_MS / 1000 - (time.monotonic() - began)))

    def _count(self, event: Any) -> None:
        if event.eventType != XID:
            return
        try:
            uuid = pynvml.nvmlDeviceGetUUID(event.device)
        except pynvml.NVMLError:
            uuid = "unknown"  # a GPU that has just gone from the bus may not tell any more
        self._xids.add(uuid, event.eventData)
        log.warning("GPU %s: XID %d (%s)", uuid, event.eventData, kind_of(event.eventData))
        self._told()


def _free(events: Any) -> None:
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlEventSetFree(events)
