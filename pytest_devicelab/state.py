"""The one object that holds a devicelab session inside pytest, from the matrix to the report."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_devicelab.errors import InfrastructureError

if TYPE_CHECKING:
    from pytest_devicelab.durations import Durations
    from pytest_devicelab.evidence.store import SessionStore
    from pytest_devicelab.lab.address import LabAddress
    from pytest_devicelab.lab.prefetch import Prefetch
    from pytest_devicelab.lab.scratch import Scratch
    from pytest_devicelab.lab.services import LabServices
    from pytest_devicelab.lab.session import LabSession
    from pytest_devicelab.lab.session_lock import SessionLock
    from pytest_devicelab.matrix.specs import DeviceSpec, MatrixSpec, ModelSpec
    from pytest_devicelab.progress import ProgressLog, ProgressPrinter
    from pytest_devicelab.report.lines import Style
    from pytest_devicelab.report.session import Session

STATE = pytest.StashKey["State"]()

_MARKUP: Mapping[Style, Mapping[str, bool]] = {
    "heading": {"bold": True},
    "plain": {},
    "quiet": {"light": True},
    "pass": {"green": True, "bold": True},
    "fail": {"red": True, "bold": True},
    "flaky": {"purple": True, "bold": True},
    "inconclusive": {"yellow": True, "bold": True},
}


class State:
    """A devicelab session in one process: the controller, which owns the lab, or an xdist worker, which uses it.

    Args:
        matrix: the device matrix.
        devices: the devices that were selected, in matrix order.
        reports: where sessions go.
        handoff: in a worker, what the controller passed on; None on the controller.
        verbosity: pytest's; a quiet session shows no progress.
        resume: folder of the session to go on with; None begins one.
    """

    def __init__(
        self,
        *,
        matrix: MatrixSpec,
        devices: tuple[DeviceSpec, ...],
        reports: Path,
        handoff: dict[str, Any] | None,
        verbosity: int,
        resume: Path | None = None,
    ) -> None:
        self.matrix = matrix
        self.devices = devices
        self._reports = reports
        self._handoff = handoff
        self._verbosity = verbosity
        self._resume = resume
        self._started = datetime.now(UTC)
        self._lock: SessionLock | None = None
        self._services: LabServices | None = None
        self._scratch: Scratch | None = None
        self._address: LabAddress | None = None
        self._store: SessionStore | None = None
        self._session: LabSession | None = None
        self._printer: ProgressPrinter | None = None
        self._prefetch: Prefetch | None = None
        self._durations: Durations | None = None
        self._found: Session | None = None
        self._unreported = ""

    @classmethod
    def from_config(cls, config: pytest.Config) -> State:
        """Read the matrix and the selection; `UserError` for whatever is wrong with them."""
        from pytest_devicelab.matrix.decode import load_matrix
        from pytest_devicelab.matrix.select import select_devices

        matrix = load_matrix(_beside(config.invocation_params.dir, config.getoption("devices")))
        expression = config.getoption("devicelab_select")
        devices = matrix.devices if expression is None else select_devices(matrix.devices, expression)
        chosen = config.getoption("devicelab_reports")
        reports = (
            _beside(config.invocation_params.dir, chosen)
            if chosen
            else config.rootpath / config.getini("devicelab_reports")
        )
        worker: dict[str, Any] | None = getattr(config, "workerinput", None)
        resume = None
        if worker is None and (wanted := config.getoption("devicelab_resume")) is not None:
            from pytest_devicelab.lab.resume import find_session, require_same_matrix

            resume = find_session(wanted, reports, config.invocation_params.dir)
            require_same_matrix(resume, matrix.path)
        return cls(
            matrix=matrix,
            devices=devices,
            reports=reports,
            handoff=worker["devicelab"] if worker is not None else None,
            verbosity=config.get_verbosity(),
            resume=resume,
        )

    def start(self) -> None:
        """Check what was asked for, make the session's folder and bring the lab up; in a worker, find them."""
        from pytest_devicelab.evidence.store import SessionStore
        from pytest_devicelab.lab.address import LabAddress
        from pytest_devicelab.lab.preflight import check_lab
        from pytest_devicelab.lab.scratch import Scratch
        from pytest_devicelab.lab.services import LabServices
        from pytest_devicelab.lab.session_lock import SessionLock
        from pytest_devicelab.progress import ProgressPrinter

        if self._handoff is not None:
            self._address = LabAddress(**self._handoff["address"])
            root = Path(self._handoff["store"])
            self._lock = SessionLock.join(root)
            self._store = SessionStore.open(root, attempt=self._handoff["attempt"])
            return
        if self._resume is not None:
            self._lock = SessionLock.take(self._resume)
        check_lab(self.matrix, self.devices)
        self._scratch = Scratch()
        self._services = LabServices(self.matrix, self.devices, self._scratch.path)
        self._address = self._services.address
        self._store = self._open_store()
        if self._verbosity >= 0:
            self._printer = ProgressPrinter(self._progress_log(), os.dup(2))  # the real standard error

    def _open_store(self) -> SessionStore:
        """Make the session's folder, or clean up the one of the session that is resumed; we are at it from now on."""
        from pytest_devicelab.evidence.starts import begin_start
        from pytest_devicelab.evidence.store import SessionStore, new_session_id
        from pytest_devicelab.lab.resume import clean_session
        from pytest_devicelab.lab.session_lock import SessionLock
        from pytest_devicelab.progress import ProgressLog

        if self._resume is None:
            store = SessionStore.create(self._reports, new_session_id(self._started, secrets.token_bytes(2)))
            self._lock = SessionLock.take(store.root)
            store.write_file("matrix.yaml", self.matrix.path.read_bytes())
        else:
            store = SessionStore.open(self._resume)
            store.point_latest()
        store.attempt = begin_start(store.root, self._started).number
        if self._resume is not None:
            clean_session(store, ProgressLog(store.root / "progress.log").write)
        return store

    def handoff(self) -> dict[str, Any]:
        """Return what a worker needs to use this lab and this session: plain data."""
        assert self._address is not None
        assert self._store is not None
        address = {
            "host": self._address.host,
            "port": self._address.port,
            "ports": dict(self._address.ports),
            "servers": dict(self._address.servers),
        }
        return {"address": address, "store": str(self._store.root), "attempt": self._store.attempt}

    def durations(self) -> Durations | None:
        """Return where the controller keeps how long tests took; None in a worker, and where runs are taken over."""
        from pytest_devicelab.durations import Durations

        if self._handoff is not None or self._resume is not None:
            return None
        return Durations(self._reports / "cache" / "durations.json")

    def units(self) -> dict[str, int]:
        """Return how many tests each device that is a pool takes at once, by id."""
        lab, found = self.lab_session().lab, {}
        for spec in self.devices:
            # A pool of which nothing is attached is reported by the tests that ask for it.
            with suppress(InfrastructureError):
                found.update({spec.id: len(lab.units(spec))} if spec.pool else {})
        return found

    def lab_session(self) -> LabSession:
        """Return the session's runs, as this process sees them."""
        from pytest_devicelab.lab.lab import Lab
        from pytest_devicelab.lab.session import LabSession

        if self._session is None:
            assert self._address is not None
            assert self._store is not None
            log = self._progress_log()
            holder = f"pytest session {self._store.id}"
            self._session = LabSession(
                matrix=self.matrix,
                devices=self.devices,
                store=self._store,
                lab=Lab(
                    self._address,
                    holder=holder,
                    # That another run of this very session holds a device is no news: it says so itself.
                    waiting=lambda reason: None if holder in reason else log.write(reason),
                ),
                cache=self._reports / "cache",
                progress=log.write,
            )
        return self._session

    def prefetch(self, items: Sequence[pytest.Item]) -> None:
        """Begin with the runs of the standard suite. Workers do not: they are side by side already."""
        if self._handoff is not None:
            return
        wanted: dict[tuple[DeviceSpec, ModelSpec], bool] = {}
        for item in items:
            parameters = getattr(getattr(item, "callspec", None), "params", {})
            # Which runs a test of the user's will ask for, nobody knows.
            if item.nodeid.startswith("devicelab::") and "device_spec" in parameters:
                network = parameters.get("network_spec")
                carrier = "measured_spec" if "measured_spec" in parameters else "model_spec"
                for model in network.models if network else [parameters[carrier]]:
                    pair = (parameters["device_spec"], model)
                    wanted[pair] = wanted.get(pair, False) or item.name.startswith("test_determinism[")
        if not wanted:
            return
        from pytest_devicelab.lab.prefetch import Prefetch, Wish

        wishes = [Wish(spec=spec, model=model, twice=twice) for (spec, model), twice in wanted.items()]
        durations = self._durations = self.durations()
        if durations is None:  # runs are taken over, and what they took says nothing
            self._prefetch = Prefetch(self.lab_session(), wishes)
        else:
            self._prefetch = Prefetch(
                self.lab_session(), wishes, expected_s=durations.known, note=durations.note
            )

    def header(self) -> list[str]:
        """Return the lines for pytest's header."""
        simulated = sum(spec.simulated for spec in self.devices)
        line = (
            f"devicelab: {self.matrix.path.name}: {len(self.devices)} of {len(self.matrix.devices)} devices "
            f"({simulated} simulated), {len(self.matrix.models)} model{'s' * (len(self.matrix.models) != 1)}"
        )
        resumed = [f"devicelab: resumes session {self._resume.name}"] if self._resume is not None else []
        return [line, *resumed, *(f"devicelab: note: {note}" for note in self.matrix.notes)]

    def finish(self, exit_status: int) -> bool:
        """Stop showing progress and bring the lab down; on the controller write the report.

        Returns:
            False when the report could not be written, a verdict changed that pytest took for green the last time it
            was given, or one is from before and was not checked again: none is green.
        """
        self._close_lab()
        if self._handoff is not None or self._store is None:
            return True
        from pytest_devicelab.evidence.starts import end_start
        from pytest_devicelab.report.assemble import assemble
        from pytest_devicelab.report.html import render_html
        from pytest_devicelab.report.session import to_json
        from pytest_devicelab.verdicts.unchecked import find_unchecked
        from pytest_devicelab.verdicts.verdict import Verdict

        selected = replace(self.matrix, devices=self.devices)
        try:
            end_start(self._store.root, self._store.attempt, datetime.now(UTC))
            found = assemble(self._store, selected, self._started, datetime.now(UTC), int(exit_status))
            unchecked = find_unchecked(self._store.judgements(Verdict), self._store.attempt)
            spoilt = not exit_status and (found.outcome == "flaky" or bool(unchecked))
            found = replace(found, exit_status=1) if spoilt else found
            self._store.write_file("session.json", json.dumps(to_json(found), indent=1).encode())
            self._store.write_file("report.html", render_html(found).encode())
        except InfrastructureError as error:
            self._unreported = str(error)
            return False
        self._found = found
        return not spoilt

    def summarize(self, terminal: pytest.TerminalReporter) -> None:
        """Print the one-screen summary, or why there is none."""
        if self._unreported:
            terminal.write_sep("=", "devicelab: no report", red=True)
            from pytest_devicelab.report.phrases import visible

            terminal.write_line(visible(self._unreported, keep="\n"))
        if self._found is None or self._store is None or self._verbosity < 0:
            return
        from pytest_devicelab.report.terminal import summarize

        root, here = self._store.root, terminal.startpath
        folder = root.relative_to(here) if root.is_relative_to(here) else root
        terminal.write_sep("=", "devicelab")
        for line in summarize(self._found, shutil.get_terminal_size().columns, folder=str(folder)):
            terminal.write_line(line.text, **_MARKUP[line.style])

    def close(self) -> None:
        """End progress and lab, and leave the session; does nothing the second time."""
        self._close_lab()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _close_lab(self) -> None:
        if self._printer is not None:
            self._printer.close()
            self._printer = None
        if self._prefetch is not None:
            # Whoever waits for a cloud ends when the session lets go of it.
            self._prefetch.close(self._session.close if self._session is not None else lambda: None)
            self._prefetch = None
        if self._durations is not None:
            self._durations.save()
            self._durations = None
        if self._session is not None:
            self._session.close()
            self._session = None
        if self._services is not None:
            self._services.close()
            self._services = None
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None

    def _progress_log(self) -> ProgressLog:
        from pytest_devicelab.progress import ProgressLog

        assert self._store is not None
        return ProgressLog(self._store.root / "progress.log")


def _beside(folder: Path, name: str) -> Path:
    return (folder / name).resolve()
