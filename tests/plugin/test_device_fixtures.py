"""The fixtures `device`, `model`, `run_model` and `fleet` in a user's own tests."""

from __future__ import annotations

import pytest

from tests.plugin.projects import Project, cpu, npu

TESTS = """
import numpy as np
import pytest


def test_device(device):
    assert device.getprop("ro.product.cpu.abi") == "arm64-v8a"
    assert device.shell(["echo", "a b; exit 3"]).text == "a b; exit 3\\n"


def test_model(model):
    assert model.path.name == "model.onnx"


def test_run_model(model, run_model):
    few = np.ones((3, 4), np.float32)
    run = run_model(model, {"x": few})
    assert run.record.status == "ok"
    assert run.outputs["y"].shape == (3, 3)
    assert np.array_equal(run.outputs["y"][0], run.outputs["y"][2])
    assert run_model(model).outputs["y"].shape == (12, 3)


def test_fleet(model, fleet):
    runs = fleet.run(model)
    assert list(runs) == [spec.id for spec in fleet.devices] == ["one", "two"]
    (comparison,) = fleet.compare(model)
    assert comparison.classes == (("one", "two"),)


def test_device_and_fleet(device, model, fleet):
    assert device.id in fleet.run(model)


@pytest.mark.parametrize("device", ["mine"])
@pytest.mark.parametrize(("model", "other"), [("own", 1)])
def test_own_parameters(device, model, other):
    assert (device, model, other) == ("mine", "own", 1)


def test_wrong_inputs(model, run_model):
    run_model(model, {"x": np.ones((3, 9), np.float32)})


def test_own_finding(device):
    assert device.id == "one", "only the first one does"


def test_no_inputs(lab_session, model):
    from dataclasses import replace

    lab_session.inputs(replace(model, id="bare", inputs=None))
"""


def test_fixtures_in_tests_of_a_user(project: Project) -> None:
    project.write(cpu("one"), cpu("two"))
    project.pytester.makepyfile(test_user=TESTS)

    result = project.run("--devicelab-suite=off", "-v")

    assert project.junit() == {
        "test_device[one]": "passed",
        "test_device[two]": "passed",
        "test_model[tiny]": "passed",
        "test_run_model[tiny-one]": "passed",
        "test_run_model[tiny-two]": "passed",
        "test_fleet[tiny]": "passed",
        "test_device_and_fleet[tiny-one]": "passed",
        "test_device_and_fleet[tiny-two]": "passed",
        "test_own_parameters[own-1-mine]": "passed",
        "test_wrong_inputs[tiny-one]": "failure",
        "test_wrong_inputs[tiny-two]": "failure",
        "test_own_finding[one]": "passed",
        "test_own_finding[two]": "failure",
        "test_no_inputs[tiny]": "failure",
    }
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    # A mistake of the user is told in words; a finding of a test of theirs shows their line.
    result.stdout.fnmatch_lines_random(["*model bare has no inputs", "*fix: add `inputs: file.npz`*"])
    result.stdout.no_fnmatch_line("*raise ModelError*")
    result.stdout.fnmatch_lines(["*AssertionError: only the first one does*"])
    # The session is not green, though no verdict of ours says otherwise.
    assert project.session()["outcome"] != "pass"
    result.stdout.no_fnmatch_line("PASS: *")


def test_device_and_fleet_do_not_wait_in_a_circle(project: Project) -> None:
    project.write(cpu("one"), cpu("two"))
    project.pytester.makepyfile(
        """
        import time

        def test_both(device, model, fleet):
            time.sleep(1.0)  # the other worker has begun by now
            assert set(fleet.run(model)) == {"one", "two"}
        """
    )

    result = project.run("--devicelab-suite=off", "-n", "2")

    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=2)


def test_a_finding_of_run_model(project: Project) -> None:
    project.write(npu("refusing", "refusing"))
    project.pytester.makepyfile("def test_mine(model, run_model): run_model(model)")

    result = project.run("--devicelab-suite=off")

    assert project.junit() == {"test_mine[tiny-refusing]": "failure"}
    result.stdout.fnmatch_lines(["tiny does not run on refusing", "  why: *"])


def test_without_a_matrix_a_test_that_needs_a_device_is_inconclusive(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_device(device): pass
        def test_model(model): pass
        def test_fleet(fleet): pass
        def test_other(): pass
        """
    )
    result = pytester.runpytest_inprocess()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "*INCONCLUSIVE *::test_device*",
            "this test needs devices, and none were given",
            "  fix: pytest --devices=device_matrix.yaml",
            "*1 passed, 3 inconclusive in*",
        ]
    )
    assert not (pytester.path / "reports").exists()
