"""`--devicelab-select`, `-k` and `--devicelab-suite`: which checks there are."""

from __future__ import annotations

import pytest

from tests.plugin.projects import Project, cpu, npu, one_message


@pytest.fixture(autouse=True)
def _matrix(project: Project) -> None:
    project.write(cpu("old"), cpu("new"), npu("phone", "right"))


def _collected(project: Project, *arguments: str) -> list[str]:
    result = project.run_inprocess("--collect-only", "-q", *arguments)
    assert result.ret == pytest.ExitCode.OK
    # Nothing was started for that.
    assert not (project.path / "reports").exists()
    return [line for line in result.stdout.lines if "::" in line]


def test_without_a_selection_every_model_is_checked_on_every_device(project: Project) -> None:
    checks = ("placement", "determinism", "accuracy")
    assert sorted(_collected(project)) == sorted(
        [
            *(
                f"devicelab::test_{check}[tiny-{device}]"
                for check in checks
                for device in ("old", "new", "phone")
            ),
            "devicelab::test_agreement[tiny]",
        ]
    )


def test_a_selection_chooses_devices(project: Project) -> None:
    found = _collected(project, "--devicelab-select=soc=Tensor G4")
    assert {name.partition("[")[2] for name in found} == {"tiny-old]", "tiny-new]", "tiny]"}


def test_one_device_has_nothing_to_agree_with(project: Project) -> None:
    assert not [n for n in _collected(project, "--devicelab-select=id=new") if "agreement" in n]


def test_k_chooses_checks(project: Project) -> None:
    assert _collected(project, "-k", "accuracy and phone") == ["devicelab::test_accuracy[tiny-phone]"]


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("soc=SM8350", "matches none of the 3 devices"),
        ("sock=SM8650", "unknown key 'sock' (did you mean 'soc'"),
        ("soc", "cannot read 'soc'"),
        ("", "cannot read ''"),
    ],
)
def test_a_selection_without_a_device_is_a_mistake(project: Project, expression: str, said: str) -> None:
    message = one_message(project.run_inprocess(f"--devicelab-select={expression}"))
    assert said in message
    assert not (project.path / "reports").exists()


def test_a_selection_needs_a_matrix(pytester: pytest.Pytester) -> None:
    message = one_message(pytester.runpytest_inprocess("--devicelab-select=soc=SM8650"))
    assert "--devices=MATRIX.yaml" in message


def test_the_suite_can_be_left_out(project: Project) -> None:
    project.pytester.makepyfile("def test_mine(device): pass")
    assert _collected(project, "--devicelab-suite=off") == [
        f"test_the_suite_can_be_left_out.py::test_mine[{device}]" for device in ("old", "new", "phone")
    ]


def test_no_test_left_is_not_green(project: Project) -> None:
    result = project.run("-k", "nothing_like_that", "--devicelab-select=id=new")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert project.session()["outcome"] == "inconclusive"
    # What was not selected was not missed either.
    assert [device["id"] for device in project.session()["devices"]] == ["new"]
