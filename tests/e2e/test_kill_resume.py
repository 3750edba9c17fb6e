"""A session that is killed with SIGKILL and resumed says what an undisturbed one says: a few kills of the benchmark."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "kill_resume.py"


def test_a_few_kills_lose_nothing() -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARK, "--kills", "3"], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
