"""Whether a session survives `kill -9`: killed at random and resumed until done, it must say what it says undisturbed.

    python benchmarks/kill_resume.py --kills 200

Each session is one of two virtual devices and a small model, with and without `-n 2`. At a random moment pytest, a
worker of it, or its adb server is killed. After each session that came to its end: verdicts (test, outcome, reason)
as undisturbed, records that were finished before a kill byte for byte the same, no process, lease or scratch folder
left. Exit status 1 where one of these does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pytest_devicelab.lab.lease import standings

_FIXTURES = Path(__file__).parents[1] / "fixtures" / "digits_cnn"
_SESSION_TIMEOUT_S = 300.0
_SETTLE_S = 20.0
_UNOWNED_S = 10.0
_MATRIX = f"""schema: devicelab.matrix/1
devices:
- {{id: s23, kind: virtual, soc: SM8550}}
- {{id: s24, kind: virtual, soc: SM8650}}
models:
- id: digits
  path: {_FIXTURES}/int8.onnx
  reference: {_FIXTURES}/float.onnx
  inputs: {_FIXTURES.parent}/digits_eval.npz
  samples: 8
"""

Said = Mapping[str, tuple[str, str]]


@dataclass(kw_only=True)
class Tally:
    """What came of it; `kills` by whom they hit, the others are counts of what must not be."""

    kills: Counter[str] = field(default_factory=Counter)
    sessions: int = 0
    resumes: int = 0
    other_verdicts: int = 0
    changed_records: int = 0
    compared_records: int = 0
    leaked_processes: int = 0
    held_leases: int = 0
    scratch_left: int = 0

    @property
    def sound(self) -> bool:
        """Whether nothing happened that must not."""
        bad = (self.other_verdicts, self.changed_records, self.leaked_processes, self.held_leases)
        return not any(bad) and not self.scratch_left


class Bench:
    """A folder with a matrix, and sessions in it.

    Args:
        folder: an empty folder.
        seed: of whom to kill when.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.reports = folder / "reports"
        self.temporary = folder / "tmp"
        self.leases = folder / "leases"
        self.temporary.mkdir()
        self.chance = random.Random(seed)
        self.tally = Tally()
        self.usual_s = 0.0
        (folder / "m.yaml").write_text(_MATRIX)
        (folder / "pytest.ini").write_text("[pytest]\n")

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start pytest on the matrix."""
        command = [sys.executable, "-m", "pytest", "-q", "--devices=m.yaml", *arguments]
        environment = os.environ | {"TMPDIR": str(self.temporary), "DEVICELAB_LEASES": str(self.leases)}
        with (self.folder / "pytest.log").open("ab") as log:
            return subprocess.Popen(
                command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def undisturbed(self, *arguments: str) -> tuple[Said, float]:
        """Return what a session says that nobody kills, and how long it takes in seconds."""
        began = time.monotonic()
        self.start(*arguments).wait(_SESSION_TIMEOUT_S)
        return self.said(self.newest()), time.monotonic() - began

    def newest(self) -> Path | None:
        """Return the folder of the newest session that can be resumed."""
        found = sorted(path.parent for path in self.reports.glob("2*/starts"))
        return found[-1] if found and any((found[-1] / "starts").glob("[!.]*")) else None

    def said(self, session: Path | None) -> Said:
        """Return outcome and reason by test, as `session.json` has them; a test that is in there twice fails."""
        assert session is not None
        verdicts = json.loads((session / "session.json").read_bytes())["verdicts"]
        found = {entry["nodeid"]: (entry["verdict"], entry["reason"]) for entry in verdicts}
        return found if len(found) == len(verdicts) else {"twice": ("", "")}

    def one_session(self, kills_left: int) -> Path | None:
        """Run a session, killing at random; resume it until pytest comes to its end undisturbed."""
        workers = self.chance.choice(((), ("-n", "2")))
        before, session, known = self.newest(), None, {}
        while True:
            resume = () if session is None else (f"--devicelab-resume={session}",)
            self.tally.resumes += bool(resume)
            process = self.start(*workers, *resume)
            killed, began = False, time.monotonic()
            if kills_left > 0 and self.chance.random() < 0.9:
                killed = self.kill(process)
                kills_left -= killed
            process.wait(_SESSION_TIMEOUT_S)
            if not killed:  # how long it takes now, with whatever else this machine does
                self.usual_s = 0.5 * self.usual_s + 0.5 * (time.monotonic() - began)
            newest = self.newest()
            session = newest if newest != before else None
            if session is not None:
                known = self.compare(session, known)
            if not killed and session is not None:
                return session

    def kill(self, process: subprocess.Popen[bytes]) -> bool:
        """Kill pytest, a worker or the adb server at a random time; False when it ended before."""
        try:
            process.wait(self.chance.random() * self.usual_s)
        except subprocess.TimeoutExpired:
            below = descendants(process.pid)
            victims = {
                "pytest": [process.pid],
                "worker": [
                    pid
                    for pid, command in below.items()
                    if b"from execnet" in command or b"import sys;exec(eval" in command
                ],
                "adb server": [
                    pid for pid, command in below.items() if command.split(b"\0")[0].endswith(b"/adb")
                ],
            }
            whom = self.chance.choice([name for name, pids in victims.items() if pids])
            try:
                os.kill(self.chance.choice(victims[whom]), signal.SIGKILL)
            except ProcessLookupError:
                return False
            self.tally.kills[whom] += 1
            return True
        return False

    def compare(self, session: Path, known: Mapping[Path, bytes]) -> dict[Path, bytes]:
        """Count records that changed; return all that are finished now. One the lab failed is none of these."""
        for path, content in known.items():
            self.tally.compared_records += 1
            self.tally.changed_records += not path.is_file() or path.read_bytes() != content
        found = {path: path.read_bytes() for path in session.glob("runs/*/record.json")}
        return {path: content for path, content in found.items() if json.loads(content)["status"] != "failed"}

    def check_left(self) -> None:
        """Count what is left behind."""
        deadline = time.monotonic() + _SETTLE_S
        while (left := processes_of(self.folder)) and time.monotonic() < deadline:
            time.sleep(0.1)
        for command in left:
            print("left:", command)
        self.tally.leaked_processes += len(left)
        self.tally.held_leases += sum(each.holding is not None for each in standings(self.leases))

    def check_scratch(self) -> None:
        """Count scratch folders left; a later session removes those of killed ones, empty ones after a while."""
        time.sleep(_UNOWNED_S + 1)
        self.undisturbed()
        # Not ours: pytest keeps folders of its own for three sessions, ONNX Runtime one file for its telemetry.
        names = [path.name for path in self.temporary.iterdir()]
        self.tally.scratch_left += sum(name != ".ses" and not name.startswith("pytest-of-") for name in names)


def descendants(pid: int) -> dict[int, bytes]:
    """Return the command lines of all processes below one, by id."""
    found: dict[int, bytes] = {}
    try:
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError:
        return found
    for child in children:
        try:
            found[child] = Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue
        found |= descendants(child)
    return found


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of processes that live in a folder, by arguments or environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue
        if os.fsencode(f"{folder}/tmp") in command + environment:
            found.append(command.replace(b"\0", b" ").decode(errors="replace")[:200])
    return found


def survive(kills: int, seed: int, folder: Path) -> Tally:
    """Kill that often, and count what came of it."""
    bench = Bench(folder, seed)
    bench.undisturbed()  # compiles the models
    expected, bench.usual_s = bench.undisturbed()
    assert expected
    print(f"undisturbed: {len(expected)} verdicts in {bench.usual_s:.1f} s", flush=True)
    tally = bench.tally
    while sum(tally.kills.values()) < kills:
        session = bench.one_session(kills - sum(tally.kills.values()))
        tally.sessions += 1
        said = bench.said(session)
        if said != expected:
            tally.other_verdicts += 1
            print(f"session {session} says otherwise: {set(said.items()) ^ set(expected.items())}")
        bench.check_left()
        print(f"  {sum(tally.kills.values())} kills, {tally}", flush=True)
    bench.check_scratch()
    return tally


def main() -> int:
    """Run it and print what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="an empty folder to work in, which stays")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kr-", dir="/tmp") as temporary:
        tally = survive(options.kills, options.seed, options.folder or Path(temporary))
    rows = {f"kill -9 of {name}": count for name, count in sorted(tally.kills.items())}
    rows |= {name.replace("_", " "): value for name, value in vars(tally).items() if name != "kills"}
    print("\n".join(f"{name:24} {value}" for name, value in rows.items()))
    return int(not tally.sound)


if __name__ == "__main__":
    sys.exit(main())
