from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from pytest_devicelab import cli
from pytest_devicelab.audit.fingerprint.catalogue import all_probes
from pytest_devicelab.audit.fingerprint.compare import compare, known_fingerprints
from pytest_devicelab.audit.fingerprint.fingerprint import read_fingerprint
from pytest_devicelab.audit.fingerprint.pack import pack_model
from pytest_devicelab.audit.fingerprint.probe import Candidate, Probe
from pytest_devicelab.audit.fingerprint.sketch import Grid, Sketch
from pytest_devicelab.audit.fingerprint.take import take_fingerprint
from pytest_devicelab.lab.open import open_session
from pytest_devicelab.matrix.decode import load_matrix
from pytest_devicelab.matrix.soc import find_soc
from pytest_devicelab.virtual.engine import EngineJob, Tensors
from pytest_devicelab.virtual.engines.htp import run_htp

MATRIX = """\
schema: devicelab.matrix/1
lab: {adb: private, run_timeout_s: 300}
devices:
  - {id: v73, kind: virtual, soc: SM8550}
  - {id: g4, kind: virtual, soc: Tensor G4, engine: cpu, runtime: ort}
models:
  - {id: unused, path: unused.onnx}
"""
# Asked on their own and among all others: one of each kind of arithmetic, and those that part between chips.
ALONE = (
    "requantize_ties_uint16_zero32768_by256",
    "quantize_precision_uint8",
    "conv_scale_uint8_by777p7",
    "matmul_scale_uint16_by1234p5",
    "depthwise_bias_uint8",
    "table_reciprocal_uint8",
    "table_softmax_uint16",
    "resize_align_corners_uint8",
    "fused_conv_relu_uint8_by16",
    "half_add_overflow",
    "half_conv_small",
    "half_table_softmax",
)


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    path = tmp_path / "matrix.yaml"
    path.write_text(MATRIX)
    (tmp_path / "unused.onnx").write_bytes(b"")
    return path


def same_versions(versions: Mapping[str, str]) -> str:
    """Say which library differs from what a fingerprint was taken with; empty when none does."""
    here = {name: importlib.metadata.version(name) for name in ("onnxruntime", "onnxruntime-qnn")}
    differ = [
        f"{name} {versions[name]} then, {here[name]} here" for name in here if versions[name] != here[name]
    ]
    return ", ".join(differ)


def test_a_simulated_chip_answers_as_the_package_says_it_does(
    matrix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (committed,) = (one for one in known_fingerprints() if one.device.hexagon == "V73")
    out = tmp_path / "{device}_{hexagon}.json"
    command = ["fingerprint", "--matrix", str(matrix), "--devices", "v73", "--out", str(out)]
    assert cli.main([*command, "--reports", str(tmp_path / "reports"), "--date", "2026-11-20"]) == 0
    printed = capsys.readouterr().out
    taken = read_fingerprint(tmp_path / "v73_v73.json")

    # Known from other measurements, whatever the version: requantization rounds half up, here on a real path.
    answers = {answer.name: answer for answer in taken.probes}
    assert answers["requantize_ties_uint8_zero128_by4"].facts == {"rounding": "half up"}
    assert len(answers) == len(all_probes())
    assert not [answer.name for answer in taken.probes if answer.status in ("not_on_npu", "unstable")]

    if reason := same_versions(committed.versions):
        pytest.skip(f"bits are promised for equal library versions only: {reason}")
    diff = compare(committed, taken)
    assert diff.same is True, [pair[1].words for pair in diff.different]
    assert f"V73 simulator equals V73 simulator on {len(answers)} of {len(answers)} probes" in printed


def test_a_device_without_npu_has_no_fingerprint(
    matrix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["fingerprint", "--matrix", str(matrix), "--devices", "g4", "--json"]
    assert cli.main([*command, "--reports", str(tmp_path / "reports")]) == 2
    data = json.loads(capsys.readouterr().out)
    (taken,) = data["fingerprints"]
    assert {probe["status"] for probe in taken["probes"]} == {"not_on_npu"}
    assert not any("sha256" in probe for probe in taken["probes"])
    assert data["nearest"] == {"g4": []}


def lone_quantize() -> Probe:
    """A QuantizeLinear with nothing behind it, which ONNX Runtime keeps on the CPU and rounds half to even."""
    grid = Grid(scale=1, zero=128, dtype="uint8")
    values = (np.arange(256) - 128 + 0.5).clip(-128, 126.5).astype(np.float32)[None]
    even = np.rint(values).astype(np.int64) + 128
    sketch = Sketch("alone")
    return sketch.probe(
        sketch.quantize(sketch.input(values), grid),
        op="QuantizeLinear",
        dtype="uint8",
        output_dtype="uint8",
        shape=values.shape,
        question="how does it round?",
        candidates=(Candidate(facts={"rounding": "half even"}, expected=even.astype(np.uint8)),),
    )


def test_what_the_cpu_computed_is_not_the_chip_s_answer(matrix: Path, tmp_path: Path) -> None:
    loaded = load_matrix(matrix)
    device = loaded.device("v73")
    with open_session(loaded, (device,), reports=tmp_path / "reports", progress=lambda text: None) as session:
        taken = take_fingerprint(session, device, [lone_quantize()], runtime="ort", date="2026-11-20")
        record = next(record for record in session.store.records() if record.runtime == "ort")
        outputs = session.outputs(record)["alone_n0"]
    (answer,) = taken.probes
    assert np.array_equal(outputs[0], lone_quantize().candidates[0].expected[0])  # half even indeed
    assert (answer.status, answer.sha256, answer.facts) == ("not_on_npu", "", {})


@pytest.mark.parametrize("part", ["SM8350", "SM8850"])
def test_probes_answer_the_same_alone_and_in_company(part: str, tmp_path: Path) -> None:
    probes = {probe.name: probe for probe in all_probes()}

    def ask(names: tuple[str, ...]) -> Tensors:
        group = [probes[name] for name in names]
        work = tmp_path / "_".join(names)[:60]
        work.mkdir()
        model = work / "model.onnx"
        model.write_bytes(pack_model(group))
        inputs = {name: array for probe in group for name, array in probe.inputs.items()}
        soc, options = find_soc(part)[0], dict(group[0].options)
        job = EngineJob(model=model, format="onnx", inputs=(inputs,), soc=soc, work=work, options=options)
        return run_htp(job).outputs[0]

    for kind in {probes[name].options for name in ALONE}:
        names = tuple(
            probe.name for probe in all_probes() if probe.options == kind and "float32" not in probe.dtype
        )
        company = ask(names)
        for name in (name for name in ALONE if name in names):
            output = probes[name].output
            assert ask((name,))[output].tobytes() == company[output].tobytes(), name
