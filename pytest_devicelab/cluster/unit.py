"""A unit: one device of a lab host, as an actor of Ray on that host. It does one run at a time; that is its lease."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pytest_devicelab.cluster.parcel import Parcel, pack
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.lab.lab import Lab, LabAddress
from pytest_devicelab.lab.local import LocalExecutor
from pytest_devicelab.lab.request import RunRequest
from pytest_devicelab.matrix.specs import DeviceSpec
from pytest_devicelab.runtimes.qairt import find_sdk


class Unit:
    """Runs what a controller sends on one device beside this host.

    Args:
        spec: the device, as the lab host's own matrix describes it.
        address: of the lab that is up on this host.
        cache: folder for compiled models and packed inputs.
    """

    def __init__(self, spec: DeviceSpec, address: LabAddress, cache: str) -> None:
        self._spec = spec
        self._lab = Lab(address, holder=f"Ray cluster, lab host {os.uname().nodename}")
        self._cache = Path(cache)

    def alive(self) -> bool:
        """Say that this host is there."""
        return True

    def run(self, request: RunRequest, files: Mapping[str, bytes], session: str) -> Parcel:
        """Carry a run out and return it with its evidence.

        Args:
            request: the run; its `path` is a name in `files`.
            files: the model, and weights it keeps in files of their own.
            session: id of the controller's session.
        """
        with tempfile.TemporaryDirectory(prefix="dl-unit-") as folder:
            root = Path(folder)
            for name, content in files.items():
                (root / Path(name).name).write_bytes(content)
            store = SessionStore.create(root / "reports", session)
            local = replace(
                request,
                path=root / Path(request.path).name,
                qairt_sdk=find_sdk(None, os.environ) if self._spec.kind == "adb" else None,
            )
            executor = LocalExecutor(self._lab, store, cache=self._cache, progress=lambda text: None)
            return pack(executor.carry_out(self._spec, local), store)


def unit_name(host: str, spec: DeviceSpec) -> str:
    """Return the actor's name, which says all that a controller chooses by: host, chip, kind, engine, id."""
    soc = spec.soc.name if spec.soc else ""
    return "|".join(("unit", host, soc, spec.kind, spec.engine if spec.simulated else "", spec.id))


def chip_of(name: str) -> str | None:
    """Return the chip of a unit by its actor's name; None for an actor that is no unit."""
    parts = name.split("|")
    return parts[2] if len(parts) == 6 and parts[0] == "unit" else None


def host_of(name: str) -> str:
    """Return the lab host of a unit, by its actor's name."""
    return name.split("|")[1]
