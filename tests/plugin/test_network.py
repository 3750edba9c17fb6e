"""Models of one network are compared on each device; what cannot be compared is not green."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.plugin.projects import Project, cpu, one_message, save_model

USUAL: dict[str, object] = {
    "reference": "float.onnx",
    "inputs": "inputs.npz",
    "labels": "labels.npy",
    "runtime": "ort",
    "network": "net",
}


def write(project: Project, noise: float = 0.0, **changes: object) -> None:
    """Write a network in two forms, the second with other weights by `noise`."""
    forms = [
        {"id": "tiny", "path": "model.onnx", **USUAL},
        {"id": "other", "path": "other.onnx", **USUAL, **changes},
    ]
    project.write(cpu("g4"), models=forms)
    rng = np.random.default_rng(7)
    weights = rng.standard_normal((4, 3)).astype(np.float32)
    save_model(project.path / "other.onnx", np.round(weights * 64) / 64 + np.float32(noise))


def test_a_network_is_compared_where_its_models_run(project: Project) -> None:
    write(project)
    result = project.run("-k", "network")
    assert result.ret == pytest.ExitCode.OK
    (network,) = project.session()["networks"]
    assert [form["model"] for form in network["forms"]] == ["tiny", "other"]
    assert network["on_devices"] == [{"device": "g4", "verdict": "pass", "classes": [["tiny", "other"]]}]
    result.stdout.fnmatch_lines(
        ["One network in several forms", "other (ort) against tiny: other values on 0 of 1*"]
    )
    assert "One network in several forms" in (project.folder / "report.html").read_text()


def test_a_form_that_is_wrong_is_red(project: Project) -> None:
    write(project, noise=-0.5, gates={"accuracy_drop": 0, "agreement": "bitwise"})
    result = project.run("-k", "network")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*the gate is bitwise, and values differ*"])


def test_other_samples_are_inconclusive(project: Project) -> None:
    write(project, samples=5)
    result = project.run("-k", "network")
    result.stdout.fnmatch_lines(["*other was not given the inputs of tiny*", "*1 inconclusive*"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_without_networks_there_is_no_such_test(project: Project) -> None:
    project.write(cpu("g4"))
    result = project.run("--collect-only", "-q")
    assert "network" not in result.stdout.str()


def test_a_network_of_one_is_a_mistake(project: Project) -> None:
    write(project, network="nte")
    message = one_message(project.run())
    assert "no other model is of network 'net'" in message
    assert "did you mean 'nte'?" in message


def test_workers_say_the_same(project: Project) -> None:
    write(project)
    assert project.run("-k", "network").ret == pytest.ExitCode.OK
    alone = project.session()["networks"]
    assert project.run("-k", "network", "-n", "2").ret == pytest.ExitCode.OK
    shared = project.session()["networks"]
    assert json.dumps(shared) == json.dumps(alone)
