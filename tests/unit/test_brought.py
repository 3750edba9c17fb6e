from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_devicelab.errors import InfrastructureError, UserError
from pytest_devicelab.lab.executor import make_executor, require_executor
from pytest_devicelab.matrix.brought import calling, load_brought
from pytest_devicelab.runtimes.registry import find_runtime
from pytest_devicelab.virtual.engines.resolve import resolve_engine

Install = Callable[[str, str], None]

MODULE = """
class Empty:
    pass

class Context:
    def __init__(self, context): raise OSError("no gateway")

class Bare:
    def __init__(self, context): pass

class Unready(Bare):
    @staticmethod
    def require(): raise KeyError("DIALECT")

constant = 3
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package with these entry points, as text; its modules are `brought_here` and `brought_broken`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "brought_here.py").write_text(MODULE)
    (tmp_path / "brought_broken.py").write_text("raise RuntimeError('boom')")

    def installed(package: str, points: str) -> None:
        folder = tmp_path / f"{package}-1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
        (folder / "entry_points.txt").write_text(points)

    return installed


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("brought_broken:X", "RuntimeError: boom"),
        ("no_such_module_here:X", "ModuleNotFoundError"),
        ("brought_here:Nothing", "AttributeError"),
        ("brought_here:constant", "brought_here:constant is of type int, which cannot be called"),
        ("brought_here:Bare", "TypeError"),
        ("brought_here:Empty", "Empty lacks backend, command, declared_inputs, evidence_files, name"),
    ],
)
def test_a_runtime_that_cannot_be_used_is_named(install: Install, value: str, why: str) -> None:
    install("some", f"[devicelab.runtimes]\nmine = {value}\n")
    with pytest.raises(UserError, match=r"'mine', an entry point of 'devicelab.runtimes'") as raised:
        find_runtime("mine")
    assert why in str(raised.value)
    assert "repair or remove the package" in str(raised.value)


@pytest.mark.parametrize(
    ("value", "why"),
    [("brought_broken:X", "RuntimeError: boom"), ("brought_here:Unready", "KeyError: 'DIALECT'")],
)
def test_a_kind_of_device_that_cannot_be_used_is_said_before_anything_starts(
    install: Install, value: str, why: str
) -> None:
    install("some", f"[devicelab.executors]\nrack = {value}\n")
    with pytest.raises(UserError, match=r"'rack', an entry point of 'devicelab.executors'") as raised:
        require_executor("rack")
    assert why in str(raised.value)


@pytest.mark.parametrize(
    ("value", "why"),
    [("brought_here:Context", "OSError: no gateway"), ("brought_here:Bare", "Bare lacks carry_out, close")],
)
def test_an_executor_that_cannot_be_made_is_named(install: Install, value: str, why: str) -> None:
    install("some", f"[devicelab.executors]\nrack = {value}\n")
    nothing: Any = None  # neither looks at what it is given
    with pytest.raises(UserError) as raised:
        make_executor("rack", nothing)
    assert why in str(raised.value)


def test_two_packages_with_one_name_are_not_chosen_between(install: Install) -> None:
    install("some", "[devicelab.executors]\naihub = brought_here:Bare\n")
    with pytest.raises(UserError, match=r"more than once: brought_here:Bare and pytest_devicelab.aihub"):
        require_executor("aihub")


def test_the_same_entry_twice_is_one(install: Install) -> None:
    for package in ("some", "other"):
        install(package, "[devicelab.executors]\nrack = brought_here:Bare\n")
    assert load_brought("devicelab.executors", "rack") is not None


def test_errors_of_ours_stay_what_they_are() -> None:
    def offline() -> None:
        raise InfrastructureError("the lab host is offline")

    with pytest.raises(InfrastructureError, match="offline"):
        calling(offline, "group", "name")


def test_an_engine_whose_module_breaks_is_named(install: Install) -> None:
    with pytest.raises(UserError, match="cannot be imported") as raised:
        resolve_engine("brought_broken:run")
    assert "RuntimeError: boom" in str(raised.value)
