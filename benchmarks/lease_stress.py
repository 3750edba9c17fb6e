"""Whether a device is ever held twice: many processes take and leave leases while some of them are killed.

    python benchmarks/lease_stress.py --processes 8 --devices 16 --acquisitions 2000

Two witnesses that know nothing of leases watch: a kernel lock for each device, taken for as long as a device is held,
and a journal of fencing tokens, none of which may come twice. Each process makes that many acquisitions; one that is
killed is started anew for what it had left. Exit status 1 when a device was held twice.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pytest_devicelab.lab.lease import hold_any


def work(folder: Path, worker: int, devices: int, units: int, acquisitions: int, hold_s: float) -> None:
    """Take any of so many random devices, until the journal of this worker has that many lines."""
    # Opened first: a dying process lets its descriptors go, and the witness should not outlive the lease by much.
    witnesses = [
        os.open(folder / f"witness{number}", os.O_RDWR | os.O_CREAT, 0o600) for number in range(devices)
    ]
    journal = folder / f"journal{worker}"
    done = len(journal.read_bytes().splitlines()) if journal.exists() else 0
    chance = random.Random(worker * 1_000_003 + done)
    with journal.open("ab", buffering=0) as lines:
        for _ in range(acquisitions - done):
            pool = [f"device{number}" for number in chance.sample(range(devices), units)]
            asked = time.perf_counter()
            with hold_any(pool, f"worker {worker}", folder=folder / "leases") as lease:
                waited = time.perf_counter() - asked
                number = int(lease.device.removeprefix("device"))
                twice = not bear_witness(witnesses[number])
                time.sleep(chance.random() * hold_s)
                lease.check()
                lines.write(f"{number} {lease.token} {waited:.6f} {int(twice)}\n".encode())
                os.ftruncate(witnesses[number], 0)
                fcntl.flock(witnesses[number], fcntl.LOCK_UN)


def bear_witness(witness: int) -> bool:
    """Lock a device's witness; False when a living process has it. A process that is dying does not count."""
    for _ in range(2000):
        try:
            fcntl.flock(witness, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.pread(witness, 20, 0)
            if other and alive(int(other)):
                return False
            time.sleep(0.001)
        else:
            os.pwrite(witness, b"%-20d" % os.getpid(), 0)
            return True
    return False


def alive(pid: int) -> bool:
    """Say whether a process runs: not gone, not a zombie, and not about to die of SIGKILL."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    pending = int(fields.get("SigPnd", "0"), 16) | int(fields.get("ShdPnd", "0"), 16)
    return fields["State"][0] not in "ZX" and not pending >> (signal.SIGKILL - 1) & 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What came of it; waits in milliseconds."""

    processes: int
    devices: int
    acquisitions: int
    kills: int
    double_holds: int
    tokens_repeated: int
    seconds: float
    wait_ms_median: float
    wait_ms_worst: float


def stress(options: argparse.Namespace, folder: Path) -> Found:
    """Run the workers, kill some, and count."""
    (folder / "leases").mkdir()
    sizes = [
        str(number)
        for number in (options.devices, options.units, options.acquisitions, options.hold_ms / 1000)
    ]
    command = [sys.executable, __file__, "--work", str(folder)]
    chance = random.Random(options.seed)
    started = time.monotonic()
    running = {
        worker: subprocess.Popen([*command, str(worker), *sizes]) for worker in range(options.processes)
    }
    kills, next_kill = 0, started + options.kill_every
    try:
        while running:
            time.sleep(0.01)
            for worker, process in list(running.items()):
                status = process.poll()
                if status == 0:
                    del running[worker]
                elif status == -signal.SIGKILL:
                    running[worker] = subprocess.Popen([*command, str(worker), *sizes])
                elif status is not None:
                    raise SystemExit(f"worker {worker} ended with {status}")
            if running and time.monotonic() >= next_kill:
                running[chance.choice(sorted(running))].kill()
                kills += 1
                next_kill = time.monotonic() + options.kill_every * (0.5 + chance.random())
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    rows = [line.split() for path in folder.glob("journal*") for line in path.read_text().splitlines()]
    waits = [float(row[2]) * 1000 for row in rows]
    tokens = Counter((row[0], row[1]) for row in rows)
    return Found(
        processes=options.processes,
        devices=options.devices,
        acquisitions=len(rows),
        kills=kills,
        double_holds=sum(row[3] == "1" for row in rows),
        tokens_repeated=sum(count - 1 for count in tokens.values()),
        seconds=round(time.monotonic() - started, 1),
        wait_ms_median=round(statistics.median(waits), 2),
        wait_ms_worst=round(max(waits), 1),
    )


def main() -> int:
    """Run it and print what was found."""
    if sys.argv[1:2] == ["--work"]:
        folder, worker, devices, units, acquisitions, hold_s = sys.argv[2:]
        work(Path(folder), int(worker), int(devices), int(units), int(acquisitions), float(hold_s))
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--devices", type=int, default=16)
    parser.add_argument("--units", type=int, default=1, help="devices that each acquisition takes one of")
    parser.add_argument("--acquisitions", type=int, default=2000, help="of each process")
    parser.add_argument("--hold-ms", type=float, default=2.0, help="longest time a device is held")
    parser.add_argument("--kill-every", type=float, default=0.5, help="seconds between kill -9, on average")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dl-") as folder:
        found = stress(options, Path(folder))
    facts = {name: getattr(found, name) for name in Found.__slots__}
    print(
        json.dumps(facts)
        if options.json
        else "\n".join(f"{name:16} {value}" for name, value in facts.items())
    )
    return int(bool(found.double_holds or found.tokens_repeated))


if __name__ == "__main__":
    sys.exit(main())
