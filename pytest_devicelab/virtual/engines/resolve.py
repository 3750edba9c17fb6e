"""From the engine's name in the matrix to the engine."""

from __future__ import annotations

import importlib
from typing import cast

from pytest_devicelab.errors import UserError
from pytest_devicelab.virtual.engine import Engine


def resolve_engine(name: str) -> Engine:
    """Return the engine of that name: `htp`, `cpu`, or `package.module:callable`.

    Raises:
        UserError: no such engine, or what it needs is not installed.
    """
    if name == "htp":
        from pytest_devicelab.virtual.engines.htp import run_htp
        from pytest_devicelab.virtual.simulator import require_simulator

        require_simulator()
        return run_htp
    if name == "cpu":
        from pytest_devicelab.virtual.engines.cpu import require_onnxruntime, run_cpu

        require_onnxruntime()
        return run_cpu
    return _import_engine(name)


def _import_engine(name: str) -> Engine:
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise UserError(
            f"engine {name!r} is not known", fix="use htp, cpu, or package.module:callable of your own"
        )
    try:
        engine = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # somebody else's module: whatever it raises, the user learns whose it is
        raise UserError(
            f"engine {name!r} cannot be imported",
            why=f"{type(error).__name__}: {error}"[:500],
            fix="install its package in the environment that runs pytest, and check the spelling",
        ) from error
    if not callable(engine):
        raise UserError(f"engine {name!r} is not callable", why=f"it is a {type(engine).__name__}")
    return cast("Engine", engine)
