"""Go on with a session that was interrupted or whose lab failed: what is sound is kept, the rest is set aside."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from difflib import unified_diff
from pathlib import Path

from pytest_devicelab.errors import InfrastructureError, UserError
from pytest_devicelab.evidence import codec
from pytest_devicelab.evidence.starts import read_starts
from pytest_devicelab.evidence.store import VERDICT_SCHEMA, SessionStore
from pytest_devicelab.lab.outputs import PULL_PREFIX

_RESULTS = ("session.json", "report.html")


def find_session(wanted: str, reports: Path, here: Path) -> Path:
    """Return the folder of the session that `--devicelab-resume` names.

    Args:
        wanted: `latest`, a session id, or a folder.
        reports: where sessions go.
        here: the folder pytest was started in.

    Raises:
        UserError: there is none, or it is not one that pytest can go on with.
    """
    named = reports / wanted if "/" not in wanted else here / wanted
    folder = (named if named.is_dir() else here / wanted).resolve()
    if not folder.is_dir():
        why = f"neither {named} nor {here / wanted} is a folder"
    elif not (folder / "matrix.yaml").is_file() or not (folder / "starts").is_dir():
        why = f"{folder} has no matrix.yaml and starts/: no session of tests, one of an older version, or none that began"
    else:
        try:
            read_starts(folder)
        except InfrastructureError as error:
            why = str(error)
        else:
            return folder
    raise UserError(
        f"--devicelab-resume={wanted}: there is no session to go on with",
        why=why,
        fix="name a folder `REPORTS/<session>` or `latest`, or leave the option out",
    )


def require_same_matrix(root: Path, matrix: Path) -> None:
    """Refuse to go on with another matrix: verdicts by other gates or on other devices would stand side by side.

    Models, inputs and labels may have changed: a run is named by their content, and is made anew.

    Raises:
        UserError: the matrix differs from the one the session began with; shows the first difference.
    """
    before = (root / "matrix.yaml").read_bytes().decode("utf-8", "replace").splitlines()
    now = matrix.read_bytes().decode("utf-8", "replace").splitlines()
    if before != now:
        changes = [
            line
            for line in unified_diff(before, now, lineterm="", n=0)
            if line[:3] not in ("---", "+++", "@@ ")
        ]
        raise UserError(
            f"session {root} began with another device matrix than {matrix}",
            why="\n".join(("first differences:", *changes[:4])),
            fix=f"resume with --devices={root / 'matrix.yaml'} put back in its place, or start a new session",
        )


def set_failures_aside(store: SessionStore, say: Callable[[str], None]) -> None:
    """Let runs be made again that failed for the lab's sake, or whose evidence cannot be read; keep what they left."""
    for folder in sorted((store.root / "runs").glob("*/record.json")):
        fault = _fault(store, folder.parent.name)
        if fault is not None:
            kind, why = fault
            _aside(folder, kind)
            say(f"run {folder.parent.name} is made again: {why}")


def clean_session(store: SessionStore, say: Callable[[str], None]) -> None:
    """Prepare the folder of a session nobody is at for going on: unsound evidence and old results are set aside."""
    for path in store.root.rglob(".*.partial"):
        path.unlink()
    for folder in (store.root / "runs").glob(f"*/{PULL_PREFIX}*"):
        shutil.rmtree(folder)
    set_failures_aside(store, say)
    _drop_references(store, say)
    # A verdict that cannot be read must not end the session; its test is judged anew.
    for path in sorted((store.root / "verdicts").glob("[!.]*.json")):
        if not _readable(path):
            path.rename(path.with_suffix(".damaged"))
            say(f"verdict {path.name} cannot be read, and is set aside")
    # They say how all devices compare, and are computed anew from the records.
    for name in ("comparisons", *_RESULTS):
        if (store.root / name).exists():
            _aside(store.root / name, "before")


def _fault(store: SessionStore, run_id: str) -> tuple[str, str] | None:
    """Return what is wrong with a run, in a word and in full; None for one whose record and outputs can be used."""
    try:
        record = store.read_record(run_id)
        assert record is not None
    except InfrastructureError as error:
        return "damaged", " ".join(str(error).split())
    if record.status == "failed":
        return "failed", "the lab failed it"
    for tensor in record.outputs:
        try:
            store.read_output(tensor)
        except InfrastructureError as error:
            # Else nobody would pull it again.
            store.arrays.path(tensor.sha256).unlink(missing_ok=True)
            return "damaged", " ".join(str(error).split())
    return None


def _drop_references(store: SessionStore, say: Callable[[str], None]) -> None:
    for path in sorted((store.root / "references").glob("[!.]*.json")):
        try:
            for tensor in store.read_reference(path.stem) or ():
                store.read_output(tensor)
        except InfrastructureError:
            path.unlink()
            say(f"reference {path.stem} cannot be read, and is computed again")


def _readable(path: Path) -> bool:
    try:
        codec.parse(path.read_bytes(), file=str(path), schema=VERDICT_SCHEMA)
    except (OSError, InfrastructureError):
        return False
    return True


def _aside(path: Path, kind: str) -> None:
    """Rename `record.json` to `record.failed.json`, or the next free `record.failed.2.json`."""
    number, target = 1, path.with_name(f"{path.stem}.{kind}{path.suffix}")
    while target.exists():
        number += 1
        target = path.with_name(f"{path.stem}.{kind}.{number}{path.suffix}")
    path.rename(target)
