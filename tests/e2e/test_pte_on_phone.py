"""Programs lowered for QNN on a phone: a virtual device that the lab takes for one, with a stand-in for the runner."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.devices.slots import DEVICE_ROOT
from pytest_devicelab.evidence.record import ModelIdentity, RunRecord
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.lab.attempts import run_on_device
from pytest_devicelab.lab.request import RunRequest
from pytest_devicelab.matrix.specs import log_profile
from tests.e2e.virtual_lab import VirtualLab

FIXTURES = Path(__file__).parents[2] / "fixtures"
RUNNER = "/data/local/tmp/executor-runner"
# One float32 [1, 10] a sample: what it computes is of no interest here, what it is told and leaves is.
_STUB = """#!/bin/sh
for word in "$@"; do
    case $word in
        --input_list_path=*) list=${word#*=} ;;
        --output_folder_path=*) out=${word#*=} ;;
    esac
done
sample=0
while read -r file; do
    head -c 40 "$file" > "$out/output_${sample}_0.raw"
    sample=$((sample+1))
done < "$list"
echo done
"""
Run = Callable[..., RunRecord]


@pytest.fixture
def run(virtual_lab: VirtualLab, tmp_path: Path) -> Iterator[Run]:
    program = virtual_lab.root("s24") / RUNNER.removeprefix("/")
    program.write_text(_STUB)
    program.chmod(0o755)

    def run(name: str, *, kind: str = "adb", stub: str = _STUB) -> RunRecord:
        program.write_text(stub)
        path = FIXTURES / "pte" / name
        request = RunRequest(
            id=path.stem,
            model=ModelIdentity(id="cnn", variant="", sha256=hashlib.sha256(path.read_bytes()).hexdigest()),
            path=path,
            runtime="executorch",
            options={},
            inputs={"input_0": np.arange(128, dtype=np.float32).reshape(2, 1, 8, 8)},
            purpose="evaluate",
            logging=log_profile("verbose"),
            timeout_s=60,
        )
        serial = virtual_lab.serial("s24") if kind == "adb" else None
        spec = replace(virtual_lab.specs["s24"], kind=kind, serial=serial, runners={"executorch": RUNNER})
        store = SessionStore.create(tmp_path / "reports", f"{kind}-{len(list(tmp_path.glob('reports/*')))}")
        device = AdbDevice(spec, virtual_lab.transport("s24"))
        record = run_on_device(device, request, store, cache=tmp_path / "cache")
        if record.outputs:
            np.testing.assert_array_equal(store.read_output(record.outputs[0])[1], np.arange(64, 74))
        return record

    yield run
    program.unlink()


def test_a_program_for_the_phones_npu_runs_there(run: Run) -> None:
    record = run("qnn_sm8650_inline.pte")
    assert (record.status, record.backend) == ("ok", "htp"), record.error
    assert record.versions == {"qairt": "2.46.0"}
    assert [(output.dtype, output.shape) for output in record.outputs] == [("float32", (2, 10))]


def test_outputs_that_are_missing_or_short_are_no_result(run: Run) -> None:
    assert "missing or incomplete" in run("qnn_sm8650_inline.pte", stub="#!/bin/sh\nexit 0\n").error
    assert "has the wrong size" in run("qnn_sm8650_inline.pte", stub=_STUB.replace("-c 40", "-c 39")).error


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (
            "adb",
            "QnnBackend for SM8550 (Hexagon V73), made with QAIRT 2.46.0; the device is SM8650, Hexagon V75",
        ),
        ("virtual", "lowered for QNN, which a virtual device does not run"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_pushed(
    virtual_lab: VirtualLab, run: Run, kind: str, said: str
) -> None:
    path = FIXTURES / "pte/qnn_sm8550.pte"
    record = run(path.name, kind=kind)
    assert record.status == "failed"
    assert said in record.error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert not (virtual_lab.root("s24") / f"{DEVICE_ROOT}/slots/{digest}".removeprefix("/")).exists()
    assert record.transfers.pushed_bytes == 0
