"""What a fault is, and what of a device it can get at."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Protocol, runtime_checkable

from pytest_devicelab.virtual.faults.link import Link
from pytest_devicelab.virtual.faults.storage import Storage
from pytest_devicelab.virtual.logd import LogDaemon


class Subject(Protocol):
    """The device a fault befalls."""

    @property
    def root(self) -> Path:
        """Its root folder on the host."""

    @property
    def link(self) -> Link:
        """Its cable."""

    @property
    def storage(self) -> Storage:
        """Where its files go."""

    @property
    def log(self) -> LogDaemon:
        """Its log."""

    def later(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Do something in the background, at the latest until the device is switched off."""

    async def drop(self) -> None:
        """Cut every connection."""

    async def offline(self) -> None:
        """Switch off its adb."""

    async def online(self) -> None:
        """Switch it on again."""

    async def reboot(self, *, down_s: float) -> None:
        """Switch off for that many seconds, and boot."""


class Fault(Protocol):
    """One fault of one device. Made from the values of a `FaultSpec`; begun once, and ended at most once."""

    def begin(self, device: Subject) -> None:
        """Let it befall the device, from this very moment."""

    def end(self, device: Subject) -> None:
        """Put right what can be put right; what is done once and over cannot."""


@runtime_checkable
class Lurking(Protocol):
    """A fault that changes nothing as it begins, and spoils what comes its way later."""

    def struck(self, device: Subject) -> bool:
        """Say whether it has spoilt anything yet."""
