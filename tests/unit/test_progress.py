from __future__ import annotations

import os
import time
from pathlib import Path

from pytest_devicelab.progress import ProgressLog, ProgressPrinter


def test_an_event_is_one_line_that_cannot_steer_a_terminal(tmp_path: Path) -> None:
    log = ProgressLog(tmp_path / "progress.log")
    log.write("device=a\nsaid \x1b[2J\x07 much")
    (line,) = log.path.read_text().splitlines()
    assert line.partition(" ")[2] == "device=a said ?[2J? much"


def test_an_event_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "progress.log").mkdir()
    ProgressLog(tmp_path / "progress.log").write("said to nobody")


def test_the_newest_event_is_shown_once(tmp_path: Path) -> None:
    log = ProgressLog(tmp_path / "progress.log")
    read, write = os.pipe()
    printer = ProgressPrinter(log, write, interval_s=0.01)
    log.write("first")
    log.write("newest")
    time.sleep(0.2)
    printer.close()
    with os.fdopen(read) as shown:
        text = shown.read()
    assert text.count("newest") == 1
