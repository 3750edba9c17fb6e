"""The recovery ladder: from the gentlest way to get a device back to the harshest, each tried once and proved.

Every step has a deadline, the steps are few, and all are written down: what was tried, why, for how long, and whether the
device answered afterwards, which it shows by repeating a word it cannot have known.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.devices.slots import DEVICE_ROOT
from pytest_devicelab.errors import AdbServerLost, DeadlineExceeded, InfrastructureError, LeaseLost
from pytest_devicelab.evidence.record import RecoveryStep


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long each rung may take, in seconds, and after it the proof."""

    reconnect_s: float
    restart_s: float
    power_cycle_s: float
    reboot_s: float


VIRTUAL_LIMITS = Limits(reconnect_s=6.0, restart_s=4.0, power_cycle_s=20.0, reboot_s=10.0)
# A phone that reboots is back after half a minute to a minute.
PHONE_LIMITS = Limits(reconnect_s=15.0, restart_s=10.0, power_cycle_s=90.0, reboot_s=120.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One way to get a device back: `act` is given its deadline in seconds, and `limit_s` holds for it and the proof.

    `harsh` is what is done to the device itself, and no help where it is the adb server that does not answer.
    """

    name: str
    act: Callable[[float], None]
    limit_s: float
    harsh: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What came of an attempt to get a device back: all that was tried, and what was still wrong in the end."""

    steps: tuple[RecoveryStep, ...]
    last: InfrastructureError | None = None

    @property
    def helped(self) -> bool:
        """Whether the device answers."""
        return self.last is None


Recover = Callable[[AdbDevice, InfrastructureError], Recovery]


def recover(device: AdbDevice, error: InfrastructureError) -> Recovery:
    """Get a device back after a failure of the lab, by the ladder.

    Raises:
        LeaseLost: the device is not ours any more, so it is not ours to recover.
    """
    return climb(rungs_of(device), lambda limit_s: device.reconnect(timeout_s=limit_s), error.what)


def rungs_of(device: AdbDevice) -> tuple[Rung, ...]:
    """Return what may be tried on a device, the gentlest first; what the matrix does not allow is not among it."""
    spec = device.spec
    limits = VIRTUAL_LIMITS if spec.kind == "virtual" else PHONE_LIMITS
    rungs = [
        Rung(name="reconnect", act=lambda limit_s: None, limit_s=limits.reconnect_s),
        Rung(
            name="restart_transport",
            act=lambda limit_s: device.restart_transport(timeout_s=limit_s),
            limit_s=limits.restart_s,
        ),
    ]
    if spec.power_cycle:
        rungs.append(
            Rung(
                name="power_cycle",
                act=lambda limit_s: power_cycle(device, limit_s),
                limit_s=limits.power_cycle_s,
                harsh=True,
            )
        )
    if spec.may_reboot:
        rungs.append(
            Rung(
                name="reboot",
                act=lambda limit_s: device.reboot(timeout_s=limit_s),
                limit_s=limits.reboot_s,
                harsh=True,
            )
        )
    return tuple(rungs)


def climb(
    rungs: Sequence[Rung],
    prove: Callable[[float], None],
    why: str,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Recovery:
    """Try one rung after the other until the device proves itself.

    Args:
        rungs: what to try, in order.
        prove: returns when the device answers within so many seconds; raises when it does not.
        why: what was wrong, in one line.
        clock: seconds, growing.

    Raises:
        LeaseLost: the device is not ours any more.
    """
    steps: list[RecoveryStep] = []
    last: InfrastructureError | None = None
    for rung in rungs:
        if rung.harsh and isinstance(last, AdbServerLost):
            break
        started, begun, said = datetime.now(UTC).isoformat(timespec="milliseconds"), clock(), ""
        last = None
        try:
            rung.act(rung.limit_s)
            prove(max(rung.limit_s - (clock() - begun), 0.1))
        except LeaseLost:
            raise
        except InfrastructureError as error:
            last = error
            said = error.brief
        steps.append(
            RecoveryStep(
                attempt=0,
                rung=rung.name,
                why=why,
                started=started,
                duration_s=round(clock() - begun, 3),
                helped=not said,
                said=said,
            )
        )
        if last is None:
            break
        why = said
    return Recovery(steps=tuple(steps), last=last)


def power_cycle(device: AdbDevice, timeout_s: float) -> None:
    """Run the command the matrix names for it, on this host and without a shell.

    Raises:
        InfrastructureError: there is no such program, it failed, or took longer than half of `timeout_s`.
    """
    device.require_held()
    program, *arguments = device.spec.power_cycle
    found = shutil.which(program)
    what = f"device {device.id}: its power cannot be cycled"
    if found is None:
        raise InfrastructureError(
            what, why=f"{program} is not on this host", fix="install it, or correct power_cycle"
        )
    try:
        process = subprocess.Popen(
            [found, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise InfrastructureError(what, why=str(error)) from error
    with process:
        try:
            # Half of the time is left for the device to come back.
            stdout, stderr = process.communicate(timeout=timeout_s / 2)
        except BaseException as error:
            # The whole group: what a script started must not switch the power when the device is somebody else's.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise DeadlineExceeded(what, why=f"{program} did not end in {timeout_s / 2:g} s") from None
            raise
    if process.returncode != 0:
        said = (stderr or stdout).decode("utf-8", "replace").strip()[-300:]
        raise InfrastructureError(what, why=f"{program} exited with {process.returncode}: {said}")


def clean(device: AdbDevice, why: str) -> RecoveryStep:
    """Make room on a full device: remove what this project keeps there, which is pushed anew when needed."""
    rung = Rung(name="clean", act=lambda limit_s: _remove_ours(device, limit_s), limit_s=30.0)
    return climb([rung], lambda limit_s: device.reconnect(timeout_s=limit_s), why).steps[0]


def _remove_ours(device: AdbDevice, timeout_s: float) -> None:
    done = device.shell(["rm", "-rf", f"{DEVICE_ROOT}/slots", f"{DEVICE_ROOT}/runs"], timeout_s=timeout_s)
    if done.exit_code != 0:
        raise InfrastructureError(
            f"device {device.id}: {DEVICE_ROOT} cannot be emptied",
            why=done.stderr.decode("utf-8", "replace").strip()[:300],
        )


def after_attempt(steps: Sequence[RecoveryStep], number: int) -> tuple[RecoveryStep, ...]:
    """Return the steps, saying which attempt they followed."""
    return tuple(replace(step, attempt=number) for step in steps)
