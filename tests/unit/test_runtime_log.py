from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_devicelab.evidence.record import NodePlacement, OpRow
from pytest_devicelab.virtual.engine import LogLine
from pytest_devicelab.virtual.placement import left_to_cpu
from pytest_devicelab.virtual.profile import op_rows
from pytest_devicelab.virtual.runtime_log import RefusedOp, captured, log_lines, misread_chip, refused_ops

STAMP = "2026-11-20 10:00:00.123456789"
ORT = f"{STAMP} [V:onnxruntime:, qnn_execution_provider.cc:1713 LogNodeSupport]"
QNN = f"{STAMP} [V:onnxruntime:Default, qnn_backend_manager.cc:519 QnnLogging]"


def unit(verdict: str, op: str, node: str, reason: str = "") -> str:
    lines = [
        f"{ORT} Validation {verdict} for 3 nodes in OrtNodeUnit ({op}) :",
        f"\tOperator type: DequantizeLinear Node name: {node}_dq Node index: 1",
        f"\tOperator type: {op} Node name: {node} Node index: 2",
        f"\tOperator type: QuantizeLinear Node name: {node}_q Node index: 3",
        f"\tREASON : {reason}" if reason else "",
    ]
    return "\n".join([*lines, ""])


def test_lines_carry_tags_and_priorities() -> None:
    raw = "\n".join(
        [
            f"{ORT} one",
            "\tits second line",
            f"{QNN}  <E> two",
            f"\x1b[0;93m{STAMP} [W:onnxruntime:, session_state.cc:1598 Verify] three\x1b[m",
            f"{QNN} four without a level",
            "",
        ]
    ).encode()
    head = "[V:onnxruntime:, qnn_execution_provider.cc:1713 LogNodeSupport]"
    assert log_lines(raw, "verbose") == (
        LogLine(tag="onnxruntime", priority="V", message=f"{head} one"),
        LogLine(tag="onnxruntime", priority="V", message="\tits second line"),
        LogLine(tag="QnnDsp", priority="E", message=" <E> two"),
        LogLine(
            tag="onnxruntime", priority="W", message="[W:onnxruntime:, session_state.cc:1598 Verify] three"
        ),
        LogLine(tag="QnnDsp", priority="V", message="four without a level"),
    )
    assert [line.priority for line in log_lines(raw, "warn")] == ["E", "W"]
    assert [line.priority for line in log_lines(raw, "error")] == ["E"]
    assert log_lines(raw, "off") == ()


def test_bytes_that_are_not_text_do_not_break_the_log() -> None:
    (line,) = log_lines(QNN.encode() + b"  <W> \xff\xfe", "warn")
    assert line.message.startswith(" <W> ")


def test_refused_ops_keep_the_reason_and_drop_what_a_later_pass_took() -> None:
    raw = (
        unit("FAILED", "LayerNormalization", "norm", "first reason")
        + unit("FAILED", "Conv", "conv", "layout")
        + unit("PASSED", "Conv", "conv_token_3")
        + unit("FAILED", "LayerNormalization", "norm_token_1", "last axis only")
        + unit("FAILED", "Gelu", "gelu")
    ).encode()
    assert refused_ops(raw) == (
        RefusedOp(op="LayerNormalization", node="norm", reason="last axis only"),
        RefusedOp(op="Gelu", node="gelu", reason="the execution provider gave no reason"),
    )


@pytest.mark.parametrize(
    ("log", "arch", "problem"),
    [
        ("QNN SetupBackend succeed", "68", ""),
        ("SoC 57, will overwrite it to 75\nQNN SetupBackend succeed", "75", ""),
        ("SoC 57, will overwrite it to 75\nQNN SetupBackend succeed", "79", "V75, not to a V79"),
        ("QNN SetupBackend succeed", "75", "V68, not to a V75"),
        ("Unknown config socModel 0\nQNN SetupBackend succeed", "75", "could not be set up"),
        ("", "75", "could not be set up"),
    ],
)
def test_misread_chip(log: str, arch: str, problem: str) -> None:
    found = misread_chip(log.encode(), arch)
    assert problem in found
    assert bool(found) == bool(problem)


def test_capture_takes_the_file_descriptors_and_gives_them_back(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log"
    with captured(path) as written:
        os.write(1, b"out ")
        assert written() == len(b"out ")
        os.write(2, b"err")
    os.write(1, b"after")
    assert path.read_bytes() == b"out err"
    assert capfd.readouterr().out == "after"


def place(node: str, op: str, unit: str) -> NodePlacement:
    return NodePlacement(node=node, op=op, unit=unit)


def test_edges_on_the_cpu_are_benign_and_neighbours_are_not_blamed() -> None:
    placement = (
        place("x_q", "QuantizeLinear", "cpu"),
        place("conv", "Conv", "htp"),
        place("norm_dq", "DequantizeLinear", "cpu"),
        place("norm", "LayerNormalization", "cpu"),
        place("DequantizeLinear_token_9", "DequantizeLinear", "cpu"),
    )
    ops = {"x_q", "conv", "norm_dq", "norm"}
    refused = (RefusedOp(op="LayerNormalization", node="norm", reason="axis"),)
    assert left_to_cpu(placement, refused, ops=ops, edges={"x_q"}) == refused
    assert left_to_cpu(placement[:2], refused, ops=ops, edges={"x_q"}) == ()
    (only,) = left_to_cpu(placement[:3], (), ops=ops, edges={"x_q"})
    assert only.node == "norm_dq"
    assert "gave no reason" in only.reason


def test_op_rows_are_the_first_inference_s() -> None:
    head = "Msg Timestamp,Message,Time,Unit of Measurement,Timing Source,Event Level,Event Identifier,ONNX Source Ops"
    rows = [
        head,
        "0,FINALIZE,8588,US,BACKEND,ROOT,QNN (finalize) time,",
        "0,NODE,10,CYCLES,BACKEND,SUB-EVENT,Input OpId_2 (cycles),",
        "0,NODE,20,CYCLES,BACKEND,SUB-EVENT,c_token_1:OpId_5 (cycles),w_dq;c_token_1;Transpose_token_7",
        "0,NODE,0,CYCLES,BACKEND,SUB-EVENT,relu:OpId_6 (cycles),",
        "0,EXECUTE,100,US,BACKEND,ROOT,QNN (execute) time,",
        "0,NODE,99,CYCLES,BACKEND,SUB-EVENT,c_token_1:OpId_5 (cycles),c_token_1",
        "0,EXECUTE,100,US,BACKEND,ROOT,QNN (execute) time,",
    ]
    text = "\n".join(rows).encode()
    ops = {"c": "Conv", "w_dq": "DequantizeLinear"}
    assert op_rows(text, ops, origins={"relu": ("Relu:relu",)}) == (
        OpRow(name="Input OpId_2", cycles=10),
        OpRow(
            name="c_token_1:OpId_5",
            cycles=20,
            sources=("DequantizeLinear:w_dq", "Conv:c", "Transpose_token_7"),
        ),
        OpRow(name="relu:OpId_6", cycles=0, sources=("Relu:relu",)),
    )
    assert [row.cycles for row in op_rows(text, ops, partitions=2)] == [10, 20, 0, 99]
    assert op_rows(b"", ops) == ()


def test_op_rows_of_a_phone_are_events_of_an_execution() -> None:
    """As qnn-profile-viewer writes them: lines of its own first, blanks behind commas, no NODE, no source."""
    once = [
        "7,EXECUTE,3301,US,NETRUN,ROOT,Graph 0: model",
        "7,EXECUTE,4,COUNT,BACKEND,ROOT,Number of HVX threads used",
        "7,EXECUTE,149241,CYCLES,BACKEND,ROOT,Accelerator (execute) time (cycles)",
        "7,EXECUTE,10,CYCLES,BACKEND,SUB-EVENT,Input OpId_2 (cycles)",
        "7,EXECUTE,20,CYCLES,BACKEND,SUB-EVENT,conv:OpId_119 (cycles)",
        "7,EXECUTE,1,US,BACKEND,SUB-EVENT,conv:OpId_119",
        "7,EXECUTE,0,CYCLES,BACKEND,SUB-EVENT,relu:OpId_120 (cycles)",
        "7,EXECUTE,3278,US,BACKEND,ROOT,QNN (execute) time",
    ]
    heads = "Msg Timestamp, Message, Time, Unit of Measurement, Timing Source, Event Level, Event Identifier"
    lines = [
        "SDK version,2.51.0",
        "",
        heads,
        "1,INIT,9,US,NETRUN,ROOT,",
        *once,
        *(row.replace(",20,", ",21,") for row in once),
    ]
    found = op_rows("\n".join(lines).encode(), {}, origins={"conv": ("Conv:c",)})
    assert found == (
        OpRow(name="Input OpId_2", cycles=10),
        OpRow(name="conv:OpId_119", cycles=20, sources=("Conv:c",)),
        OpRow(name="relu:OpId_120", cycles=0),
    )
    with pytest.raises(KeyError):
        op_rows(b"qnn-profile-viewer: no such file\n", {})
