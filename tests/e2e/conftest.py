from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pytest_devicelab.devices.adb_server import AdbServer
from pytest_devicelab.virtual.spawn import spawn
from tests.e2e.virtual_lab import VirtualLab, virtual_spec


@pytest.fixture(scope="session")
def virtual_lab() -> Iterator[VirtualLab]:
    """Two Snapdragons, two chips without an NPU, and `plain`, which does without a mount namespace."""
    snapdragons = [virtual_spec("s24", "SM8650"), virtual_spec("s21", "SM8350")]
    others = [virtual_spec(name, "Tensor G4", engine="cpu") for name in ("pixel", "twin", "plain")]
    with ExitStack() as stack:
        state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dl-")))
        server = stack.enter_context(AdbServer(state / "adb"))
        farm = stack.enter_context(spawn([*snapdragons, *others[:2]], state / "v", timeout_s=60))
        plain = stack.enter_context(spawn(others[2:], state / "p", timeout_s=60, namespace=False))
        farms = {name: served for served in (farm, plain) for name in served.ports}
        lab = VirtualLab(
            server=server, specs={spec.id: spec for spec in (*snapdragons, *others)}, farms=farms
        )
        for name in farms:
            server.connect(lab.serial(name))
        yield lab
