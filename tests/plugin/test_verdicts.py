"""Pass, fail and inconclusive: in the terminal, in JUnit XML, in session.json and in the exit status."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from tests.plugin.projects import Project, cpu, npu


def test_each_verdict_is_shown_as_what_it_is(project: Project) -> None:
    names = ("wrong", "restless", "mute", "crashing", "refusing")
    project.write(*(npu(name, name) for name in names), cpu("cpu_only"))

    result = project.run("-v", "-k", "not agreement")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    verdicts = project.verdicts()
    assert verdicts == {
        ("placement", "wrong"): "pass",
        ("determinism", "wrong"): "pass",
        ("accuracy", "wrong"): "fail",
        ("placement", "restless"): "pass",
        ("determinism", "restless"): "fail",
        ("accuracy", "restless"): "pass",
        ("placement", "mute"): "inconclusive",
        ("determinism", "mute"): "pass",
        ("accuracy", "mute"): "pass",
        ("placement", "crashing"): "inconclusive",
        ("determinism", "crashing"): "inconclusive",
        ("accuracy", "crashing"): "inconclusive",
        ("placement", "refusing"): "fail",
        ("determinism", "refusing"): "inconclusive",
        ("accuracy", "refusing"): "inconclusive",
        ("placement", "cpu_only"): "pass",
        ("determinism", "cpu_only"): "pass",
        ("accuracy", "cpu_only"): "pass",
    }
    as_junit = {"pass": "passed", "fail": "failure", "inconclusive": "error"}
    as_words = {"pass": "PASSED", "fail": "FAILED", "inconclusive": "INCONCLUSIVE"}
    junit, out = project.junit(), result.stdout.str()
    for (check, device), verdict in verdicts.items():
        name = f"test_{check}[tiny-{device}]"
        assert junit[name] == as_junit[verdict], name
        assert re.search(rf"{re.escape(name)} {as_words[verdict]} ", out), name
    result.stdout.fnmatch_lines(["*= 3 failed, 9 passed, 1 deselected, 6 inconclusive in *"])
    cases = {case.attrib["name"]: case for case in ElementTree.parse("junit.xml").iter("testcase")}
    about = {
        entry.attrib["name"]: entry.attrib["value"]
        for entry in cases["test_placement[tiny-mute]"].iter("property")
    }
    assert "gave no graph assignment" in about.pop("devicelab_reason")
    assert about == {
        "devicelab_verdict": "inconclusive",
        "devicelab_check": "placement",
        "devicelab_model": "tiny",
        "devicelab_devices": "mute",
        "devicelab_simulated": "true",
    }
    # Reasons, not tracebacks; and a device has no say over the terminal.
    assert "Traceback" not in out
    assert "conclude(" not in out
    assert "\x1b[2J" not in result.stdout.str() + result.stderr.str()
    result.stdout.fnmatch_lines(
        ["accuracy of tiny on wrong", "  why: three-run rule is broken: *", "  fix: see */record.json"]
    )
    # A wrong tensor is judged as it came: there is no second try to get a better one.
    assert [len(project.record(name)["attempts"]) for name in ("wrong", "crashing", "refusing")] == [1, 1, 1]
    result.stdout.fnmatch_lines(["  why: the run on crashing failed: *RuntimeError: the runner broke*"])
    assert "the runner broke" in project.record("crashing")["error"]


def test_no_reference_is_inconclusive_and_no_labels_is_not(project: Project) -> None:
    project.write(cpu("one"))
    usual = {"path": "model.onnx", "inputs": "inputs.npz", "runtime": "ort"}
    without_labels = {"id": "plain", "reference": "float.onnx", **usual}
    without_reference = {"id": "alone", "labels": "labels.npy", **usual}
    project.write_matrix([cpu("one")], [without_labels, without_reference])

    result = project.run("-q", "--tb=no", "-k", "accuracy")

    # Inconclusive alone is not green.
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([".I*", "*INCONCLUSIVE devicelab::test_accuracy[[]alone-one]*"])
    result.stdout.no_fnmatch_line("*why:*")
    session = project.session()
    assert session["outcome"] == "inconclusive"
    reasons = {entry["model"]: (entry["verdict"], entry["reason"]) for entry in session["verdicts"]}
    assert reasons["alone"][0] == "inconclusive"
    assert "name one as `reference:`" in reasons["alone"][1]
    assert reasons["plain"][0] == "pass"
    assert "No labels: top-1 accuracy was not measured." in reasons["plain"][1]


def test_bits_that_part_fail_only_where_the_matrix_wants_them_alike(project: Project) -> None:
    project.model = {"gates": {"agreement": "bitwise"}}
    project.write(npu("right", "right"), npu("restless", "restless"))

    result = project.run("-k", "agreement")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert project.junit() == {"test_agreement[tiny]": "failure"}
    (comparison,) = project.session()["comparisons"]
    assert comparison["classes"] == [["right"], ["restless"]]


def test_a_finding_that_is_expected_may_be_marked_and_a_missing_one_may_not(project: Project) -> None:
    project.write(npu("refusing", "refusing"), npu("crashing", "crashing"))
    project.pytester.makepyfile(
        """
        import pytest

        @pytest.mark.xfail(reason="known")
        def test_mine(model, run_model):
            run_model(model)
        """
    )

    result = project.run("--devicelab-suite=off", "-rx")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert project.junit() == {"test_mine[tiny-refusing]": "skipped", "test_mine[tiny-crashing]": "error"}
    result.assert_outcomes(xfailed=1)
    result.stdout.fnmatch_lines(["*1 xfailed, 1 inconclusive in*"])
