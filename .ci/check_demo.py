"""Check what the demo left behind: its session.json must be valid, and say what the demo is there to show."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jsonschema

from pytest_devicelab.report.session import session_schema


def main(path: Path) -> None:
    """Raise AssertionError for anything the demo must show and does not."""
    session = json.loads(path.read_text())
    jsonschema.validate(session, session_schema())
    assert session["outcome"] == "pass", session["outcome"]
    assert all(device["simulated"] for device in session["devices"]), "every figure of the demo is simulated"
    assert len(session["devices"]) == 7, len(session["devices"])
    assert {verdict["verdict"] for verdict in session["verdicts"]} == {"pass"}
    hexagon = {device["id"]: device["hexagon"] or "CPU" for device in session["devices"]}
    classes = {
        comparison["model"]: {
            frozenset(hexagon[device] for device in group) for group in comparison["classes"]
        }
        for comparison in session["comparisons"]
    }
    new = {"V73", "V75", "V79", "V81"}
    assert {frozenset({"V68", "V69"}), frozenset(new)} <= classes["digits_cnn_int8"], classes[
        "digits_cnn_int8"
    ]
    assert frozenset({"V81"}) in classes["digits_cnn_a16w8"], classes["digits_cnn_a16w8"]
    parted = [each for each in session["comparisons"] if len(each["classes"]) > 1]
    assert len(parted) == 4, "four models part"
    assert all(comparison["first_divergence"] for comparison in parted), "no first layer named"
    # LiteRT computes on the CPU of whatever chip, and here that is one and the same.
    assert classes["digits_cnn_litert"] == {frozenset({"V68", "V69", "CPU"} | new)}, classes[
        "digits_cnn_litert"
    ]
    runtimes = {run["runtime"] for run in session["runs"]}
    assert runtimes == {"qnn", "ort", "litert"}, runtimes
    assert any(fallback["op"] == "LayerNormalization" for fallback in session["fallbacks"]), session[
        "fallbacks"
    ]
    assert session["fusions"], "no fusion seen"
    (network,) = session["networks"]
    forms = {form["model"]: form for form in network["forms"]}
    assert list(forms) == ["digits_cnn_int8", "digits_cnn_a16w8", "digits_cnn_litert"], list(forms)
    assert (forms["digits_cnn_int8"]["on_npu"], forms["digits_cnn_litert"]["on_cpu"]) == (6, 7), forms
    assert all(rival["different"] and not rival["top1_flips"] for rival in network["rivals"]), network[
        "rivals"
    ]
    print(
        f"demo: {len(session['verdicts'])} verdicts, all pass; {len(session['runs'])} runs; classes as expected"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
