from __future__ import annotations

from pathlib import Path

import pytest

from pytest_devicelab.errors import UserError
from pytest_devicelab.runtimes.qairt import find_sdk, open_sdk


def tree(root: Path) -> Path:
    for name in ("bin", "lib"):
        (root / name).mkdir(parents=True)
    return root


def test_the_matrix_comes_before_the_environment(tmp_path: Path) -> None:
    first, second, third = (tree(tmp_path / name) for name in ("a", "b", "c"))
    both = {"QAIRT_SDK_ROOT": str(second), "QNN_SDK_ROOT": str(third)}
    assert find_sdk(first, both) == first
    assert find_sdk(None, both) == second
    assert find_sdk(None, {"QNN_SDK_ROOT": str(third)}) == third
    assert find_sdk(None, {"QNN_SDK_ROOT": ""}) is None


def test_a_folder_that_is_no_sdk_is_refused_by_the_name_of_who_named_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\$QNN_SDK_ROOT names .*\n  why: it has no folders bin and lib"):
        find_sdk(None, {"QNN_SDK_ROOT": str(tmp_path)})
    with pytest.raises(UserError, match=r"qairt_sdk in the matrix .*\n  why: there is no such folder"):
        find_sdk(tmp_path / "absent", {})


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("version: 2.51.0.260929\n", "2.51.0.260929"),
        ("version: v2.31.0\n", "2.31.0"),
        ("version: [1, 2]\n", "2.44.0.1"),
        ("- a list\n", "2.44.0.1"),
        ("!!python/object/apply:os.system [id]\n", "2.44.0.1"),
        (None, "2.44.0.1"),
    ],
)
def test_the_version_is_read_from_the_sdk_else_from_its_folder(
    tmp_path: Path, text: str | None, version: str
) -> None:
    root = tree(tmp_path / "2.44.0.1")
    if text is not None:
        (root / "sdk.yaml").write_text(text)
    assert open_sdk(root).version == version
