from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pytest_devicelab.report.assemble import assemble
from pytest_devicelab.report.lines import Line
from pytest_devicelab.report.networks import NetworkEntry
from pytest_devicelab.report.session import MissingDevice, Session
from pytest_devicelab.report.terminal import MAX_LINES, summarize
from pytest_devicelab.verdicts.verdict import Verdict
from tests.unit.session_builders import FINISHED, REASON, STARTED, session, write_session


@pytest.fixture
def found(tmp_path: Path) -> Session:
    return session(tmp_path / "reports")


def text(lines: list[Line]) -> str:
    return "\n".join(line.text for line in lines)


def line_with(lines: list[Line], *words: str) -> Line:
    return next(line for line in lines if all(word in line.text for word in words))


def test_it_says_what_a_reader_needs_on_one_screen(found: Session) -> None:
    lines = summarize(found, 160)
    assert len(lines) <= MAX_LINES
    assert lines[0] == Line(text="PASS: 4 models on 7 devices, 88 checks: 88 pass", style="pass")
    assert (
        "digits_int8 logits: A {V73,V75,V79,V81}\n"
        "  B {V68,V69}: /conv1/Conv, layer 1/11; 2,291 of 65,536 differ, up to 1 LSB\n"
    ) in text(lines)
    assert "LayerNormalization /norm/LayerNormalization in digits_ln_axis1 on all 6 NPUs" in text(lines)
    assert f'reason: "{REASON}"' in text(lines)
    assert "declared: axis 1 has no INT8 kernel on HTP" in text(lines)
    assert (
        line_with(lines, "Fused on the NPU", "-> one HTP op (some inferred from 0 cycles)").style == "heading"
    )
    assert (
        "on all 6 NPUs: Conv /conv1/Conv + HardSwish /act1/HardSwish, MatMul /fc/MatMul + Add /fc/Add"
    ) in text(lines)
    assert f"reports/{found.id}/report.html" in text(lines)


def test_the_table_has_accuracy_class_and_marks(found: Session) -> None:
    lines = summarize(found, 160)
    assert line_with(lines, "s21", "V68").text.split() == (
        ["s21", "V68", "SM8350", "sim", "99.26%", "B", "99.44%", "B", "95.19%", "B", "98.52%", "B", "*"]
    )
    assert line_with(lines, "float, CPU").text.split()[2:] == ["99.44%", "99.44%", "95.37%", "98.70%"]


def test_every_simulated_device_says_so(found: Session) -> None:
    lines = summarize(found, 160)
    assert line_with(lines, "SIMULATED", "7 of 7 devices")
    assert line_with(lines, "(simulated)")
    rows = [line.text for line in lines if any(line.text.startswith(f"{d.id} ") for d in found.devices)]
    assert len(rows) == 7
    assert all(" sim " in row for row in rows)


def test_silicon_is_not_called_simulated(found: Session) -> None:
    silicon = tuple(dataclasses.replace(device, simulated=False) for device in found.devices)
    lines = summarize(dataclasses.replace(found, devices=silicon, simulated=False), 160)
    assert "sim" not in text(lines).lower()


def test_a_network_is_answered_as_far_as_there_is_room(found: Session) -> None:
    answer = tuple(f"form {number} against form 0: other values on 7 of 7 devices" for number in range(1, 31))
    network = NetworkEntry(network="digits", forms=(), rivals=(), on_devices=(), answer=answer)
    lines = summarize(dataclasses.replace(found, networks=(network,)), 100)
    shown = [line.text for line in lines if line.text in answer]
    assert shown == list(answer[: len(shown)])
    assert shown
    assert line_with(lines, f"… and {30 - len(shown)} more answers in report.html")
    assert line_with(lines, "Fell back to the CPU"), "what follows has room too"
    assert line_with(lines, "one HTP op")


def test_sentences_are_wrapped_and_not_cut(found: Session) -> None:
    lines = summarize(found, 80)
    assert "…" not in text(lines)
    assert len(lines) <= MAX_LINES
    long = dataclasses.replace(found.fallbacks[0], reason="word " * 30 + "end")
    lines = summarize(dataclasses.replace(found, fallbacks=(long,)), 80)
    first = next(index for index, line in enumerate(lines) if line.text.startswith('  reason: "word'))
    assert lines[first + 1].text.startswith("      word word"), "a hanging indent"
    assert lines[first + 2].text.endswith('end"')


def test_a_sentence_without_end_is_cut_and_marked(found: Session) -> None:
    endless = dataclasses.replace(found.verdicts[0], verdict="fail", reason="word " * 5000)
    lines = summarize(dataclasses.replace(found, verdicts=(endless,)), 80)
    assert sum("word" in line.text for line in lines) <= 5
    assert next(line for line in reversed(lines) if "word" in line.text).text.endswith("…")


def test_names_lose_what_they_share_and_break_at_underscores(found: Session) -> None:
    lines = [line.text for line in summarize(found, 80)]
    row = next(index for index, line in enumerate(lines) if line.startswith("accuracy of digits_*"))
    assert lines[row].split() == ["accuracy", "of", "digits_*", "int8", "a16w8", "block_int8", "ln_axis1"]
    models = tuple(
        dataclasses.replace(found.models[0], id=name) for name in ("net_transformer_int8", "net_" + "x" * 40)
    )
    lines = [line.text for line in summarize(dataclasses.replace(found, models=models), 54)]
    row = next(index for index, line in enumerate(lines) if line.startswith("accuracy of net_*"))
    assert "transformer_" in lines[row]
    assert "int8" in lines[row + 1]
    one = [line.text for line in summarize(dataclasses.replace(found, models=models[:1]), 80)]
    assert any(line.startswith("accuracy ") and "net_" in line for line in one)


def test_every_class_says_where_it_parts_from_the_first(found: Session) -> None:
    a16w8 = next(comparison for comparison in found.comparisons if comparison.model == "digits_a16w8")
    b, c, d = a16w8.divergences
    apart = dataclasses.replace(c, op="Gemm", node="fc", depth=9, elements_different=4, max_lsb=0.0051963)
    changed = dataclasses.replace(a16w8, divergences=(b, apart))
    lines = summarize(dataclasses.replace(found, comparisons=(changed,)), 100)
    assert "digits_a16w8 logits: A {V73,V75,V79}" in text(lines)
    assert line_with(lines, "  B {V68,V69}: /conv1/Conv, layer 1/11; 2,291 of 65,536 differ, up to 1 LSB")
    assert line_with(lines, "  C {V81}: Gemm fc, layer 9/11; 4 of 65,536 differ, up to 0.0052 LSB")
    assert line_with(
        lines, "  D {Tensor G4}: 1,873 of 5,400 differ in the output; its layers were not compared"
    )
    assert d.observed == ("pixel9pro",)


def test_one_class_and_a_missing_device_are_said(found: Session) -> None:
    whole = dataclasses.replace(
        found.comparisons[0],
        classes=(("s21", "s22"),),
        pairs=(),
        divergences=(),
        missing=(MissingDevice(device="s24", reason="gone"),),
    )
    lines = summarize(dataclasses.replace(found, comparisons=(whole,)), 120)
    assert line_with(lines, "digits_int8 logits: A {V68,V69}; no other class; no output from s24")


def test_a_fusion_names_onnx_nodes_and_not_the_backends_operators(found: Session) -> None:
    assert "OpId" not in text(summarize(found, 80))
    some = tuple(fusion for fusion in found.fusions if fusion.device in ("s21", "s22"))
    lines = summarize(dataclasses.replace(found, fusions=some), 400)
    assert line_with(lines, "digits_int8, digits_a16w8, digits_block_int8, digits_ln_axis1 on s21 s22: Conv")


@pytest.mark.parametrize("width", [20, 80, 120])
def test_no_line_is_wider_than_the_terminal(found: Session, width: int) -> None:
    assert max(len(line.text) for line in summarize(found, width)) <= width


def test_a_failure_is_named_first_and_marked_in_the_table(tmp_path: Path) -> None:
    def break_one(verdict: Verdict) -> Verdict:
        if verdict.devices == ("s22",) and verdict.check == "accuracy" and verdict.model == "digits_int8":
            return dataclasses.replace(verdict, outcome="fail", reason="drop of 3.00 points,\n1.00 allowed")
        if verdict.devices == ("s21",) and verdict.check == "determinism":
            return dataclasses.replace(verdict, outcome="inconclusive", reason="the second run was lost")
        return verdict

    store, spec = write_session(tmp_path / "reports", change=break_one)
    lines = summarize(assemble(store, spec, STARTED, FINISHED, 1), 160)
    assert lines[0] == Line(
        text="FAIL: 4 models on 7 devices, 88 checks: 83 pass, 1 fail, 4 inconclusive", style="fail"
    )
    alarms = [line for line in lines if " on s2" in line.text and line.style in ("fail", "inconclusive")]
    assert alarms[0] == Line(
        text="FAIL accuracy digits_int8 on s22: drop of 3.00 points, 1.00 allowed", style="fail"
    )
    assert line_with(lines, "INCONCLUSIVE determinism digits_ln_axis1 on s21: the second run was lost")
    assert line_with(lines, "s22", "V69", "99.26% B X").style == "fail"
    assert line_with(lines, "s21", "V68", "99.26% B ?").style == "inconclusive"
    assert len(lines) <= MAX_LINES


def test_one_finding_on_many_devices_is_one_sentence(found: Session) -> None:
    verdicts = tuple(
        dataclasses.replace(verdict, verdict="fail", reason=f"loses {number} dB")
        for number, verdict in enumerate(v for v in found.verdicts if v.check == "accuracy")
        if verdict.model == "digits_int8"
    )
    assert len(verdicts) == 7
    lines = summarize(dataclasses.replace(found, verdicts=verdicts), 400)
    devices = "s21, s22, s23, s24, s25, s26, pixel9pro"
    assert line_with(lines, f"FAIL accuracy digits_int8 on {devices} (the reason is that of s21): loses 0 dB")
    same = tuple(dataclasses.replace(verdict, reason="wrong") for verdict in verdicts)
    lines = summarize(dataclasses.replace(found, verdicts=same), 400)
    assert line_with(lines, f"FAIL accuracy digits_int8 on {devices}: wrong")


def test_an_undeclared_fallback_is_an_alarm(found: Session) -> None:
    undeclared = tuple(dataclasses.replace(f, expected=False, reason="") for f in found.fallbacks)
    lines = summarize(dataclasses.replace(found, fallbacks=undeclared), 160)
    assert line_with(lines, "s21", "V68").text.endswith("98.52% B !")
    assert line_with(lines, "not declared in the matrix").style == "inconclusive"
    assert line_with(lines, "reason: the runtime gave none")


def test_a_tapped_layer_that_changed_the_output_is_a_hint(found: Session) -> None:
    comparison = found.comparisons[0]
    assert comparison.first_divergence
    doubtful = dataclasses.replace(comparison.first_divergence, taps_changed_output=True)
    changed = dataclasses.replace(comparison, first_divergence=doubtful)
    changed = dataclasses.replace(changed, divergences=(doubtful,))
    lines = summarize(dataclasses.replace(found, comparisons=(changed,)), 200)
    assert line_with(lines, "B {V68,V69}: perhaps", "a hint only: tapping changed the model's output")


def test_a_large_fleet_still_fits_and_shows_what_is_wrong(found: Session) -> None:
    devices = tuple(dataclasses.replace(found.devices[0], id=f"d{number}") for number in range(64))
    models = tuple(dataclasses.replace(found.models[0], id=f"m{number}") for number in range(20))
    bad = dataclasses.replace(
        found.verdicts[0], model="m19", devices=("d63",), verdict="fail", reason="wrong tensor"
    )
    comparisons = tuple(dataclasses.replace(found.comparisons[0], model=model.id) for model in models)
    fallbacks = tuple(
        dataclasses.replace(found.fallbacks[0], node=f"n{n}", reason="\n" * n) for n in range(30)
    )
    large = dataclasses.replace(
        found,
        outcome="fail",
        devices=devices,
        models=models,
        comparisons=comparisons,
        fallbacks=fallbacks,
        verdicts=(bad,) * 50,
    )
    for width in (80, 200):
        lines = summarize(large, width)
        assert len(lines) <= MAX_LINES
        assert line_with(lines, "d63", "X")
        assert line_with(lines, "accuracy", "m19")
        assert line_with(lines, "55 more devices")
        assert line_with(lines, "28 more fallbacks")


def test_a_session_without_evidence_says_so(tmp_path: Path) -> None:
    store, spec = write_session(tmp_path / "reports", models=())
    lines = summarize(assemble(store, spec, STARTED, FINISHED, 0), 120)
    assert lines[0].text == "INCONCLUSIVE: 4 models on 0 devices (7 not seen), nothing was judged"
    assert line_with(lines, "s24", "no run").text.count("no run") == 4


def test_a_device_cannot_steer_the_terminal(found: Session) -> None:
    hostile = "\x1b]0;owned\x07\x1b[2J\u202egnp.exe\ud800\r\nPASS"
    fallback = dataclasses.replace(found.fallbacks[0], op=hostile, reason=hostile, expected_reason=hostile)
    verdict = dataclasses.replace(found.verdicts[0], verdict="fail", reason=hostile, model=hostile)
    device = dataclasses.replace(found.devices[0], soc=hostile, id=hostile)
    lines = summarize(
        dataclasses.replace(found, fallbacks=(fallback,), verdicts=(verdict,), devices=(device,)), 400
    )
    assert text(lines).replace("\n", "").isprintable()
    assert "\\x1b]0;owned\\x07" in text(lines)
    assert "\\u202egnp.exe\\ud800" in text(lines)


def test_a_loss_that_is_a_chips_comes_first_with_the_reason(found: Session) -> None:
    *others, last = found.attribution
    signal = dataclasses.replace(
        last.signal,
        cause="chip",
        line="of 9.0 dB lost, 1.0 is quantization, 8.0 is V68's",
        reason="V68 adds it",
    )
    blamed = dataclasses.replace(last, signal=signal)
    lines = summarize(dataclasses.replace(found, attribution=(*others, blamed)), 160)
    at = lines.index(Line(text="What was lost, and to what", style="heading"))
    assert [line.text for line in lines[at + 1 : at + 4]] == [
        "digits_ln_axis1: of 9.0 dB lost, 1.0 is quantization, 8.0 is V68's",
        "  V68 adds it",
        f"digits_int8: {found.attribution[0].signal.line}",
    ]
    assert lines[at + 2].style == "inconclusive"


def test_points_are_named_unless_none_were_lost(found: Session) -> None:
    first = found.attribution[0]
    assert first.accuracy is not None
    accuracy = dataclasses.replace(first.accuracy, cause="quantization")
    lossy = dataclasses.replace(first, accuracy=accuracy, line="2 dB; 3 points")
    lines = summarize(dataclasses.replace(found, attribution=(lossy,)), 160)
    assert line_with(lines, "digits_int8: 2 dB; 3 points")
