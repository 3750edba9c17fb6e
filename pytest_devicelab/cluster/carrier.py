"""The process on a lab host that carries runs out on one device; it can be killed in mid-run without harm to its unit."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pytest_devicelab.cluster.names import beside_of
from pytest_devicelab.cluster.parcel import Parcel, pack
from pytest_devicelab.errors import InfrastructureError
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.lab.address import LabAddress
from pytest_devicelab.lab.lab import Lab
from pytest_devicelab.lab.local import LocalExecutor
from pytest_devicelab.lab.request import RunRequest
from pytest_devicelab.lab.retry import RetryQuota
from pytest_devicelab.matrix.specs import DeviceSpec
from pytest_devicelab.runtimes.qairt import find_sdk


class Carrier:
    """Carries runs out on one device beside this host.

    Args:
        spec: the device, as the lab host's own matrix describes it.
        address: of the lab that is up on this host.
        cache: folder for compiled models and packed inputs.
    """

    def __init__(self, spec: DeviceSpec, address: LabAddress, cache: str) -> None:
        self._spec = spec
        self._lab = Lab(address, holder=f"Ray cluster, lab host {os.uname().nodename}")
        self._cache = Path(cache)

    def ready(self) -> bool:
        """Say that this process is up."""
        return True

    def tidy(self) -> None:
        """Remove what a carrier before this one left on the device when it was killed."""
        with self._lab.lease(self._spec):
            pass  # whoever takes a lease clears up first

    def carry(
        self, request: RunRequest, files: Mapping[str, bytes], session: str, retries_used: int
    ) -> Parcel:
        """Carry a run out and return it with its evidence.

        Args:
            request: the run; its `path` is a name in `files`.
            files: the model, and weights it keeps in files of their own, by their path beside it.
            session: id of the controller's session.
            retries_used: how many retries that session has taken.
        """
        with tempfile.TemporaryDirectory(prefix="dl-unit-") as folder:
            root = Path(folder)
            for name, content in files.items():
                place = (root / "model" / name).resolve()
                if not place.is_relative_to(root.resolve() / "model"):
                    raise InfrastructureError(f"a model file is named {name[:80]!r}", fix="see who sends it")
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)
            store = SessionStore.create(root / "reports", session)
            RetryQuota(store.root, request.retries).use(retries_used)
            local = replace(
                request,
                path=root / "model" / request.path.name,
                unit=beside_of(request.unit),
                qairt_sdk=find_sdk(None, os.environ) if self._spec.kind == "adb" else None,
            )
            executor = LocalExecutor(self._lab, store, cache=self._cache, progress=lambda text: None)
            return pack(executor.carry_out(self._spec, local), store)
