"""A GPU, and the MIG instances that it is divided into."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import pynvml

from tidegauge.metric import Attributes
from tidegauge.scrapers import activity, clocks, faults, links, memory, mig, power
from tidegauge.scrapers.family import Sample
from tidegauge.scrapers.gpm import Gpm
from tidegauge.scrapers.models import Model, Models
from tidegauge.scrapers.processes import CALLS, Processes, ProcessUtilization
from tidegauge.scrapers.reading import LOST, Reading

log = logging.getLogger(__name__)

STATES = ("ok", "degraded", "failed")


class Terms(NamedTuple):
    """What all GPUs are read by. `name` replaces the GPUs' own names, where what is read is no GPU."""

    models: Models
    max_processes: int
    driver_version: str = ""
    name: str = ""


class Device:
    """What answers to a handle: the readings that it may have, and the model known to run on it."""

    def __init__(
        self, handle: Any, identity: Attributes, model: Model | None, readings: Iterable[Reading]
    ) -> None:
        self.handle = handle
        self.attributes: Attributes = identity + (() if model is None else model.attributes())
        self._identity = identity
        self._model = model
        self._readings = tuple(readings)

    def read(self) -> tuple[list[Sample], str]:
        """All that it supports, and its state.

        Raises:
            pynvml.NVMLError: one of LOST, where it cannot be read any more.
        """
        began = time.perf_counter()
        samples: list[Sample] = []
        state = "ok"
        for reading in self._readings:
            try:
                samples += reading(self.handle)
            except LOST:
                raise
            except pynvml.NVMLError as error:
                log.debug("%s: %s", self.attributes, error)
                state = "degraded"
        unsupported = sum(reading.unsupported for reading in self._readings)
        samples.append(Sample("tidegauge.gpu.unsupported", (), float(unsupported)))
        samples.append(Sample("tidegauge.gpu.poll.duration", (), time.perf_counter() - began))
        if self._model is not None:
            attributes = (*self._model.attributes(), ("source", "setting"))
            samples.append(Sample("hw.gpu.model", attributes, 1.0))
        return [self._whole(sample) for sample in samples], state

    def _whole(self, sample: Sample) -> Sample:
        # A process may tell another model than the setting: its own counts.
        names_model = any(key == "model" for key, _ in sample.attributes)
        attributes = self._identity if names_model else self.attributes
        return sample._replace(attributes=attributes + sample.attributes)


class Gpu:
    """One GPU of an open NVML session, known by its UUID because indices change."""

    def __init__(self, handle: Any, index: int, terms: Terms) -> None:
        """Raises pynvml.NVMLError where the GPU does not answer."""
        self._terms = terms
        self._instances: dict[str, tuple[Device, Gpm]] = {}
        self.uuid: str = pynvml.nvmlDeviceGetUUID(handle)
        self._gpm = Gpm()
        self._device = Device(
            handle,
            self._identity(handle, self.uuid),
            terms.models.of_gpu(self.uuid, index),
            (
                *activity.readings(),
                *memory.readings(),
                *memory.mappings(),
                *power.readings(),
                *clocks.readings(),
                *faults.readings(),
                *links.readings(),
                *self._processes(),
                Reading(self._gpm),
            ),
        )

    @property
    def handle(self) -> Any:
        """NVML's handle, for as long as the session is open."""
        return self._device.handle

    @property
    def attributes(self) -> Attributes:
        """What all its series carry."""
        return self._device.attributes

    def read(self) -> list[Sample]:
        """All that it and its instances support, with their states.

        Raises:
            pynvml.NVMLError: one of LOST, where it cannot be read any more.
        """
        samples, state = self._device.read()
        try:
            divided = mig.enabled(self.handle)
            self._list_instances(divided=bool(divided))
        except LOST:
            raise
        except pynvml.NVMLError as error:
            log.debug("GPU %s: MIG: %s", self.uuid, error)
            state = "degraded"
        else:
            if divided is not None:
                samples.append(Sample("hw.gpu.mig.enabled", self._device.attributes, float(divided)))
        for instance, _ in self._instances.values():
            its, its_state = instance.read()
            samples += its + self._status(instance.attributes, its_state)
        return samples + self.status(state)

    def status(self, present: str) -> list[Sample]:
        """One sample for each of STATES."""
        return self._status(self._device.attributes, present)

    def close(self) -> None:
        """Give back what NVML keeps for it, while NVML is open."""
        self._gpm.close()
        for _, gpm in self._instances.values():
            gpm.close()
        self._instances.clear()

    def _status(self, attributes: Attributes, present: str) -> list[Sample]:
        # The driver's version stands here alone, so that an upgrade does not rename every series.
        identity = (*attributes, ("hw.driver_version", self._terms.driver_version))
        return [
            Sample("hw.status", (*identity, ("hw.state", state)), float(state == present)) for state in STATES
        ]

    def _identity(self, handle: Any, uuid: str) -> Attributes:
        return (
            ("hw.id", uuid),
            ("hw.name", self._terms.name or pynvml.nvmlDeviceGetName(handle)),
            ("hw.type", "gpu"),
            ("hw.vendor", "NVIDIA"),
        )

    def _processes(self) -> tuple[Reading, ...]:
        limit = self._terms.max_processes
        if not limit:
            return ()
        listed = Reading(*(Processes(call, self._terms.models, limit) for call in CALLS))
        return listed, Reading(ProcessUtilization(limit))

    def _list_instances(self, *, divided: bool) -> None:
        present: dict[str, Any] = {}
        if divided:
            for handle in mig.instances(self.handle):
                present[pynvml.nvmlDeviceGetUUID(handle)] = handle
        for uuid in self._instances.keys() - present.keys():
            self._instances.pop(uuid)[1].close()
        for uuid, handle in present.items():
            if uuid in self._instances:
                self._instances[uuid][0].handle = handle
            else:
                self._instances[uuid] = self._instance(handle, uuid)

    def _instance(self, handle: Any, uuid: str) -> tuple[Device, Gpm]:
        number = pynvml.nvmlDeviceGetGpuInstanceId(handle)
        gpm = Gpm(self.handle, number)
        identity = (
            *self._identity(handle, uuid),
            ("hw.parent", self.uuid),
            ("hw.gpu.mig.instance", str(number)),
        )
        # An instance has no utilisation but GPM's, and its processes are listed, not timed.
        processes = self._processes()[:1]
        readings = (*memory.readings(), *processes, Reading(gpm))
        return Device(handle, identity, self._terms.models.of_uuid(uuid), readings), gpm
