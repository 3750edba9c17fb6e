from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jsonschema
import pytest

from pytest_devicelab.errors import InfrastructureError
from pytest_devicelab.evidence.blame import Blame
from pytest_devicelab.evidence.record import DeviceIdentity, OpRow, RunRecord, Transfers
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.report.assemble import assemble
from pytest_devicelab.report.findings import find_fallbacks, find_fusions
from pytest_devicelab.report.session import Session, session_schema, to_json
from pytest_devicelab.verdicts.verdict import Outcome, Verdict
from tests.unit.session_builders import (
    CHIPS,
    FINISHED,
    NPU,
    REASON,
    SESSION_ID,
    STARTED,
    comparison,
    matrix,
    record,
    session,
    verdicts,
    write_session,
)


def validate(found: Session) -> None:
    # By way of JSON text, since that is what a reader gets.
    data = json.loads(json.dumps(to_json(found), allow_nan=False))
    jsonschema.Draft202012Validator(session_schema()).validate(data)


def judged(tmp_path: Path, outcomes: list[Outcome], exit_status: int) -> Session:
    store = SessionStore.create(tmp_path, SESSION_ID)
    for number, outcome in enumerate(outcomes):
        verdict = dataclasses.replace(verdicts("digits_int8")[0], outcome=outcome)
        store.write_verdict(verdict, f"test_{number}")
    return assemble(store, matrix(tmp_path / "m.yaml"), STARTED, FINISHED, exit_status)


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(session_schema())


def test_a_session_is_valid_against_its_schema(tmp_path: Path) -> None:
    validate(session(tmp_path / "reports"))


def test_an_empty_session_is_valid_and_inconclusive(tmp_path: Path) -> None:
    found = judged(tmp_path, [], 0)
    assert found.outcome == "inconclusive"
    assert {device.status for device in found.devices} == {"not_seen"}
    validate(found)


def test_the_schema_refuses_a_pass_without_a_verdict(tmp_path: Path) -> None:
    found = dataclasses.replace(judged(tmp_path, [], 0), outcome="pass")
    with pytest.raises(jsonschema.ValidationError):
        validate(found)


def test_the_schema_knows_every_key(tmp_path: Path) -> None:
    data = to_json(session(tmp_path / "reports"))
    data["runs"][0]["colour"] = "green"
    with pytest.raises(jsonschema.ValidationError, match="colour"):
        jsonschema.Draft202012Validator(session_schema()).validate(data)


def test_figures_that_json_cannot_write_stay_valid(tmp_path: Path) -> None:
    found = session(tmp_path / "reports")
    comparison = found.comparisons[0]
    pair = dataclasses.replace(comparison.pairs[0], max_abs=float("nan"), sqnr_db=float("-inf"))
    broken = dataclasses.replace(found, comparisons=(dataclasses.replace(comparison, pairs=(pair,)),))
    assert to_json(broken)["comparisons"][0]["pairs"][0]["max_abs"] == "NaN"
    validate(broken)


@pytest.mark.parametrize(
    ("outcomes", "exit_status", "outcome"),
    [
        (["pass", "pass"], 0, "pass"),
        (["pass", "inconclusive"], 0, "inconclusive"),
        (["pass", "inconclusive", "fail"], 1, "fail"),
        (["fail"], 0, "fail"),
        ([], 0, "inconclusive"),
        ([], 1, "inconclusive"),
        (["pass"], 1, "fail"),
        (["pass"], 2, "inconclusive"),
        (["pass"], 3, "inconclusive"),
    ],
)
def test_the_worst_verdict_decides_and_a_broken_session_is_never_green(
    tmp_path: Path, outcomes: list[Outcome], exit_status: int, outcome: Outcome
) -> None:
    assert judged(tmp_path, outcomes, exit_status).outcome == outcome


def test_everything_comes_in_matrix_order(tmp_path: Path) -> None:
    found = session(tmp_path / "reports")
    order = list(CHIPS)
    assert [device.id for device in found.devices] == order
    assert [run.device for run in found.runs] == order * 4
    assert list(dict.fromkeys(run.model for run in found.runs)) == [model.id for model in found.models]
    assert [comparison.model for comparison in found.comparisons] == [model.id for model in found.models]
    accuracy = [verdict for verdict in found.verdicts if verdict.check == "accuracy"]
    assert [verdict.devices[0] for verdict in accuracy] == order * 4


def test_a_seen_device_is_described_as_found(tmp_path: Path) -> None:
    store, spec = write_session(tmp_path / "reports", models=())
    store.write_record(
        dataclasses.replace(
            record("digits_int8", "s24"),
            device=DeviceIdentity(
                id="s24", kind="virtual", soc="SM7475", hexagon=None, simulated=False, engine="cpu"
            ),
        )
    )
    found = assemble(store, spec, STARTED, FINISHED, 0)
    s24 = next(device for device in found.devices if device.id == "s24")
    assert (s24.status, s24.soc, s24.hexagon, s24.engine) == ("seen", "SM7475", None, "cpu")
    assert s24.marketing is None, "the marketing name belongs to the chip the matrix hoped for"
    assert s24.simulated, "a virtual device is simulated, whatever it says of itself"
    s21 = next(device for device in found.devices if device.id == "s21")
    assert (s21.status, s21.soc, s21.hexagon, s21.marketing) == (
        "not_seen",
        "SM8350",
        "V68",
        "Snapdragon 888",
    )


@pytest.mark.parametrize(("properties", "status"), [({}, "not_seen"), ({"ro.soc.model": "SM8650"}, "seen")])
def test_a_failed_run_shows_a_device_only_if_it_read_the_device(
    tmp_path: Path, properties: dict[str, str], status: str
) -> None:
    store, spec = write_session(tmp_path / "reports", models=())
    whole = record("digits_int8", "s24")
    identity = dataclasses.replace(whole.device, properties=properties)
    store.write_record(
        dataclasses.replace(whole, status="failed", device=identity, error="device s24 is gone")
    )
    found = assemble(store, spec, STARTED, FINISHED, 1)
    assert next(device.status for device in found.devices if device.id == "s24") == status
    assert found.runs[0].error == "device s24 is gone"


def test_versions_that_differ_between_devices_are_all_named(tmp_path: Path) -> None:
    store, spec = write_session(tmp_path / "reports", models=("digits_int8",))
    other = record("digits_a16w8", "s24")
    store.write_record(dataclasses.replace(other, versions={"qairt": "2.40.0"}))
    found = assemble(store, spec, STARTED, FINISHED, 0)
    assert found.versions == {"onnxruntime": "1.31.1", "qairt": "2.40.0, 2.51.0"}


def test_bytes_moved_and_spared_are_summed(tmp_path: Path) -> None:
    found = session(tmp_path / "reports")
    runs = len(found.runs)
    assert found.transfers == Transfers(
        pushed_bytes=61440 * runs, pulled_bytes=21600 * runs, spared_bytes=21600 * runs
    )
    assert {(run.pushed_bytes, run.pulled_bytes, run.spared_bytes) for run in found.runs} == {
        (61440, 21600, 21600)
    }


def test_each_comparison_with_a_float_model_says_whose_the_loss_is(tmp_path: Path) -> None:
    store, spec = write_session(tmp_path / "reports", models=("digits_int8",))
    store.write_comparison(dataclasses.replace(comparison("digits_a16w8"), attribution=None))
    found = assemble(store, spec, STARTED, FINISHED, 0)
    assert [entry.model for entry in found.comparisons] == ["digits_int8", "digits_a16w8"]
    assert [entry.model for entry in found.attribution] == ["digits_int8"]
    entry = found.attribution[0]
    whole = comparison("digits_int8").attribution
    assert whole is not None
    assert (entry.output, entry.line, entry.signal, entry.accuracy) == (
        "logits",
        whole.line,
        whole.signal,
        whole.accuracy,
    )
    validate(found)


def test_fallbacks_carry_the_runtimes_reason_and_the_matrix_reason(tmp_path: Path) -> None:
    found = session(tmp_path / "reports").fallbacks
    assert [fallback.device for fallback in found] == list(NPU)
    assert {(f.op, f.node, f.reason, f.expected, f.expected_reason, f.grade) for f in found} == {
        (
            "LayerNormalization",
            "/norm/LayerNormalization",
            REASON,
            True,
            "axis 1 has no INT8 kernel on HTP",
            "assignment",
        )
    }


@pytest.mark.parametrize("details", [{}, {"fallbacks": None}, {"fallbacks": "all"}, {"fallbacks": [1, None]}])
def test_details_of_another_form_are_no_fallbacks(details: dict[str, object]) -> None:
    verdict = Verdict(
        check="placement", model="m", devices=("d",), outcome="fail", reason="r", details=details
    )
    assert find_fallbacks([verdict]) == ()


def test_only_true_declares_a_fallback() -> None:
    details: dict[str, object] = {"fallbacks": [{"op": "Add", "expected": "yes"}]}
    verdict = Verdict(
        check="placement", model="m", devices=("d",), outcome="fail", reason="r", details=details
    )
    assert [fallback.expected for fallback in find_fallbacks([verdict])] == [False]
    assert len(find_fallbacks([verdict, verdict])) == 1, "a test that ran twice names it once"


def profiled(*ops: OpRow) -> RunRecord:
    return dataclasses.replace(record("digits_int8", "s24"), ops=ops)


def fused(*ops: OpRow) -> list[tuple[str, tuple[str, ...], str]]:
    return [(found.into, found.sources, found.shown_by) for found in find_fusions([profiled(*ops)])]


def test_several_nodes_in_one_operator_are_a_fusion() -> None:
    row = OpRow(name="fc", cycles=9, sources=("MatMul:/fc/MatMul", "DequantizeLinear:w", "Add:/fc/Add"))
    assert fused(row) == [("fc", ("MatMul:/fc/MatMul", "Add:/fc/Add"), "sources")]


@pytest.mark.parametrize(
    "sources",
    [
        ("DequantizeLinear_token_16", "w1_DequantizeLinear", "conv1", "r1_QuantizeLinear"),
        ("DequantizeLinear:dq", "Conv:conv1", "QuantizeLinear:q"),
    ],
)
def test_quantizing_around_one_node_is_no_fusion(sources: tuple[str, ...]) -> None:
    assert fused(OpRow(name="conv1", cycles=9, sources=sources)) == []


def test_an_operator_without_cycles_went_into_the_busy_one_after_it() -> None:
    conv = OpRow(name="conv1", cycles=0, sources=("Conv:conv1",))
    act = OpRow(name="hs", cycles=105, sources=("HardSwish:hs",))
    end = OpRow(name="Output", cycles=15)
    assert fused(conv, act, end) == [("hs", ("Conv:conv1", "HardSwish:hs"), "zero_cycles")]
    before = fused(act, conv, end)
    assert before == [("hs", ("Conv:conv1", "HardSwish:hs"), "zero_cycles")], "else into the one before it"
    assert fused(conv, end) == [], "nothing computes beside it"


def test_several_operators_without_cycles_go_into_one() -> None:
    conv, act, norm = (OpRow(name=op, cycles=0, sources=(f"{op}:{op}1",)) for op in ("Conv", "Relu", "Mul"))
    norm = dataclasses.replace(norm, cycles=7)
    assert fused(conv, act, norm) == [("Mul", ("Conv:Conv1", "Relu:Relu1", "Mul:Mul1"), "zero_cycles")]


@pytest.mark.parametrize(
    "source", ["Transpose_token_23", "Reshape:flat", "Transpose:order", "DequantizeLinear:dq"]
)
def test_what_the_compiler_put_in_or_only_moves_values_is_no_fusion(source: str) -> None:
    idle = OpRow(name="idle", cycles=0, sources=(source,))
    assert fused(idle, OpRow(name="conv1", cycles=9, sources=("Conv:conv1",))) == []


def test_an_operator_the_compiler_put_in_is_no_neighbour() -> None:
    relu = OpRow(name="relu", cycles=0, sources=("Relu:relu1",))
    assert fused(relu, OpRow(name="layout", cycles=9, sources=("Transpose_token_23",))) == []


def test_a_node_that_was_split_is_not_fused_where_one_part_is_busy() -> None:
    matmul = OpRow(name="matmul", cycles=5, sources=("MatMul:mm",))
    reshape = OpRow(name="mm_OutputReshape", cycles=0, sources=("MatMul:mm",))
    bias = OpRow(name="bias", cycles=3, sources=("Add:bias",))
    assert fused(matmul, reshape, bias) == []


def test_an_operator_is_idle_only_if_it_is_in_every_inference() -> None:
    rows = [OpRow(name=name, cycles=1, sources=(f"Conv:{name}",)) for name in ("c1", "c2")]
    idle = [dataclasses.replace(row, cycles=0) for row in rows]
    assert fused(*rows, *idle) == []
    assert fused(*idle) == [], "a profile without any cycles shows nothing"


def test_one_record_speaks_for_a_device() -> None:
    evaluated = profiled(OpRow(name="fc", cycles=9, sources=("MatMul:m", "Add:a")))
    tapped = profiled(OpRow(name="tap", cycles=9, sources=("MatMul:m", "Add:a")))
    tapped = dataclasses.replace(tapped, id="taps", purpose="taps")
    assert [fusion.into for fusion in find_fusions([tapped, profiled(), evaluated])] == ["fc"]


def test_a_damaged_verdict_is_not_passed_over(tmp_path: Path) -> None:
    store, spec = write_session(tmp_path / "reports", models=("digits_int8",))
    next((store.root / "verdicts").iterdir()).write_text("{}")
    with pytest.raises(InfrastructureError, match="verdicts"):
        assemble(store, spec, STARTED, FINISHED, 0)


def test_the_reference_names_every_key_of_the_schema() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/session-json.md").read_text(encoding="utf-8")
    schema = session_schema()
    objects = [schema, *schema["$defs"].values()]
    keys = {key for found in objects for key in found.get("properties", {})}
    assert len(keys) > 60
    assert {key for key in keys if f"`{key}`" not in page} == set()


def test_blame_comes_in_the_order_of_time(tmp_path: Path) -> None:
    store = SessionStore.create(tmp_path, SESSION_ID)
    late = Blame(
        device="s24", serial="a", by="x", kind="heat", text="hot", at="2026-11-20T22:43:09.000+00:00"
    )
    early = dataclasses.replace(late, kind="room", text="full", at="2026-11-20T22:43:01.000+00:00")
    beside = dataclasses.replace(late, device="s25")
    for blame in (beside, late, early):
        store.write_blame(blame)
    found = assemble(store, matrix(tmp_path / "m.yaml"), STARTED, FINISHED, 0)
    assert found.blames == (early, late, beside)
    validate(found)
