"""Tests that use `device` or `model` run once for each of them, in the order of the matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

from pytest_devicelab.state import STATE

if TYPE_CHECKING:
    from pytest_devicelab.matrix.specs import DeviceSpec, ModelSpec, NetworkSpec

# The public fixture, and the one beneath it that carries the parameter.
_PARAMETERS = {
    "model": "model_spec",
    "measured": "measured_spec",
    "network": "network_spec",
    "device": "device_spec",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize over the matrix, unless the test brings its own parameters of that name."""
    state = metafunc.config.stash.get(STATE, None)
    if state is None:
        return
    specs: dict[str, Sequence[ModelSpec | NetworkSpec | DeviceSpec]] = {
        "model": state.matrix.models,
        "measured": state.matrix.measured,
        "network": state.matrix.networks,
        "device": state.devices,
    }
    for public, carrier in _PARAMETERS.items():
        if carrier in metafunc.fixturenames and not {public, carrier} & _parametrized_by_user(metafunc):
            metafunc.parametrize(
                carrier,
                specs[public],
                indirect=True,
                scope="session",
                ids=[spec.id for spec in specs[public]],
            )


def _parametrized_by_user(metafunc: pytest.Metafunc) -> set[str]:
    names: set[str] = set()
    for marker in metafunc.definition.iter_markers("parametrize"):
        given = marker.args[0] if marker.args else marker.kwargs.get("argnames", "")
        names.update(part.strip() for part in given.split(",")) if isinstance(given, str) else names.update(
            given
        )
    return names
