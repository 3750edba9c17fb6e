"""Which faults a device has: those that wait for their moment, and those that have begun."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from pytest_devicelab.matrix.specs import FaultSpec, Phase
from pytest_devicelab.virtual.faults.fault import Fault, Lurking, Subject
from pytest_devicelab.virtual.faults.registry import make_fault

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class _Armed:
    spec: FaultSpec
    fault: Fault
    begun: bool = False
    task: asyncio.Task[None] | None = None


class FaultBoard:
    """The faults of one device, by name; a second one of the same name takes the place of the first."""

    def __init__(self, device_id: str, device: Subject) -> None:
        self._device_id = device_id
        self._device = device
        self._armed: dict[str, _Armed] = {}

    def arm(self, spec: FaultSpec) -> None:
        """Let a fault befall the device, at once or when its moment has come."""
        self.clear(spec.fault)
        armed = self._armed[spec.fault] = _Armed(spec=spec, fault=make_fault(spec))
        if spec.during is None:
            self._start(armed)

    def saw(self, phase: Phase) -> None:
        """Take note of what a host begins; faults that waited for it begin before it does."""
        for armed in tuple(self._armed.values()):
            if armed.spec.during == phase and not armed.begun and armed.task is None:
                self._start(armed)

    def clear(self, name: str | None = None) -> None:
        """End the fault of that name, or all faults; one that is not there is no mistake."""
        for each in (name,) if name is not None else tuple(self._armed):
            armed = self._armed.pop(each, None)
            if armed is None:
                continue
            if armed.task is not None:
                armed.task.cancel()
            if armed.begun:
                _log.info("device=%s fault %s ends", self._device_id, each)
                armed.fault.end(self._device)

    def describe(self) -> str:
        """Return the faults and how far each is, `drop (waits) freeze (begun)`.

        One that spoils what comes its way `lurks` from when it begins until something has come.
        """
        return " ".join(f"{name} ({self._stage(armed)})" for name, armed in self._armed.items())

    def _stage(self, armed: _Armed) -> str:
        if not armed.begun:
            return "waits"
        lurks = isinstance(armed.fault, Lurking) and not armed.fault.struck(self._device)
        return "lurks" if lurks else "begun"

    def _start(self, armed: _Armed) -> None:
        if armed.spec.after_s == 0:
            self._begin(armed)
        if armed.spec.after_s or armed.spec.lasts_s is not None:
            armed.task = self._device.later(self._run(armed))

    def _begin(self, armed: _Armed) -> None:
        _log.info("device=%s fault %s begins", self._device_id, armed.spec.fault)
        armed.begun = True
        armed.fault.begin(self._device)

    async def _run(self, armed: _Armed) -> None:
        await asyncio.sleep(armed.spec.after_s)
        if not armed.begun:
            self._begin(armed)
        if armed.spec.lasts_s is not None:
            await asyncio.sleep(armed.spec.lasts_s)
            armed.task = None  # this very task, which `clear` would cancel
            self.clear(armed.spec.fault)
