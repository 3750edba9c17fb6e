"""Sessions that must not end green: each found a way to, once."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.plugin.projects import CLASSES, FEATURES, SAMPLES, Project, cpu, npu, one_message, save_model


def test_what_a_user_calls_tests_does_not_make_the_suite_vanish(project: Project) -> None:
    project.write(cpu("one"))
    (project.path / "pytest.ini").write_text("[pytest]\npython_functions = check_*\n")
    (project.path / "test_own.py").write_text("def check_nothing():\n    pass\n")
    project.run().assert_outcomes(passed=4)
    assert {check for check, _ in project.verdicts()} == {"placement", "determinism", "accuracy"}


def test_labels_of_other_classes(project: Project) -> None:
    project.write(npu("one", "right"))
    np.save(project.path / "labels.npy", np.full(SAMPLES, CLASSES))
    assert project.run("-k", "accuracy").ret == pytest.ExitCode.TESTS_FAILED
    assert project.verdicts() == {("accuracy", "one"): "inconclusive"}


def test_the_float_model_of_another_model(project: Project) -> None:
    project.model = {"labels": None}
    project.write(npu("one", "right"))
    save_model(project.path / "float.onnx", np.random.default_rng(99).standard_normal((FEATURES, CLASSES)))
    assert project.run("-k", "accuracy").ret == pytest.ExitCode.TESTS_FAILED
    assert project.verdicts() == {("accuracy", "one"): "inconclusive"}


@pytest.mark.parametrize(("engine", "ends"), [("refusing", "failure"), ("crashing", "error")])
def test_comparing_without_a_device_that_has_no_outputs(project: Project, engine: str, ends: str) -> None:
    project.write(npu("one", "right"), npu("two", engine))
    (project.path / "test_own.py").write_text(
        "def test_alike(fleet, model):\n"
        "    assert all(len(found.classes) == 1 for found in fleet.compare(model))\n"
    )
    assert project.run("--devicelab-suite=off").ret == pytest.ExitCode.TESTS_FAILED
    assert project.junit() == {"test_alike[tiny]": ends}


def test_a_mistake_of_the_users_is_not_what_an_xfail_mark_expects(project: Project) -> None:
    project.write(cpu("one"))
    (project.path / "test_own.py").write_text(
        "import pytest\n"
        "from pytest_devicelab.lab.session import read_labels\n\n"
        "@pytest.mark.xfail\n"
        "def test_known_to_be_wrong(model):\n"
        "    model.labels.write_text('no labels')\n"
        "    read_labels(model.labels)\n"
    )
    assert project.run("--devicelab-suite=off").ret == pytest.ExitCode.TESTS_FAILED


def test_a_run_that_broke_off_inside_a_subtest(project: Project) -> None:
    project.write(npu("one", "crashing"))
    (project.path / "test_own.py").write_text(
        "def test_parts(subtests, model, run_model):\n"
        "    with subtests.test('first'):\n"
        "        run_model(model)\n"
    )
    assert project.run("--devicelab-suite=off").ret == pytest.ExitCode.TESTS_FAILED


def test_names_in_a_model_do_not_steer_the_terminal(project: Project) -> None:
    project.write(cpu("one"))
    model = onnx.load(project.path / "model.onnx")
    model.graph.input[0].name = model.graph.node[0].input[0] = "x\x1b[2J"
    onnx.save(model, project.path / "model.onnx")
    message = one_message(project.run())
    assert "\x1b" not in message
    assert "x\\x1b[2J" in message
