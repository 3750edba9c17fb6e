"""A session that is killed with SIGKILL and resumed says what an undisturbed one says: a few kills of the benchmark."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pytest_devicelab.devices.slots import DEVICE_ROOT
from pytest_devicelab.lab.lab import Lab
from tests.e2e.virtual_lab import VirtualLab

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "kill_resume.py"


def test_a_few_kills_lose_nothing() -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARK, "--kills", "3"], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_a_dead_holder_left_on_a_device_is_gone_with_the_next_lease(virtual_lab: VirtualLab) -> None:
    device = virtual_lab.device("twin")
    left = (f"{DEVICE_ROOT}/runs/dead.run", f"{DEVICE_ROOT}/slots/dead/.part-1")
    slot = f"{DEVICE_ROOT}/slots/dead/file"
    made = device.script(
        f"mkdir -p {left[0]}/out {DEVICE_ROOT}/slots/dead && touch {left[0]}/out/0.raw {left[1]} {slot}"
    )
    assert made.exit_code == 0

    with Lab(virtual_lab.address, holder="a test").lease(virtual_lab.specs["twin"]) as held:
        there = [path for path in (*left, slot) if held.shell(["test", "-e", path]).exit_code == 0]

    assert there == [slot]
