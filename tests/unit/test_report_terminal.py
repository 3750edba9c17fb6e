from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pytest_devicelab.report.session import Session, assemble
from pytest_devicelab.report.terminal import MAX_LINES, Line, summarize
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
    assert "digits_int8 logits: A {V73,V75,V79,V81} | B {V68,V69} | C {Tensor G4}" in text(lines)
    assert "(s23 s24 s25 | s21 s22 | s26 | pixel9pro)" in text(lines)
    assert (
        "A and B part first at Conv /conv1/Conv, layer 1 of 11: "
        "2,291 of 65,536 elements differ (3.50%), by 1 LSB at most, over 8 samples"
    ) in text(lines)
    assert "LayerNormalization /norm/LayerNormalization in digits_ln_axis1 on s21 s22" in text(lines)
    assert f'runtime: "{REASON}"' in text(lines)
    assert "declared: axis 1 has no INT8 kernel on HTP" in text(lines)
    assert "Fused: 8, such as Conv:/conv1/Conv (0 cycles of its own) into act1:OpId_27" in text(lines)
    assert f"reports/{found.id}/report.html" in text(lines)
    assert f"reports/{found.id}/session.json" in text(lines)


def test_the_table_has_accuracy_class_and_marks(found: Session) -> None:
    lines = summarize(found, 160)
    assert line_with(lines, "s21", "V68").text.split() == (
        ["s21", "V68", "SM8350", "sim", "99.26%", "B", "99.44%", "B", "95.19%", "B", "98.52%", "B", "*"]
    )
    assert line_with(lines, "float, CPU").text.split()[2:] == ["99.44%", "99.44%", "95.37%", "98.70%"]


def test_every_simulated_device_says_so(found: Session) -> None:
    lines = summarize(found, 160)
    assert line_with(lines, "SIMULATED", "7 of 7 devices")
    assert line_with(lines, "accuracy (simulated)")
    rows = [line.text for line in lines if any(line.text.startswith(f"{d.id} ") for d in found.devices)]
    assert len(rows) == 7
    assert all(" sim " in row for row in rows)


def test_silicon_is_not_called_simulated(found: Session) -> None:
    silicon = tuple(dataclasses.replace(device, simulated=False) for device in found.devices)
    lines = summarize(dataclasses.replace(found, devices=silicon, simulated=False), 160)
    assert "sim" not in text(lines).lower()


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
    assert line_with(lines, "… and 2 more verdicts in report.html")
    assert line_with(lines, "s22", "V69", "99.26% B X").style == "fail"
    assert line_with(lines, "s21", "V68", "99.26% B ?").style == "inconclusive"
    assert len(lines) <= MAX_LINES


def test_an_undeclared_fallback_is_an_alarm(found: Session) -> None:
    undeclared = tuple(dataclasses.replace(f, expected=False, reason="") for f in found.fallbacks)
    lines = summarize(dataclasses.replace(found, fallbacks=undeclared), 160)
    assert line_with(lines, "s21", "V68").text.endswith("98.52% B !")
    assert line_with(lines, "not declared in the matrix").style == "inconclusive"
    assert line_with(lines, "runtime: gave no reason")


def test_a_tapped_layer_that_changed_the_output_is_a_hint(found: Session) -> None:
    comparison = found.comparisons[0]
    assert comparison.first_divergence
    doubtful = dataclasses.replace(comparison.first_divergence, taps_changed_output=True)
    changed = dataclasses.replace(comparison, first_divergence=doubtful)
    lines = summarize(dataclasses.replace(found, comparisons=(changed,)), 200)
    assert line_with(lines, "A and B may part at", "a hint only: tapping changed the model's output")


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
