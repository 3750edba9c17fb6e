"""`expect:` in the matrix, on Qualcomm's HTP simulator: a fallback is accepted where it is declared, else red."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from tests.plugin.projects import FIXTURES, Project

PHONE = {"id": "v75", "kind": "virtual", "soc": "SM8650"}
MODEL = {
    "id": "channelnorm",
    "path": str(FIXTURES / "digits_channelnorm" / "int8.onnx"),
    "reference": str(FIXTURES / "digits_channelnorm" / "float.onnx"),
    "inputs": str(FIXTURES / "digits_eval.npz"),
    "labels": str(FIXTURES / "digits_labels.npy"),
    "runtime": "ort",
    "options": {"offload_graph_io_quantization": 0},
    "samples": 8,
}
REASON = "INT8 LayerNormalization is for the last axis only"
EXPECT = {"fallbacks": [{"op": "LayerNormalization", "reason": REASON}]}


def test_a_declared_fallback_is_green_and_the_same_without_the_declaration_is_red(project: Project) -> None:
    project.write_matrix([PHONE], [{**MODEL, "expect": EXPECT}])
    declared = project.run()
    assert declared.ret == pytest.ExitCode.OK
    assert set(project.junit().values()) == {"passed"}
    (fallback,) = project.session()["fallbacks"]
    assert (fallback["op"], fallback["expected"], fallback["expected_reason"]) == (
        "LayerNormalization",
        True,
        REASON,
    )
    assert "only supports normalization along the last axis" in fallback["reason"]

    project.write_matrix([PHONE], [MODEL])
    undeclared = project.run()
    assert undeclared.ret == pytest.ExitCode.TESTS_FAILED
    assert project.junit() == {
        "test_placement[channelnorm-v75]": "failure",
        "test_determinism[channelnorm-v75]": "passed",
        "test_accuracy[channelnorm-v75]": "passed",
    }
    (failure,) = ElementTree.parse("junit.xml").iter("failure")
    message = failure.text or ""
    # The operator, the runtime's own reason, and the line that would declare it.
    assert "1 undeclared fallback(s) to the CPU: LayerNormalization" in message
    assert "only supports normalization along the last axis" in message
    assert 'expect: {fallbacks: [{op: "LayerNormalization"' in message
    assert "Traceback" not in undeclared.stdout.str()
