"""What is written survives a power cut: nothing gets its name before it, and what it speaks of, is on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from pytest_devicelab.evidence.record import Attempt
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.verdicts.verdict import Verdict
from tests.unit.verdict_builders import run_record


@dataclass
class Disk:
    """What has reached the disk: of each file its bytes, of each folder its names, as of the last fsync of it."""

    root: Path
    files: dict[int, bytes] = field(default_factory=dict)
    folders: dict[Path, dict[str, int]] = field(default_factory=dict)

    def fsync(self, descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_dir():
            self.folders[path] = {entry.name: entry.stat().st_ino for entry in path.iterdir()}
        else:
            self.files[path.stat().st_ino] = path.read_bytes()

    def after_the_cut(self) -> dict[str, bytes]:
        """Return what is found when the power is back: names that are on disk, with the bytes that are."""
        found: dict[str, bytes] = {}
        waiting = [self.root]
        while waiting:
            folder = waiting.pop()
            for name, inode in self.folders.get(folder, {}).items():
                path = folder / name
                if path in self.folders or path.is_dir():
                    waiting.append(path)
                else:
                    found[str(path.relative_to(self.root))] = self.files.get(inode, b"")
        return found


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk(root=tmp_path)
    real: Callable[[int], None] = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        disk.fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return disk


def test_a_record_is_there_with_all_it_names(disk: Disk, tmp_path: Path) -> None:
    store = SessionStore.create(tmp_path / "reports", "s")
    logits = np.arange(6, dtype=np.float32).reshape(2, 3)
    store.arrays.write(logits)
    folder = store.run_folder("evaluate.s24")
    (folder / "logcat.txt").write_bytes(b"lines")
    (folder / "attempt-1").mkdir()
    (folder / "attempt-1" / "stderr.txt").write_bytes(b"the first attempt")
    attempt = Attempt(number=1, started="", duration_s=1.0, files={"stderr.txt": "attempt-1/stderr.txt"})
    store.write_record(
        run_record("s24", {"y": logits}, attempts=(attempt,), files={"logcat.txt": "logcat.txt"})
    )

    found = disk.after_the_cut()
    run = "reports/s/runs/evaluate.s24"
    assert found[f"{run}/record.json"] == (folder / "record.json").read_bytes()
    assert found[f"{run}/logcat.txt"] == b"lines"
    assert found[f"{run}/attempt-1/stderr.txt"] == b"the first attempt"
    (array,) = (name for name in found if name.startswith("reports/s/arrays/"))
    assert found[array] == (tmp_path / array).read_bytes()


def test_a_verdict_is_there(disk: Disk, tmp_path: Path) -> None:
    store = SessionStore.create(tmp_path / "reports", "s")
    path = store.write_verdict(
        Verdict(check="accuracy", model="m", devices=("s24",), outcome="pass", reason=""), "test_x"
    )
    assert disk.after_the_cut()[str(path.relative_to(tmp_path))] == path.read_bytes()
