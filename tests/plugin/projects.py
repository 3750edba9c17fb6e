"""A user's project in a folder: a small model with its files, a matrix, and pytest runs in it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import numpy as np
import numpy.typing as npt
import onnx
import pytest
import yaml

from pytest_devicelab.report.session import session_schema

SAMPLES = 12
FEATURES, CLASSES = 4, 3
FIXTURES = Path(__file__).parents[2] / "fixtures"

_CPU: Mapping[str, object] = {"kind": "virtual", "soc": "Tensor G4", "engine": "cpu", "runtime": "ort"}


def npu(device_id: str, engine: str) -> dict[str, object]:
    """Describe a Snapdragon whose NPU is one of the engines beside this file."""
    return {"id": device_id, "kind": "virtual", "soc": "SM8650", "engine": f"tests.plugin.engines:{engine}"}


def cpu(device_id: str) -> dict[str, object]:
    """Describe a chip without an NPU."""
    return {"id": device_id, **_CPU}


def save_model(path: Path, weights: npt.NDArray[np.floating]) -> None:
    """Write a fully connected layer: `x [1, 4]` -> `y [1, 3]`."""
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, FEATURES])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, CLASSES])
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")
    graph = onnx.helper.make_graph(
        [node], "tiny", [x], [y], [onnx.numpy_helper.from_array(weights.astype(np.float32), "w")]
    )
    opsets = [onnx.helper.make_opsetid("", 21)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


@dataclass(kw_only=True)
class Project:
    """The project of one test.

    Attributes:
        model: keys of the model's entry that are not the usual ones; None takes a key out.
    """

    pytester: pytest.Pytester
    model: dict[str, object] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The project's folder."""
        return self.pytester.path

    def write(self, *devices: Mapping[str, object], models: Sequence[Mapping[str, object]] = ()) -> None:
        """Write model, float model, inputs, labels and the matrix."""
        rng = np.random.default_rng(7)
        weights = rng.standard_normal((FEATURES, CLASSES)).astype(np.float32)
        x = rng.standard_normal((SAMPLES, FEATURES)).astype(np.float32)
        save_model(self.path / "float.onnx", weights)
        save_model(self.path / "model.onnx", np.round(weights * 64) / 64)
        np.savez(self.path / "inputs.npz", x=x)
        np.save(self.path / "labels.npy", (x @ weights).argmax(axis=1))
        usual: dict[str, object] = {
            "id": "tiny",
            "path": "model.onnx",
            "reference": "float.onnx",
            "inputs": "inputs.npz",
            "labels": "labels.npy",
            "runtime": "ort",
        }
        entry = {key: value for key, value in {**usual, **self.model}.items() if value is not None}
        self.write_matrix(devices, models or [entry])

    def write_matrix(
        self, devices: Sequence[Mapping[str, object]], models: Sequence[Mapping[str, object]]
    ) -> None:
        """Write `m.yaml`."""
        matrix = {
            "schema": "devicelab.matrix/1",
            "devices": [dict(device) for device in devices],
            "models": [dict(model) for model in models],
        }
        (self.path / "m.yaml").write_text(yaml.safe_dump(matrix, sort_keys=False))

    def run(self, *arguments: str) -> pytest.RunResult:
        """Run pytest in a process of its own, as a user does."""
        return self.pytester.runpytest_subprocess(
            "--devices=m.yaml", "--junitxml=junit.xml", *arguments, timeout=120
        )

    def run_inprocess(self, *arguments: str) -> pytest.RunResult:
        """Run pytest in this process: for runs that start no lab."""
        return self.pytester.runpytest_inprocess("--devices=m.yaml", *arguments)

    @property
    def folder(self) -> Path:
        """The newest session's folder."""
        return self.path / "reports" / "latest"

    def session(self) -> dict[str, Any]:
        """Return the newest session's `session.json`, which holds to the schema that is shipped."""
        data: dict[str, Any] = json.loads((self.folder / "session.json").read_bytes())
        jsonschema.Draft202012Validator(session_schema()).validate(data)
        return data

    def verdicts(self) -> dict[tuple[str, str], str]:
        """Return the newest session's verdicts by check and devices."""
        return {
            (entry["check"], " ".join(entry["devices"])): entry["verdict"]
            for entry in self.session()["verdicts"]
        }

    def record(self, device: str, purpose: str = "evaluate") -> dict[str, Any]:
        """Return what a run left behind."""
        (run,) = (
            run for run in self.session()["runs"] if (run["device"], run["purpose"]) == (device, purpose)
        )
        data: dict[str, Any] = json.loads((self.folder / run["record"]).read_bytes())
        return data

    def junit(self) -> dict[str, str]:
        """Return how JUnit XML has each test, by name: `passed`, `failure`, `error` or `skipped`."""
        found = {}
        for case in ElementTree.parse(self.path / "junit.xml").iter("testcase"):
            marks = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
            found[case.attrib["name"]] = "+".join(marks) or "passed"
        return found


def one_message(result: pytest.RunResult) -> str:
    """Check that a run ended as a user's mistake must, and return the one message it printed."""
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    said = result.stderr.str() + result.stdout.str()
    assert "Traceback" not in said
    assert "INTERNALERROR" not in said
    nothing, *messages = re.split("^ERROR: ", result.stderr.str(), flags=re.MULTILINE)
    assert not nothing.strip(), said
    assert len(messages) == 1, said
    return messages[0]
