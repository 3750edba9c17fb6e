"""The gate around whatever uses a device: let it begin on a healthy one, and say who left it otherwise."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.devices.vitals import THERMAL_STATUS, Vitals, read_vitals
from pytest_devicelab.errors import InfrastructureError, LeaseLost, Throttled, Unfit
from pytest_devicelab.evidence.blame import Blame
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.lab.health import Problem, changes, left_set, problems, throttled
from pytest_devicelab.lab.recovery import clean
from pytest_devicelab.matrix.specs import HealthSpec

_POLL_S = 1.0


class HealthGate:
    """Looks at a device before and after it is used.

    Args:
        device: the device, which is held.
        limits: of the lab.
        store: where blame is written down.
        user: run id or node id of what is about to use it.
        progress: told what is waited for.
    """

    def __init__(
        self,
        device: AdbDevice,
        limits: HealthSpec,
        store: SessionStore,
        *,
        user: str,
        progress: Callable[[str], None],
    ) -> None:
        self._device = device
        self._limits = limits
        self._store = store
        self._user = user
        self._progress = progress
        self._before: Vitals | None = None
        self._fit = False
        self._after: Vitals | None = None

    @property
    def telemetry(self) -> Mapping[str, str]:
        """What was read, as plain text: `before.battery_percent` and so on; what the device did not say is left out."""
        return {
            f"{when}.{name}": value
            for when, vitals in (("before", self._before), ("after", self._after))
            if vitals is not None
            for name, value in _plain(vitals).items()
        }

    def enter(self) -> None:
        """Return when the device is fit to be used: leftovers are removed, and heat is waited out.

        Raises:
            Unfit: it is not fit, or not in time; quotes who left it so, where that is known.
        """
        vitals = read_vitals(self._device)
        if vitals.runners:
            self._end(vitals.runners)
            vitals = read_vitals(self._device)
        if any(problem.kind == "room" for problem in problems(vitals, self._limits)):
            clean(self._device, "no room")
            vitals = read_vitals(self._device)
        self._before = vitals
        deadline = time.monotonic() + self._patience_s()
        told = ""
        while blocking := [each for each in problems(vitals, self._limits) if not each.harmless]:
            first = blocking[0]
            if not all(each.passes for each in blocking) or time.monotonic() >= deadline:
                if first.passes:
                    self._note_vain_wait()
                raise self._unfit(next((each for each in blocking if not each.passes), first))
            if told != first.kind:
                self._progress(f"device={self._device.id} {self._user}: waiting, {first.text}")
                told = first.kind
            time.sleep(_POLL_S)
            self._before = vitals = read_vitals(self._device)
        self._fit = True

    def _patience_s(self) -> float:
        """Return how long to wait: not at all where another run of the session gave this device up a moment ago."""
        with suppress(FileNotFoundError):
            if 0 <= time.time() - self._vain_wait.stat().st_mtime < self._limits.cool_wait_s:
                return 0.0
        return self._limits.cool_wait_s

    def _note_vain_wait(self) -> None:
        """Note when waiting ended in vain; what gave up at once does not put off the next that waits."""
        if self._patience_s() > 0:
            with suppress(OSError):
                self._vain_wait.parent.mkdir(exist_ok=True)
                self._vain_wait.touch()

    @property
    def _vain_wait(self) -> Path:
        return self._store.root / "waits" / hashlib.sha256(self._device.serial.encode()).hexdigest()[:16]

    def leave(self) -> None:
        """Look at the device again, and write down what is wrong with it now and was not before.

        Raises:
            Throttled: heat slowed it down meanwhile.
            InfrastructureError: the device does not answer.
        """
        if self._before is None or not self._fit or self._after is not None:
            return  # it was never used, or was looked at already
        try:
            self._after = read_vitals(self._device, since=self._before)
        except LeaseLost:
            raise
        except InfrastructureError as error:
            gone = Problem(kind="reach", text=error.what, fix=error.fix)
            self._store.write_blame(self._blame(gone))
            raise
        known = {problem.kind for problem in problems(self._before, self._limits)}
        for problem in problems(self._after, self._limits):
            if problem.kind not in known:
                self._store.write_blame(self._blame(problem))
        self._put_back(self._before, self._after)
        if slowed := throttled(self._before, self._after):
            raise Throttled(
                f"device {self._device.id}: heat slowed it down during the run",
                why=slowed,
                fix="cool it; what ran on a device that throttles does not count, see docs/how-to/keep-a-lab-healthy.md",
            )

    def _put_back(self, before: Vitals, after: Vitals) -> None:
        """Write down what is otherwise than it was, and have it as it was: what runs next must not depend on it."""
        for change in changes(before, after):
            self._store.write_blame(self._blame(change))
        for name, value in left_set(before, after).items():
            with suppress(InfrastructureError):  # refused, or out of reach: then the blame says how it is
                self._device.setprop(name, value)

    @contextmanager
    def around(self) -> Iterator[None]:
        """Enter before a block and leave after it; what a block raised comes before what it left."""
        self.enter()
        try:
            yield
        except BaseException:
            with suppress(InfrastructureError):
                self.leave()
            raise
        self.leave()

    def _end(self, runners: tuple[int, ...]) -> None:
        """End runners that an earlier run left; our lease says that nobody else's are there."""
        pids = " ".join(map(str, runners))
        self._progress(f"device={self._device.id} {self._user}: ending runners left over (process {pids})")
        self._device.script(f"kill -9 {pids} 2>/dev/null; sleep 0.2")

    def _unfit(self, problem: Problem) -> Unfit:
        left = [
            each
            for each in self._store.blames()
            if each.device == self._device.id and each.kind == problem.kind
        ]
        last = max(left, key=lambda each: each.at, default=None)
        blamed = f"; it was fine until {last.by} ({last.text})" if last is not None else ""
        return Unfit(
            f"device {self._device.id} is not fit to be used",
            why=problem.text + blamed,
            fix=problem.fix,
        )

    def _blame(self, problem: Problem) -> Blame:
        return Blame(
            device=self._device.id,
            serial=self._device.serial,
            by=self._user,
            kind=problem.kind,
            text=problem.text,
            at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )


def _plain(vitals: Vitals) -> Mapping[str, str]:
    status = vitals.thermal_status
    found = {
        "battery_percent": vitals.battery_percent,
        "battery_c": vitals.battery_c,
        "skin_c": vitals.skin_c,
        "thermal_status": None if status is None else THERMAL_STATUS[status],
        "free_kib": vitals.free_kib,
        "clock_skew_s": None if vitals.clock_skew_s is None else round(vitals.clock_skew_s, 1),
        "wakefulness": vitals.wakefulness,
        "doze": vitals.doze,
        "adb_version": vitals.adb_version,
        "peak_status": None if vitals.peak_status is None else THERMAL_STATUS[vitals.peak_status],
    }
    return {name: str(value) for name, value in found.items() if value is not None}
