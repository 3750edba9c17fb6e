"""Every fault in every phase of a run: what becomes of it, and of the devices beside it.

    python benchmarks/chaos.py > table.md

A session for each phase, with a virtual device for each fault, which begins when that phase first does, and a healthy
one; and a session whose adb server is killed in that phase. Each device is asked whether its fault began. Prints a
Markdown table of outcomes, and ends with exit status 1 when a fault did not begin that could have, a spoilt run is
green, a record or a lease is lost, something hangs past its deadline, or the healthy device notices.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self, get_args

from pytest_devicelab.audit.fleet import accuracy_of
from pytest_devicelab.errors import DevicelabError, InfrastructureError
from pytest_devicelab.evidence.record import RunRecord
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.lab.lab import Lab
from pytest_devicelab.lab.lease import standings
from pytest_devicelab.lab.services import LabServices
from pytest_devicelab.lab.session import LabSession
from pytest_devicelab.matrix.faults import FAULTS, parse_fault
from pytest_devicelab.matrix.soc import find_soc
from pytest_devicelab.matrix.specs import (
    DeviceSpec,
    HealthSpec,
    LabSpec,
    MatrixSpec,
    ModelSpec,
    Phase,
    Source,
)
from pytest_devicelab.verdicts.determinism import judge_determinism
from pytest_devicelab.verdicts.placement import judge_placement
from pytest_devicelab.virtual.control import control
from pytest_devicelab.virtual.farm import device_root

_FIXTURES = Path(__file__).parents[1] / "fixtures"
_PLACE = Source(file="chaos.py", line=1, column=1)
_PHASES: tuple[Phase, ...] = get_args(Phase)
_RUN_TIMEOUT_S = 8.0
# Two attempts, each with its deadline and its log, and the whole ladder after each; two runs; a busy machine.
_LONGEST_S = 400.0
# Told to the faults so that a table takes minutes; what is not named is as by default.
_WORDS: Mapping[str, Sequence[str]] = {
    "drop": ("at_byte=200",),
    "stall": ("at_byte=200",),
    "slow_link": ("bytes_per_s=20000",),
    "reboot": ("down_s=1",),
    "disk_full": ("free_bytes=1000",),
    "throttle": ("over_s=0",),
    "battery_drain": ("percent_per_s=100",),
    "npu_crash": ("runs=9",),
}
_KILLED = "adb server killed"
# Faults that find nothing to spoil when they begin so late, or so early, and why that is so by nature.
_NOTHING_TO_SPOIL: Mapping[str, tuple[Sequence[Phase], str]] = {
    "corrupt_push": (("run", "pull", "log", "restore"), "no file is pushed any more"),
    "stale_slot": (("connect", "push"), "no file is in a slot yet"),
}
_POLL_S = 0.002
_MODEL = ModelSpec(
    id="digits",
    path=_FIXTURES / "digits_cnn/int8.onnx",
    reference=_FIXTURES / "digits_cnn/float.onnx",
    source=_PLACE,
    inputs=_FIXTURES / "digits_eval.npz",
    labels=_FIXTURES / "digits_labels.npy",
    runtime="ort",
    samples=16,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What became of one device in a session."""

    records: tuple[RunRecord, ...]
    outcomes: tuple[str, ...]
    took_s: float
    faults: str = ""

    @property
    def word(self) -> str:
        """`sound` when all verdicts pass, else the worst of them; and how many attempts its runs took."""
        worst = next((each for each in ("fail", "flaky", "inconclusive") if each in self.outcomes), "sound")
        attempts = sum(max(len(record.attempts), 1) for record in self.records)
        return worst if attempts == len(self.records) else f"{worst} ({attempts} attempts)"

    def outcome(self, fault: str, phase: Phase, broken: list[str]) -> str:
        """Return the word for the table; a fault that has not begun, and could have, is one more that is broken."""
        if self.faults == f"{fault} (begun)":
            return self.word
        phases, why = _NOTHING_TO_SPOIL.get(fault, ((), ""))
        if phase in phases and self.faults == f"{fault} (lurks)":
            return f"{self.word}: {why}"
        broken.append(f"{phase}, {fault}: it never began, the device says {self.faults!r}")
        return f"not begun ({self.word})"


def main() -> int:
    """Play every phase, print the table, and say what broke the rules."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--phases", nargs="+", choices=_PHASES, default=_PHASES)
    phases: Sequence[Phase] = parser.parse_args().phases
    columns: dict[Phase, dict[str, str]] = {}
    broken: list[str] = []
    for phase in phases:
        began = time.monotonic()
        columns[phase] = play_faults(phase, broken)
        columns[phase][_KILLED] = play_killed(phase, broken)
        print(f"{phase}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print("| Fault | " + " | ".join(phases) + " |")
    print("|---" * (len(phases) + 1) + "|")
    for name in (*FAULTS, _KILLED):
        print(f"| {name} | " + " | ".join(columns[phase][name] for phase in phases) + " |")
    for line in broken:
        print(f"BROKEN: {line}", file=sys.stderr)
    return bool(broken)


def play_faults(phase: Phase, broken: list[str]) -> dict[str, str]:
    """Play a session with a device for each fault; return the outcomes by fault."""
    healthy = _device("healthy")
    victims = [
        replace(healthy, id=name, faults=(parse_fault(name, [*_WORDS.get(name, ()), f"during={phase}"]),))
        for name in FAULTS
    ]
    played = play([healthy, *victims], broken, phase)
    return {name: played[name].outcome(name, phase, broken) for name in FAULTS}


def play_killed(phase: Phase, broken: list[str]) -> str:
    """Play a session whose adb server is killed in the phase; both its devices have to be sound."""
    held = replace(_device("other"), faults=(parse_fault("freeze", [f"during={phase}"]),))
    played = play([_device("healthy"), held], broken, phase, kill=held.id)
    return played["other"].word


def play(
    devices: Sequence[DeviceSpec], broken: list[str], phase: Phase, *, kill: str = ""
) -> dict[str, Played]:
    """Evaluate and repeat the model on all devices at once, and check the rules that no fault may break.

    Args:
        devices: one of them is called `healthy`.
        broken: what is found is added here.
        phase: for messages.
        kill: a device that freezes at some moment: then the adb server is killed, and the device thaws.
    """
    matrix = MatrixSpec(
        path=Path("matrix.yaml"),
        lab=LabSpec(run_timeout_s=_RUN_TIMEOUT_S, health=HealthSpec(cool_wait_s=0)),
        devices=tuple(devices),
        models=(_MODEL,),
    )
    with tempfile.TemporaryDirectory(prefix="dl-") as folder:
        state = Path(folder)
        os.environ["DEVICELAB_LEASES"] = str(state / "leases")
        lab = state / "lab"
        with Killer(lab, kill) as killer, LabServices(matrix, matrix.devices, lab) as services:
            session = LabSession(
                matrix=matrix,
                devices=matrix.devices,
                store=SessionStore.create(state / "reports", "session"),
                lab=Lab(services.address, holder="chaos"),
                cache=state / "cache",
                progress=lambda text: None,
            )
            with ThreadPoolExecutor(len(devices)) as pool:
                found = list(pool.map(lambda spec: _play(session, spec), devices))
            found = [
                replace(each, faults=control(_root(lab, spec.id), "fault list"))
                for spec, each in zip(devices, found, strict=True)
            ]
            if killer.killed != bool(kill):
                broken.append(f"{phase}: {killer.killed} adb servers were killed")
            _check(dict(zip((spec.id for spec in devices), found, strict=True)), session, phase, broken)
            held = [each.device for each in standings(state / "leases") if each.holding is not None]
            broken += [f"{phase}: the lease of {device} leaked" for device in held]
    return {spec.id: played for spec, played in zip(devices, found, strict=True)}


def _play(session: LabSession, spec: DeviceSpec) -> Played:
    began = time.monotonic()
    first, again = session.evaluate(spec, _MODEL), session.repeat(spec, _MODEL)
    took_s = time.monotonic() - began
    try:
        outputs = session.outputs(first), session.outputs(again)
    except DevicelabError:
        outputs = {}, {}
    verdicts = (
        judge_placement(first, _MODEL),
        judge_determinism(first, again, *outputs),
        accuracy_of(session, _MODEL, first),
    )
    return Played(
        records=(first, again), outcomes=tuple(verdict.outcome for verdict in verdicts), took_s=took_s
    )


def _check(played: Mapping[str, Played], session: LabSession, phase: Phase, broken: list[str]) -> None:
    sound = played["healthy"]
    if any(outcome != "pass" for outcome in sound.outcomes):
        broken.append(f"{phase}: the healthy device is {sound.word}: {sound.records[0].error}")
    for name, each in played.items():
        if each.took_s > _LONGEST_S:
            broken.append(f"{phase}, {name}: took {each.took_s:.0f} s")
        for record, right in zip(each.records, sound.records, strict=True):
            if session.store.read_record(record.id) != record:
                broken.append(f"{phase}, {name}: record {record.id} is not on disk")
            if record.status == "ok" and [it.sha256 for it in record.outputs] != [
                it.sha256 for it in right.outputs
            ]:
                broken.append(f"{phase}, {name}: {record.id} is ok and has other bits")
        if "fail" in each.outcomes:
            broken.append(f"{phase}, {name}: a fault of the lab was taken for the model's")


def _device(name: str) -> DeviceSpec:
    soc = find_soc("Tensor G4")[0]
    return DeviceSpec(id=name, kind="virtual", source=_PLACE, soc=soc, engine="cpu", runtime="ort")


def _root(lab: Path, device_id: str) -> Path:
    return device_root(lab / "v", device_id)


class Killer:
    """A thread that waits until a device freezes, kills the adb servers of its lab, and thaws the device.

    The phase in which it freezes has begun, and cannot end before the server is dead.

    Args:
        lab: folder of the lab.
        device_id: the device; empty for none, and nothing is killed.
    """

    def __init__(self, lab: Path, device_id: str) -> None:
        self.killed = 0
        self._home = b"HOME=" + os.fsencode(lab / "adb")
        self._device = _root(lab, device_id) if device_id else None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._wait)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _wait(self) -> None:
        while self._device is not None and not self._ended.wait(_POLL_S):
            with suppress(InfrastructureError):  # it is not up yet
                if control(self._device, "fault list") == "freeze (begun)":
                    self._kill()
                    control(self._device, "fault clear")
                    return

    def _kill(self) -> None:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
                variables = (process / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            # The clients of a server, such as `adb connect`, have its environment, too.
            if words[0].endswith(b"adb") and b"server" in b" ".join(words) and self._home in variables:
                os.kill(int(process.name), signal.SIGKILL)
                self.killed += 1


if __name__ == "__main__":
    sys.exit(main())
