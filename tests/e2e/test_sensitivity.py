from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_devicelab.cli import main
from tests.e2e.audit_lab import deep_matrix, digits_matrix

Sensitivity = Callable[[str, str], tuple[int, Any]]


def command(matrix: Path, capsys: pytest.CaptureFixture[str]) -> Sensitivity:
    def run(model: str, device: str) -> tuple[int, Any]:
        arguments = ["sensitivity", model, "--devices", device, "--matrix", str(matrix), "--samples", "4"]
        status = main([*arguments, "--reports", str(matrix.parent / "reports"), "--json"])
        (found,) = json.loads(capsys.readouterr().out)["devices"]
        return status, found

    return run


@pytest.fixture
def digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Sensitivity:
    return command(digits_matrix(tmp_path), capsys)


@pytest.fixture
def deep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Sensitivity:
    return command(deep_matrix(tmp_path, layers=11), capsys)


def different(found: Any) -> dict[str, int]:
    """How many elements of the first output each switch that could be tried changes."""
    return {
        result["switch"]: result["changes"][0]["elements_different"]
        for result in found["results"]
        if result["changes"]
    }


def test_a_tap_that_pushes_nodes_off_the_npu_is_told_from_fusion(digits: Sensitivity) -> None:
    status, found = digits("transformer_ort", "v75")
    assert status == 1
    assert found["answer"].startswith(
        "It is the placement, not the fusion: a tap on k_heads_QuantizeLinear_Output (Transpose k_heads) puts "
    )
    changed = {name for name, count in different(found).items() if count}
    assert changed == {
        "a tap on k_heads_QuantizeLinear_Output (Transpose k_heads)",
        "offload_graph_io_quantization=1",
        "float model in fp16",
    }
    (tap,) = (result for result in found["results"] if result["switch"].startswith("a tap on k_heads"))
    assert "MatMul attn_qk: cpu" in tap["moved"]
    assert tap["changes"][0]["max_lsb"] >= 1


def test_what_a_compiler_refuses_is_said_and_not_counted(digits: Sensitivity) -> None:
    status, found = digits("transformer", "v75")
    assert status == 1  # graph edges on the CPU, and fp16, give other bits
    assert found["answer"].startswith("It is not the fusion: ")
    assert found["answer"].endswith("(not tried, because v75 refuses them: 1 more).")
    (refused,) = (result for result in found["results"] if result["problem"])
    assert refused["switch"] == "a tap on k_heads_QuantizeLinear_Output (Transpose k_heads)"
    assert "Failed to add fused Matmul node" in refused["problem"]
    counts = different(found)
    assert counts["runtime ort"] == counts["htp_graph_finalization_optimization_mode=3"] == 0
    assert counts["taps on 7 tensors behind nodes that only move values"] == 0
    assert counts["offload_graph_io_quantization=1, under runtime ort"] > 0
    assert counts["float model in fp16"] > 0


def test_fusion_is_blamed_where_a_tap_alone_changes_bits(deep: Sensitivity) -> None:
    status, found = deep("deep", "fusing")
    assert status == 1
    assert found["answer"] == (
        "It is the fusion: a tap on layer0_q (QuantizeLinear layer0_Q) changes the output's bits on fusing, "
        "and it is not the only one."
    )
    named = [name for name, count in different(found).items() if name.startswith("a tap on ") and count]
    assert len(named) == 3
    assert all(count == 0 for name, count in different(found).items() if "finalization" in name)


def test_a_device_that_does_not_repeat_its_bits_gets_no_answer(deep: Sensitivity) -> None:
    status, found = deep("deep", "restless")
    assert status == 2
    assert found["answer"] == "It cannot be said: restless does not repeat its own bits from run to run."


def test_a_model_that_does_not_run_gives_no_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix = deep_matrix(tmp_path, layers=11)
    arguments = ["sensitivity", "deep", "--devices", "refusing", "--matrix", str(matrix)]
    assert main([*arguments, "--reports", str(tmp_path / "reports")]) == 2
    assert "deep does not run on refusing" in capsys.readouterr().err
