"""A whole session of an ordinary user, with and without mount namespaces."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
NOBODY = 65534
MATRIX = """
schema: devicelab.matrix/1
devices:
  - {id: s24, kind: virtual, soc: SM8650}
  - {id: pixel, kind: virtual, soc: Tensor G4, engine: cpu, runtime: ort}
models:
  - id: digits
    path: fixtures/digits_cnn/int8.onnx
    reference: fixtures/digits_cnn/float.onnx
    inputs: fixtures/digits_eval.npz
    labels: fixtures/digits_labels.npy
    samples: 16
"""
# What tells the modes apart: the device's `/` as a process on it must write it.
OWN_TEST = """
from pathlib import Path

def test_where_its_root_is(device):
    Path(f"root-of-{device.id}").write_text(device.script('echo "$VROOT"').text)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A folder with a matrix, and how to run pytest in it without privileges."""

    path: Path
    user: Sequence[str]
    python: str

    def pytest(self, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        own = {"PATH": os.environ["PATH"], "HOME": str(self.path), "TMPDIR": str(self.path / "tmp")}
        command = ("-m", "pytest", "--devices=matrix.yaml", "-q", "-p", "no:cacheprovider", *options)
        return self.run(*command, env=own | environment)

    def run(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.user, self.python, *arguments],
            cwd=self.path,
            env=env,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )


AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--")
WITHOUT_CAPABILITIES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--")
USABLE = "import subprocess, sys, onnxruntime_qnn; subprocess.run([sys.executable, '-c', ''], check=True)"


def ways(path: Path) -> Iterator[Project]:
    """Every way to be unprivileged here, the best first; root's own Python may be out of reach of others."""
    if os.geteuid() != 0:
        yield Project(path=path, user=(), python=sys.executable)
        return
    for entry in (path, *path.rglob("*")):
        os.chown(entry, NOBODY, NOBODY)
    yield Project(path=path, user=AS_NOBODY, python=sys.executable)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if system := shutil.which(f"python{version}", path="/usr/bin:/usr/local/bin"):
        subprocess.run([system, "-m", "venv", "--without-pip", path / "venv"], check=True)
        packages = path / "venv" / "lib" / f"python{version}" / "site-packages"
        (packages / "ours.pth").write_text("\n".join((*site.getsitepackages(), str(REPOSITORY))))
        yield Project(path=path, user=AS_NOBODY, python=str(path / "venv/bin/python"))
    for entry in (path, *path.rglob("*")):
        os.chown(entry, 0, 0, follow_symlinks=False)
    yield Project(path=path, user=WITHOUT_CAPABILITIES, python=sys.executable)


@pytest.fixture
def project() -> Iterator[Project]:
    # Not below pytest's own temporary folder, which only its user may enter.
    with tempfile.TemporaryDirectory(prefix="dlu-", dir="/tmp") as folder:
        path = Path(folder)
        shutil.copytree(
            REPOSITORY / "fixtures", path / "fixtures", ignore=shutil.ignore_patterns("__pycache__")
        )
        (path / "matrix.yaml").write_text(MATRIX)
        (path / "test_own.py").write_text(OWN_TEST)
        (path / "tmp").mkdir()
        usable = next((way for way in ways(path) if way.run("-c", USABLE).returncode == 0), None)
        assert usable is not None, "setpriv of util-linux is needed to run as an unprivileged user"
        yield usable


def outputs(project: Project) -> dict[str, Any]:
    """sha256 of each output of the newest session, by run."""
    records = [
        json.loads(path.read_text()) for path in (project.path / "reports/latest/runs").glob("*/record.json")
    ]
    assert all(record["status"] == "ok" for record in records)
    return {record["id"]: [output["sha256"] for output in record["outputs"]] for record in records}


def roots(project: Project) -> list[str]:
    return [path.read_text().strip() for path in sorted(project.path.glob("root-of-*"))]


def test_both_modes_give_the_same_bits(project: Project) -> None:
    done = project.pytest(DEVICELAB_NAMESPACE="never")
    assert done.returncode == 0, done.stdout + done.stderr
    without, seen = outputs(project), roots(project)
    assert {run.split(".")[1] for run in without} == {"s24", "pixel"}
    assert len(seen) == 2
    assert all(root.startswith(str(project.path / "tmp")) for root in seen)

    done = project.pytest(DEVICELAB_NAMESPACE="require")
    if "no mount namespace" in done.stderr + done.stdout:
        pytest.skip("this kernel or container lets nobody have a mount namespace")
    assert done.returncode == 0, done.stdout + done.stderr
    assert outputs(project) == without
    assert roots(project) == ["", ""]
    assert list((project.path / "tmp").glob("dl-*")) == []


def test_where_namespaces_are_forbidden(project: Project) -> None:
    forbidding = project.path / "bin"
    forbidding.mkdir()
    (forbidding / "unshare").write_text("#!/bin/sh\necho 'unshare: Operation not permitted' >&2\nexit 1\n")
    (forbidding / "unshare").chmod(0o755)
    path = f"{forbidding}:{os.environ['PATH']}"
    few = ("-k", "placement or root", "--devicelab-select", "id=pixel")

    done = project.pytest(*few, PATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert outputs(project)
    assert all(root.startswith(str(project.path / "tmp")) for root in roots(project))

    done = project.pytest(*few, PATH=path, DEVICELAB_NAMESPACE="require")
    assert done.returncode not in (0, 1), done.stdout
    assert "no mount namespace" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_wish_nobody_understands(project: Project) -> None:
    done = project.pytest(DEVICELAB_NAMESPACE="yes please")
    assert done.returncode == 4
    assert "$DEVICELAB_NAMESPACE is 'yes please'" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (project.path / "reports").exists()
