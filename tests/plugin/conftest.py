"""What the tests of the plugin share: a user's project, and the check that a session leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Libraries with a C part can be imported once only, and pytester takes back what a run in this process imported.
import numpy as np
import onnx
import onnxruntime
import pytest

from tests.plugin.projects import Project

pytest_plugins = ["pytester"]
_LIBRARIES = (np, onnx, onnxruntime)


@pytest.fixture
def project(pytester: pytest.Pytester, temporary: Path) -> Project:
    """Give an empty project."""
    return Project(pytester=pytester)


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give each test a temporary folder of its own, and see that no process and no lab is left in it."""
    tmp_path_factory.getbasetemp()  # made now, so that it does not come to lie in here
    folder = Path(tempfile.mkdtemp(prefix="dlt-", dir="/tmp"))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delenv("DEVICELAB_ADB", raising=False)
    # The width decides where the summary is cut, and the paths of these tests are long.
    monkeypatch.setenv("COLUMNS", "200")
    yield folder
    try:
        assert not _processes_of(folder)
        assert not list(folder.glob("dl-*"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _processes_of(folder: Path) -> list[str]:
    """Return the command lines of processes that live in a folder, by their arguments or their environment."""
    mark = os.fsencode(folder) + b"/"
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            command = (process / "cmdline").read_bytes()
            known = command + (process / "environ").read_bytes()
        except OSError:
            continue  # it has ended meanwhile, or is not ours
        if mark in known:
            found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found
