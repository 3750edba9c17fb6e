"""Open a lab session outside pytest: what the commands that run experiments on devices stand on."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pytest_devicelab.errors import UserError
from pytest_devicelab.evidence.store import SessionStore, new_session_id
from pytest_devicelab.lab.lab import Lab
from pytest_devicelab.lab.resume import set_failures_aside
from pytest_devicelab.lab.scratch import Scratch
from pytest_devicelab.lab.services import LabServices
from pytest_devicelab.lab.session import LabSession
from pytest_devicelab.lab.session_lock import SessionLock
from pytest_devicelab.matrix.specs import DeviceSpec, MatrixSpec


@contextmanager
def open_session(
    matrix: MatrixSpec,
    devices: tuple[DeviceSpec, ...],
    *,
    reports: Path,
    resume: Path | None = None,
    progress: Callable[[str], None],
) -> Iterator[LabSession]:
    """Bring a lab up, hand out its session, and bring it down again.

    Args:
        matrix: the device matrix.
        devices: those of its devices that take part.
        reports: compiled models are kept in `reports/cache`, and a new session in `reports/experiments`, so that
            `reports/latest` goes on to name the newest test session.
        resume: folder of a session to go on with. Its records are used again, but those of runs the lab
            could not carry out, which are set aside as `record.failed.json`, and damaged ones.
        progress: told what is being done.

    Raises:
        UserError: a folder, a package or adb is missing, or `resume` is no experiment's folder, or one that another
            process is at.
        InfrastructureError: the lab does not come up.
    """
    if resume is None:
        name = new_session_id(datetime.now(UTC), secrets.token_bytes(2))
        store = SessionStore.create(reports / "experiments", name)
    else:
        store = _open_experiment(resume)
    with closing(SessionLock.take(store.root)), closing(Scratch()) as scratch:
        if resume is not None:
            set_failures_aside(store, progress)
        with LabServices(matrix, devices, scratch.path) as services:
            lab = Lab(services.address, holder=f"devicelab session {store.id}", waiting=progress)
            session = LabSession(
                matrix=matrix,
                devices=devices,
                store=store,
                lab=lab,
                cache=reports / "cache",
                progress=progress,
            )
            with closing(session):
                yield session


def _open_experiment(path: Path) -> SessionStore:
    """Open the folder of an experiment; one of tests is refused, because they were judged by what is in it."""
    store = SessionStore.open(path)
    if any((store.root / name).exists() for name in ("session.json", "verdicts", "starts")):
        why = "it is a session of tests, and its verdicts rest on the runs in it as they are"
    elif not (store.root / "runs").is_dir():
        why = "it has no runs/, so it is no session, or one in which nothing ran"
    else:
        return store
    raise UserError(
        f"--resume {path}: there is no experiment to go on with",
        why=why,
        fix="name a folder `REPORTS/experiments/<session>`, or leave out --resume",
    )
