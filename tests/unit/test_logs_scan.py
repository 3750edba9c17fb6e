"""scan_log: sessions, processes and threads kept apart; what is lost is counted; nothing raises."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_devicelab.logs.dialect import Rule, RuleDialect
from pytest_devicelab.logs.registry import DIALECTS
from pytest_devicelab.logs.scan import LogScan, scan_log

WHY = "QNN LayerNorm on HTP only supports normalization along the last axis."
REJECTED = (
    "Validation FAILED for 1 nodes in OrtNodeUnit (LayerNormalization) :",
    "\tOperator type: LayerNormalization Node name: norm.{n} Node index: 2",
    f"\tREASON : {WHY}",
)


def scan(*lines: str) -> LogScan:
    return scan_log("\n".join(lines).encode(), source="stderr")


def kinds(result: LogScan) -> list[str]:
    return [event.kind for event in result.events]


def fallbacks(result: LogScan) -> list[tuple[str, str, str]]:
    return [
        (event.fields["op"], event.fields["node"], event.fields["reason"])
        for event in result.events
        if event.kind == "cpu_fallback"
    ]


def test_empty_log_has_no_lines() -> None:
    assert scan_log(b"", source="logcat") == LogScan(events=(), lines=0, unparsed=0, lost=0)


def test_a_node_that_passes_after_the_layout_step_was_not_rejected() -> None:
    passed = (
        "Validation PASSED for 1 nodes in OrtNodeUnit (LayerNormalization) :",
        "\tOperator type: LayerNormalization Node name: norm.1_token_8 Node index: 2",
    )
    lines = [line.format(n=1) for line in REJECTED]
    assert kinds(scan(*lines, *passed)) == []
    assert kinds(scan(*passed, *lines)) == ["op_rejected"]


def test_node_renamed_by_layout_keeps_its_reason() -> None:
    placed = (
        "Node(s) placed on [CPUExecutionProvider]. Number of nodes: 1",
        "LayerNormalization (norm.1_token_4)",
    )
    result = scan(*(line.format(n=1) for line in REJECTED), *placed)
    assert fallbacks(result) == [("LayerNormalization", "norm.1", WHY)]


def test_a_node_the_layout_step_inserted_keeps_its_whole_name() -> None:
    listing = "Node(s) placed on [CPUExecutionProvider]. Number of nodes: 1"
    result = scan(listing, "Transpose (Transpose_token_4)")
    assert fallbacks(result) == [("Transpose", "Transpose_token_4", "")]


def test_threads_that_alternate_do_not_mix_their_blocks() -> None:
    lines = []
    for line in REJECTED:
        for tid in (1, 2):
            lines.append(f"11-20 09:20:00.100  40  {tid} V onnxruntime: {line.format(n=tid)}")
    result = scan(*lines)
    assert [(e.kind, e.fields["node"], e.fields["reason"]) for e in result.events] == [
        ("op_rejected", "norm.1", WHY),
        ("op_rejected", "norm.2", WHY),
    ]


def test_a_rejection_belongs_to_its_own_process() -> None:
    lines = [f"11-20 09:20:00.100  40  40 V onnxruntime: {line.format(n=1)}" for line in REJECTED]
    lines += [
        f"11-20 09:20:00.200  41  41 V onnxruntime: {line}"
        for line in ("All nodes placed on [CPUExecutionProvider]. Number of nodes: 9",)
    ]
    assert kinds(scan(*lines)) == ["op_rejected", "placement"]


def test_each_session_counts_for_itself() -> None:
    session = (
        "Session Options {  execution_mode:0 }",
        *(line.format(n=1) for line in REJECTED),
        *(line.format(n=1) for line in REJECTED),
        "Node(s) placed on [CPUExecutionProvider]. Number of nodes: 1",
        "LayerNormalization (norm.1)",
        "Session successfully initialized.",
    )
    assert kinds(scan(*session, *session)) == ["op_rejected", "placement", "cpu_fallback"] * 2


def test_block_cut_before_its_reason_is_still_a_rejection() -> None:
    (event,) = scan(REJECTED[0], REJECTED[1].format(n=1)).events
    assert (event.kind, event.fields["node"], event.fields["reason"]) == ("op_rejected", "norm.1", "")


def test_nodes_without_names_are_kept_apart_by_op() -> None:
    blocks = [
        line
        for op in ("Det", "STFT")
        for line in (
            f"Validation FAILED for 1 nodes in OrtNodeUnit ({op}) :",
            f"\tOperator type: {op} Node name:  Node index: 0",
            f"\tREASON : no {op}",
        )
    ]
    placed = ("Node(s) placed on [CPUExecutionProvider]. Number of nodes: 2", "Det ()", "STFT ()")
    assert fallbacks(scan(*blocks, *placed)) == [("Det", "", "no Det"), ("STFT", "", "no STFT")]


def test_placement_listing_cut_short_is_lost_evidence() -> None:
    result = scan("Node(s) placed on [CPUExecutionProvider]. Number of nodes: 3", "Softmax (head.softmax)")
    assert kinds(result) == ["placement", "lost_records", "cpu_fallback"]
    assert result.lost == 2


@pytest.mark.parametrize("uses_qnn", [True, False])
def test_whole_graph_on_the_cpu_is_a_fallback_only_where_qnn_was_tried(uses_qnn: bool) -> None:
    lines = ["Creating QNN EP"] * uses_qnn + [
        "All nodes placed on [CPUExecutionProvider]. Number of nodes: 9"
    ]
    expected = [("", "", "whole graph placed on CPUExecutionProvider, nodes: 9")] if uses_qnn else []
    assert fallbacks(scan(*lines)) == expected


def test_one_rejected_op_does_not_explain_a_whole_graph_on_the_cpu() -> None:
    lines = [line.format(n=1) for line in REJECTED]
    result = scan("Creating QNN EP", *lines, "All nodes placed on [CPUExecutionProvider]. Number of nodes: 9")
    assert [node for _, node, _ in fallbacks(result)] == ["norm.1", ""]


def test_quantize_node_rejected_inside_the_graph_is_a_fallback() -> None:
    result = scan(
        "Validation FAILED for 1 nodes in OrtNodeUnit (QuantizeLinear) :",
        "\tOperator type: QuantizeLinear Node name: mid_Q Node index: 4",
        "\tREASON : data type INT32 is not supported",
        "Node(s) placed on [CPUExecutionProvider]. Number of nodes: 2",
        "QuantizeLinear (mid_Q)",
        "QuantizeLinear (image_Q)",
    )
    assert fallbacks(result) == [("QuantizeLinear", "mid_Q", "data type INT32 is not supported")]


def test_warning_without_a_listing_says_the_cpu_has_nodes() -> None:
    (event,) = scan(
        "[W:onnxruntime:, s.cc:1 V] Some nodes were not assigned to the preferred execution providers"
    ).events
    assert (event.kind, event.fields["unit"], event.fields["count"]) == ("placement", "cpu", "")


def test_an_error_logged_and_printed_again_is_one() -> None:
    error = "Failed to finalize QNN graph. Error: QNN_COMMON_ERROR_MEM_ALLOC: no memory, Code: 1002"
    result = scan(
        f"[E:onnxruntime:, qnn_model.cc:390 Finalize] {error}", f"ort-run: {error} (error code 1002)"
    )
    assert [(e.kind, e.fields["stage"], e.fields["code"]) for e in result.events] == [
        ("load_error", "finalize", "1002")
    ]


def test_overlong_line_is_lost_evidence() -> None:
    result = scan("x" * 100_000 + "Fallback to CPU")
    assert (kinds(result), result.lost) == (["lost_records"], 1)


BEEPS = RuleDialect(
    name="beeps",
    rules=(Rule(kind="lost_records", literals=(b"BEEP",), pattern=re.compile("BEEP")),),
)


def test_a_user_adds_a_dialect() -> None:
    result = scan_log(b"Fallback to CPU\nBEEP\n", source="stdout", dialects=(*DIALECTS, BEEPS))
    assert [(e.dialect, e.kind, e.line, e.source) for e in result.events] == [
        ("phrases", "cpu_fallback", 1, "stdout"),
        ("beeps", "lost_records", 2, "stdout"),
    ]
    assert result.lost == 1


TOKENS = st.sampled_from(
    [
        *(line.format(n=1) for line in REJECTED),
        "Node(s) placed on [CPUExecutionProvider]. Number of nodes: 2",
        "All nodes placed on [QNNExecutionProvider]. Number of nodes: 99999",
        "  Softmax (a (b))",
        "Session Options {",
        "Session successfully initialized.",
        "QnnDsp <E> Failed to validate op x with error 0xc26",
        "<E> error -2147482618",
        "Fallback to CPU",
        "11-20 09:20:00.100  1  2 I chatty: uid=1 expire 3 lines",
        "",
    ]
)


@given(st.one_of(st.binary(max_size=600), st.lists(TOKENS, max_size=24).map(lambda t: "\n".join(t).encode())))
@example(b"\xff\xfe\x00\n\r\n\x1b[")
def test_no_log_raises_and_every_event_quotes_its_line(data: bytes) -> None:
    lines = data.split(b"\n")
    result = scan_log(data, source="logcat")
    assert result.lines == len(lines) - (not lines[-1])
    for event in result.events:
        line = lines[event.line - 1]
        assert data[event.offset : event.offset + len(line)] == line
        assert event.raw == line.rstrip(b"\r").decode("utf-8", "replace")
        assert all(isinstance(value, str) for value in event.fields.values())


@pytest.mark.parametrize(
    "text", [" ", "( ", "a(", "{ name: ", "error, ", "<E> error ", "\x1b[", "\x1b[0;", " :", "op=", "node `"]
)
def test_hostile_lines_take_linear_time(text: str) -> None:
    line = text * (65_000 // len(text))
    log = "\n".join([f"{line} placed on [ <E> Fallback to CPU Unsupported nodes in QNN EP"] * 5).encode()
    started = time.perf_counter()
    scan_log(log, source="stderr")
    # 0.3 MB of it takes hundredths of a second; one quadratic pattern would take minutes.
    assert time.perf_counter() - started < 5.0
