from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import yaml

from pytest_devicelab.evidence.events import Event, EventKind
from pytest_devicelab.evidence.record import LogCapture, NodePlacement, OpRow
from pytest_devicelab.matrix.specs import ExpectedFallback
from pytest_devicelab.verdicts.placement import judge_placement
from pytest_devicelab.verdicts.verdict import Verdict
from tests.unit.verdict_builders import event, model_spec, run_record

CONV = NodePlacement(node="conv1", op="Conv", unit="htp")
NORM = NodePlacement(node="ln", op="LayerNormalization", unit="cpu")
EDGE = (
    NodePlacement(node="x_q", op="QuantizeLinear", unit="cpu"),
    NodePlacement(node="y_dq", op="DequantizeLinear", unit="cpu"),
)
DECLARED = ExpectedFallback(op="LayerNormalization", reason="axis 1 has no INT8 kernel")
REFUSED = "axis 1 is not supported"


def test_all_nodes_on_the_npu_pass() -> None:
    verdict = judge_placement(run_record(placement=(CONV,)), model_spec())
    assert verdict.outcome == "pass"
    assert verdict.check == "placement"
    assert verdict.devices == ("s24",)
    assert verdict.evidence == ("runs/evaluate.s24/record.json",)
    assert verdict.details["nodes"] == {"htp": 1, "cpu": 0}
    assert verdict.details["grade"] == "assignment"
    json.dumps(dict(verdict.details))


def test_an_undeclared_fallback_fails_and_shows_how_to_declare_it() -> None:
    events = (event("cpu_fallback", op="LayerNormalization", node="ln", reason=REFUSED),)
    verdict = judge_placement(run_record(placement=(CONV, NORM), events=events), model_spec())
    assert verdict.outcome == "fail"
    assert "LayerNormalization (ln): axis 1 is not supported" in verdict.reason
    line = verdict.reason.split("under the model: ")[1].rstrip(".")
    declared = yaml.safe_load(line)["expect"]["fallbacks"][0]
    assert (declared["op"], declared["node"]) == ("LayerNormalization", "ln")
    assert verdict.details["fallbacks"] == [
        {
            "op": "LayerNormalization",
            "node": "ln",
            "reason": REFUSED,
            "expected": False,
            "expected_reason": "",
            "sources": ["graph assignment", "logcat"],
        }
    ]


def test_a_name_from_a_model_cannot_break_out_of_the_line_to_declare() -> None:
    hostile = 'x"}]}\nlab: {adb: evil'
    placement = (CONV, NodePlacement(node=hostile, op="Foo", unit="cpu"))
    reason = judge_placement(run_record(placement=placement), model_spec()).reason
    declared = yaml.safe_load(reason.split("under the model: ")[1].rstrip("."))
    assert declared["expect"]["fallbacks"] == [{"op": "Foo", "node": hostile, "reason": "..."}]


@pytest.mark.parametrize("node", [None, "ln"])
def test_a_declared_fallback_passes_with_its_reason(node: str | None) -> None:
    declared = ExpectedFallback(op="LayerNormalization", reason="axis 1 has no INT8 kernel", node=node)
    verdict = judge_placement(run_record(placement=(CONV, NORM)), model_spec(declared))
    assert verdict.outcome == "pass"
    assert "axis 1 has no INT8 kernel" in verdict.reason
    assert "the runtime gave no reason" in verdict.reason


@pytest.mark.parametrize(
    "other",
    [
        ExpectedFallback(op="Softmax", reason="r"),
        ExpectedFallback(op="LayerNormalization", reason="r", node="ln2"),
        ExpectedFallback(op="LayerNormalization", reason="r", devices=("s21",)),
    ],
)
def test_a_declaration_of_something_else_does_not_cover_it(other: ExpectedFallback) -> None:
    assert judge_placement(run_record(placement=(CONV, NORM)), model_spec(other)).outcome == "fail"


def test_a_declared_fallback_that_did_not_happen_is_stale() -> None:
    verdict = judge_placement(run_record(placement=(CONV,)), model_spec(DECLARED))
    assert verdict.outcome == "fail"
    assert "stale expectation: LayerNormalization" in verdict.reason
    assert "devices: [...]" in verdict.reason


def test_a_declaration_for_another_device_is_not_stale_here() -> None:
    elsewhere = ExpectedFallback(op="LayerNormalization", reason="r", devices=("s21",))
    assert judge_placement(run_record(placement=(CONV,)), model_spec(elsewhere)).outcome == "pass"


def test_quantization_in_the_middle_on_the_cpu_is_a_fallback() -> None:
    inside = tuple(replace(node, boundary=False) for node in EDGE)
    verdict = judge_placement(run_record(placement=(*inside, CONV)), model_spec())
    assert verdict.outcome == "fail"
    assert "QuantizeLinear (x_q)" in verdict.reason


def test_quantization_at_the_edge_on_the_cpu_is_benign_and_said_so() -> None:
    verdict = judge_placement(run_record(placement=(*EDGE, CONV)), model_spec())
    assert verdict.outcome == "pass"
    assert "benign" in verdict.reason
    assert verdict.details["boundary"] == ["x_q", "y_dq"]
    assert verdict.details["nodes"] == {"htp": 1, "cpu": 2}


def test_quantization_on_the_cpu_is_a_fallback_when_the_npu_was_to_do_it() -> None:
    record = run_record(placement=(*EDGE, CONV), options={"offload_graph_io_quantization": "0"})
    verdict = judge_placement(record, model_spec())
    assert verdict.outcome == "fail"
    assert "QuantizeLinear (x_q)" in verdict.reason


def test_a_graph_of_which_nothing_ran_on_the_npu_fails() -> None:
    verdict = judge_placement(run_record(placement=EDGE), model_spec())
    assert (verdict.outcome, "not one node ran on the NPU" in verdict.reason) == ("fail", True)
    assert judge_placement(run_record(placement=(NORM,)), model_spec(DECLARED)).outcome == "fail"


def test_the_assignment_outranks_a_log_that_says_otherwise_and_names_it() -> None:
    record = run_record(placement=(CONV,), events=(event("cpu_fallback", op="Conv", node="conv1"),))
    verdict = judge_placement(record, model_spec())
    assert verdict.outcome == "pass"
    assert verdict.details["disagreeing"] == ["logcat"]
    assert "Disagreeing: logcat" in verdict.reason


def test_silent_and_agreeing_sources_are_named() -> None:
    record = run_record(
        placement=(CONV, NORM),
        events=(event("cpu_fallback", op="LayerNormalization", node="ln"),),
        log_sources={"logcat": 10, "stderr": 0},
    )
    details = judge_placement(record, model_spec(DECLARED)).details
    assert details["agreeing"] == ["graph assignment", "logcat"]
    assert details["silent"] == ["op profile", "stderr"]


def test_a_profile_in_which_the_fallen_op_is_busy_disagrees() -> None:
    ops = (OpRow(name="ln", cycles=5, sources=("LayerNormalization:ln",)),)
    details = judge_placement(run_record(placement=(CONV, NORM), ops=ops), model_spec(DECLARED)).details
    assert details["disagreeing"] == ["op profile"]


def test_no_source_at_all_is_no_evidence() -> None:
    for runtime in ("ort", "qnn"):
        verdict = judge_placement(run_record(runtime=runtime, log_sources={"logcat": 400}), model_spec())
        assert (verdict.outcome, verdict.details["grade"]) == ("inconclusive", "none")
        assert "no evidence" in verdict.reason


def test_under_ort_a_profile_or_a_log_cannot_make_a_pass() -> None:
    ops = (OpRow(name="conv1", cycles=100),)
    for record in (run_record(ops=ops), run_record(events=(event("fusion"),))):
        verdict = judge_placement(record, model_spec())
        assert verdict.outcome == "inconclusive"
        assert "does not account for every node" in verdict.reason


def test_under_ort_a_log_can_make_a_fail() -> None:
    verdict = judge_placement(run_record(events=(event("cpu_fallback", op="Gelu"),)), model_spec())
    assert (verdict.outcome, verdict.details["grade"]) == ("fail", "logcat")


def test_under_qnn_busy_op_rows_are_evidence() -> None:
    ops = (OpRow(name="conv1", cycles=100), OpRow(name="relu1", cycles=0))
    verdict = judge_placement(run_record(runtime="qnn", ops=ops), model_spec())
    assert (verdict.outcome, verdict.details["grade"]) == ("pass", "profile")
    assert verdict.details["nodes"] == {"htp": 1, "cpu": 0}


def test_under_qnn_idle_op_rows_are_none() -> None:
    idle = (OpRow(name="conv1", cycles=0),)
    assert judge_placement(run_record(runtime="qnn", ops=idle), model_spec()).outcome == "inconclusive"


@pytest.mark.parametrize(("kind", "outcome"), [("op_time", "pass"), ("npu_crash", "inconclusive")])
def test_under_qnn_only_signs_of_execution_count(kind: EventKind, outcome: str) -> None:
    assert judge_placement(run_record(runtime="qnn", events=(event(kind),)), model_spec()).outcome == outcome


def test_under_qnn_a_bare_fallback_line_is_not_ignored() -> None:
    record = run_record(runtime="qnn", ops=(OpRow(name="conv1", cycles=9),), events=(event("cpu_fallback"),))
    verdict = judge_placement(record, model_spec())
    assert verdict.outcome == "fail"
    assert "an op the log does not name" in verdict.reason


def test_a_bare_fallback_line_is_not_hidden_by_a_declared_one() -> None:
    declared = model_spec(ExpectedFallback(op="LayerNormalization", reason="known"))
    named = event("cpu_fallback", "stderr", op="LayerNormalization", node="ln")
    without_bare, with_bare = (
        judge_placement(
            run_record(runtime="qnn", ops=(OpRow(name="conv1", cycles=9),), events=events), declared
        )
        for events in ((named,), (event("cpu_fallback"), named))
    )
    assert (without_bare.outcome, with_bare.outcome) == ("pass", "fail")
    assert "an op the log does not name" in with_bare.reason


def test_a_refused_model_fails_with_the_ops() -> None:
    record = run_record(
        status="refused",
        runtime="qnn",
        error="does not compile for V75\nwhy: ...",
        refused_ops=(("LayerNormalization", "ln", REFUSED),),
    )
    verdict = judge_placement(record, model_spec(DECLARED))
    assert verdict.outcome == "fail"
    assert "LayerNormalization (ln): axis 1 is not supported" in verdict.reason
    assert "does not compile for V75" in verdict.reason


def test_a_failed_run_is_inconclusive_with_its_error() -> None:
    verdict = judge_placement(run_record(status="failed", error="device went away"), model_spec())
    assert verdict.outcome == "inconclusive"
    assert "device went away" in verdict.reason
    cpu = run_record(status="failed", backend="cpu", error="device went away")
    assert judge_placement(cpu, model_spec()).outcome == "inconclusive"


def test_a_device_without_an_npu_passes_and_says_so() -> None:
    verdict = judge_placement(run_record(backend="cpu"), model_spec(DECLARED))
    assert (verdict.outcome, "no NPU that this runtime could use" in verdict.reason) == ("pass", True)


def test_a_long_list_is_cut_and_counted() -> None:
    nodes = tuple(NodePlacement(node=f"g{n}", op="Gelu", unit="cpu") for n in range(10))
    reason = judge_placement(run_record(placement=(CONV, *nodes)), model_spec()).reason
    assert "10 undeclared" in reason
    assert "and 7 more" in reason
    assert "g3" not in reason


# Sources and their weight


def sources_of(details: Mapping[str, object]) -> object:
    fallbacks = details["fallbacks"]
    assert isinstance(fallbacks, list)
    return fallbacks[0]["sources"]


def rows(*sources: str, cycles: int = 9) -> tuple[OpRow, ...]:
    return tuple(OpRow(name=source, cycles=cycles, sources=(source,)) for source in sources)


def test_a_fallback_is_named_with_every_source_that_saw_it_strongest_first() -> None:
    claims = (
        event("cpu_fallback", "logcat", op="LayerNormalization", node="ln"),
        event("cpu_fallback", "stderr", op="LayerNormalization", node="ln"),
    )
    record = run_record(placement=(CONV, NORM), ops=rows("Conv:conv1"), events=claims)
    details = judge_placement(record, model_spec(DECLARED)).details
    assert sources_of(details) == ["graph assignment", "op profile", "stderr", "logcat"]
    assert details["agreeing"] == ["graph assignment", "op profile", "stderr", "logcat"]


@pytest.mark.parametrize(
    "ops",
    [
        rows("Conv:conv1", "LayerNormalization:ln", cycles=0),  # nothing ran
        (*rows("Conv:conv1"), *rows("LayerNormalization:ln", cycles=0)),  # fused into a neighbour
        rows("conv1_token_2"),  # a profile that names no node of the model
        (OpRow(name="ln", cycles=4),),
    ],
)
def test_a_profile_that_does_not_leave_the_node_out_is_no_source(ops: tuple[OpRow, ...]) -> None:
    record = run_record(placement=(CONV, NORM), ops=ops)
    details = judge_placement(record, model_spec(DECLARED)).details
    assert sources_of(details) == ["graph assignment"]


def test_what_a_runtime_prints_weighs_more_than_logcat() -> None:
    def graded(*events: Event) -> object:
        return judge_placement(run_record(events=events), model_spec()).details["grade"]

    fell = [event("cpu_fallback", source, op="Gelu") for source in ("stderr", "logcat")]
    assert (graded(*fell), graded(fell[1]), graded()) == ("runtime log", "logcat", "none")
    assert graded(event("throttling", "stderr")) == "none", "says nothing of placement"
    assert graded(event("op_rejected", "stderr", op="Gelu")) == "none", "a rejection is no sign of a run"


def test_a_source_that_speaks_of_other_things_is_silent() -> None:
    record = run_record(placement=(CONV,), events=(event("throttling"),), log_sources={"logcat": 3})
    details = judge_placement(record, model_spec()).details
    assert (details["agreeing"], details["silent"]) == (["graph assignment"], ["op profile", "logcat"])


# The log switch


@pytest.mark.parametrize(
    ("level", "heard", "switch"),
    [
        ("off", {}, "not asked"),
        ("off", {"V": 3}, "not asked"),
        ("", {}, "not asked"),
        ("verbose", {"V": 1}, "worked"),
        ("verbose", {"D": 1}, "worked"),
        ("verbose", {"I": 9, "W": 1, "E": 1}, "no effect"),
        ("info", {"I": 1}, "worked"),
        ("info", {"V": 1}, "worked"),
        ("info", {"W": 1}, "no effect"),
        ("warn", {"W": 1}, "worked"),
        ("warn", {}, "not shown"),
        ("error", {"E": 1}, "worked"),
        ("error", {}, "not shown"),
    ],
)
def test_the_switch_worked_if_lines_of_its_level_were_seen(
    level: str, heard: dict[str, int], switch: str
) -> None:
    record = run_record(placement=(CONV,), capture=LogCapture(level=level, heard=heard))
    details = judge_placement(record, model_spec()).details
    assert (details["log_switch"], details["log_lines"]) == (switch, heard)


def test_logs_that_are_off_are_silent_for_that() -> None:
    logs: dict[str, Any] = {"log_sources": {"logcat": 0}, "capture": LogCapture(level="off")}
    placed = judge_placement(run_record(placement=(CONV,), **logs), model_spec())
    assert placed.outcome == "pass"
    assert placed.reason.endswith("The logs are silent because logging is off.")
    nothing = judge_placement(run_record(**logs), model_spec())
    assert nothing.outcome == "inconclusive"
    assert nothing.reason.startswith("no evidence: ")
    assert nothing.reason.endswith("The logs are silent because logging is off.")


def test_a_switch_without_effect_is_said_only_of_a_log_that_is_silent() -> None:
    deaf: dict[str, Any] = {
        "log_sources": {"logcat": 4},
        "capture": LogCapture(level="verbose", heard={"W": 4}),
    }
    said = "asked for verbose, and not one such line came: their silence means nothing."
    assert judge_placement(run_record(**deaf), model_spec()).reason.endswith(said)
    fell = run_record(events=(event("cpu_fallback", op="Gelu"),), **deaf)
    assert said not in judge_placement(fell, model_spec()).reason


def test_lines_that_were_lost_are_said_whatever_is_left() -> None:
    fell = (event("cpu_fallback", op="LayerNormalization", node="ln"),)
    capture = LogCapture(level="verbose", heard={"V": 4}, lost="the buffer overflowed")
    for events in ((), fell):
        record = run_record(placement=(CONV, NORM), events=events, log_sources={"logcat": 4}, capture=capture)
        verdict = judge_placement(record, model_spec(DECLARED))
        assert verdict.reason.endswith("Log lines are missing: the buffer overflowed.")
        assert verdict.details["log_lost"] == "the buffer overflowed"


def test_buffers_that_did_not_grow_are_named_where_lines_were_lost() -> None:
    capture = LogCapture(level="info", lost="gone", buffer_bytes=1024, buffers={"main": 512, "crash": 1024})
    reason = judge_placement(run_record(placement=(CONV,), capture=capture), model_spec()).reason
    assert reason.endswith("missing: gone (main holds 512 bytes; 1,024 were asked for).")


# Shares


def shares_of(verdict: Verdict) -> Mapping[str, object]:
    shares = verdict.details["shares"]
    assert isinstance(shares, dict)
    return shares


def test_shares_of_nodes_and_of_macs() -> None:
    placement = (replace(CONV, macs=3000), replace(CONV, node="conv2", macs=1000), replace(NORM, macs=0))
    verdict = judge_placement(run_record(placement=placement), model_spec(DECLARED))
    assert verdict.details["shares"] == {
        "nodes": {"cpu": 0.3333, "htp": 0.6667},
        "macs": {"cpu": 0.0, "htp": 1.0},
        "time": None,
    }
    assert "100.0% of the multiply-accumulates are on the NPU" in verdict.reason


def test_shares_that_nobody_knows_are_not_made_up() -> None:
    placement = (replace(CONV, macs=None), replace(NORM, macs=0))
    shares = shares_of(judge_placement(run_record(placement=placement), model_spec(DECLARED)))
    assert (shares["macs"], shares["time"]) == (None, None)
    without = shares_of(judge_placement(run_record(ops=rows("Conv:conv1")), model_spec()))
    assert without == {"nodes": None, "macs": None, "time": None}


def test_all_of_a_graph_on_one_unit_is_all_of_its_time() -> None:
    shares = shares_of(judge_placement(run_record(placement=(replace(CONV, macs=5),)), model_spec()))
    assert shares == {"nodes": {"htp": 1.0}, "macs": {"htp": 1.0}, "time": {"htp": 1.0}}
    whole = run_record(runtime="qnn", ops=rows("Conv:conv1"))
    assert shares_of(judge_placement(whole, model_spec())) == shares
    unseen = shares_of(judge_placement(run_record(runtime="qnn"), model_spec()))
    assert unseen["time"] is None
