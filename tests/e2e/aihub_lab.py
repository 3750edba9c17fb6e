"""A lab session on devices of the AI Hub double, as its tests use it; also a process to be killed.

`python -m tests.e2e.aihub_lab STORE CACHE MATRIX` evaluates the model on every device.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from pytest_devicelab.evidence.record import RunRecord
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.lab.address import LabAddress
from pytest_devicelab.lab.lab import Lab
from pytest_devicelab.lab.session import LabSession
from pytest_devicelab.matrix.decode import load_matrix

FIXTURES = Path(__file__).parents[2] / "fixtures"


def write_matrix(folder: Path, *devices: str, options: str = "") -> Path:
    """Write a matrix of these devices with the digits network, eight samples."""
    path = folder / "matrix.yaml"
    path.write_text(
        "schema: devicelab.matrix/1\ndevices:\n"
        + "".join(f"  - {{{device}}}\n" for device in devices)
        + f"models:\n  - {{id: cnn, path: {FIXTURES}/digits_cnn/int8.onnx,"
        f" reference: {FIXTURES}/digits_cnn/float.onnx, inputs: {FIXTURES}/digits_eval.npz, samples: 8{options}}}\n"
    )
    return path


@contextmanager
def cloud_session(root: Path, cache: Path, matrix: Path) -> Iterator[LabSession]:
    """Open a session with no adb behind it: devices of AI Hub need none."""
    root.mkdir(parents=True, exist_ok=True)
    read = load_matrix(matrix)
    session = LabSession(
        matrix=read,
        devices=read.devices,
        store=SessionStore.open(root),
        lab=Lab(LabAddress(host="127.0.0.1", port=1, ports={}), holder="test"),
        cache=cache,
        progress=lambda text: None,
    )
    with closing(session):
        yield session


def evaluate(root: Path, cache: Path, matrix: Path) -> Mapping[str, RunRecord]:
    with cloud_session(root, cache, matrix) as session:
        return session.evaluate_all(session.matrix.models[0])


if __name__ == "__main__":
    for name, record in evaluate(*map(Path, sys.argv[1:])).items():
        sys.stdout.write(f"{name} {record.status} {record.error}\n")
