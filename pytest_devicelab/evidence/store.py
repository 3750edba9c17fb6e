"""The folder of one session, `reports/<session>/`: where evidence lies before anybody judges it.

Every file appears whole or not at all, and two processes never write to one name: runs have ids of
their own, all else is named by a hash of its content. So xdist workers need no lock here.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pytest_devicelab.errors import DevicelabError, UserError
from pytest_devicelab.evidence import codec
from pytest_devicelab.evidence.arrays import Array, ArrayFolder
from pytest_devicelab.evidence.atomic import make_folder, sync, sync_files, unwritable, whole_file
from pytest_devicelab.evidence.blame import Blame
from pytest_devicelab.evidence.record import RunRecord, TensorRecord

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

log = logging.getLogger(__name__)

T = TypeVar("T")

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}", re.ASCII)

RUN_SCHEMA = "devicelab.run/1"
VERDICT_SCHEMA = "devicelab.verdict/2"
COMPARISON_SCHEMA = "devicelab.comparison/1"
REFERENCE_SCHEMA = "devicelab.reference/1"
BLAME_SCHEMA = "devicelab.blame/1"


def new_session_id(now: datetime, token: bytes) -> str:
    """Name a session by when it began, `20261120T224300Z-1a2b`, so that names sort by time.

    Args:
        now: an aware time; it is given in UTC.
        token: two random bytes, which keep two sessions of one second apart.
    """
    if now.tzinfo is None or len(token) != 2:
        raise ValueError("a session id needs an aware time and two random bytes")
    return f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{token.hex()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement(Generic[T]):
    """A verdict, and when it was given.

    Attributes:
        nodeid: the test that gave it.
        attempt: number of the start of pytest it was given in: 1, and one more each time the session was resumed.
        judged_at: UTC, ISO 8601 to the microsecond: the order of verdicts of one attempt.
    """

    verdict: T
    nodeid: str
    attempt: int
    judged_at: str


class SessionStore:
    """Reads and writes the evidence of one session.

    Args:
        root: the session's folder; its name is the session id.
        attempt: number of the start of pytest that writes here.

    Attributes:
        arrays: whole outputs.
    """

    def __init__(self, root: Path, *, attempt: int = 1) -> None:
        self.root = root
        self.id = root.name
        self.attempt = attempt
        self.arrays = ArrayFolder(root / "arrays")

    @classmethod
    def create(cls, reports: Path, session_id: str) -> SessionStore:
        """Make `reports/<session_id>/` and point `reports/latest` at it.

        Raises:
            UserError: the folder cannot be made, or there is one of that name.
        """
        root = reports / _safe(session_id, "session id")
        try:
            make_folder(reports)
            root.mkdir()
            sync(reports)
        except OSError as error:
            raise UserError(
                f"session folder {root} cannot be made",
                why=str(error),
                fix="name a folder for reports that can be written to",
            ) from error
        store = cls(root)
        store.point_latest()
        return store

    @classmethod
    def open(cls, path: Path, *, attempt: int = 1) -> SessionStore:
        """Open the folder of an existing session; `reports/latest` will do.

        Raises:
            UserError: there is no such folder.
        """
        root = path.resolve()
        if not root.is_dir():
            raise UserError(f"there is no session folder {path}", fix="name a folder `reports/<session>`")
        return cls(root, attempt=attempt)

    def point_latest(self) -> None:
        """Point `latest`, beside the session's folder, at it."""
        _point_latest(self.root.parent, self.id)

    def run_folder(self, run_id: str) -> Path:
        """Return `runs/<run_id>/`, made if need be: all evidence of one run goes there."""
        folder = self.root / "runs" / _safe(run_id, "run id")
        try:
            make_folder(folder)
        except OSError as error:
            raise unwritable(folder, error) from error
        return folder

    def write_record(self, record: RunRecord) -> Path:
        """Write `runs/<id>/record.json`, once all the other files of the run are on disk.

        A record of another session is refused.
        """
        if record.session != self.id:
            raise ValueError(f"run {record.id} belongs to session {record.session}, not to {self.id}")
        folder = self.run_folder(record.id)
        try:
            sync_files(folder)
        except OSError as error:
            raise unwritable(folder, error) from error
        return _write_json(folder / "record.json", RUN_SCHEMA, codec.encode(record))

    def read_record(self, run_id: str) -> RunRecord | None:
        """Return the record of a run, or None when it has not been written.

        Raises:
            InfrastructureError: the record is damaged, or is another run's.
        """
        path = self.root / "runs" / _safe(run_id, "run id") / "record.json"
        if not path.is_file():
            return None
        record = codec.decode(RunRecord, _read_json(path, RUN_SCHEMA), file=str(path))
        if record.id != run_id:
            raise codec.damaged(str(path), f"it is the record of run {record.id!r}", field="id")
        return record

    def records(self) -> tuple[RunRecord, ...]:
        """Return all records of the session, sorted by run id; runs without one yet are left out."""
        runs = sorted((self.root / "runs").glob("*/record.json"))
        found = (self.read_record(path.parent.name) for path in runs)
        return tuple(record for record in found if record is not None)

    def read_output(self, tensor: TensorRecord) -> Array:
        """Return an output as its record describes it; raises as `ArrayFolder.read_output` does."""
        return self.arrays.read_output(tensor)

    def write_reference(self, key: str, outputs: tuple[TensorRecord, ...]) -> Path:
        """Keep what the host's CPU computed, as `references/<key>.json`; `key` names model and inputs."""
        path = self.root / "references" / f"{_safe(key, 'reference key')}.json"
        return _write_json(path, REFERENCE_SCHEMA, {"outputs": [codec.encode(output) for output in outputs]})

    def read_reference(self, key: str) -> tuple[TensorRecord, ...] | None:
        """Return what the host's CPU computed, or None when it has not yet."""
        path = self.root / "references" / f"{_safe(key, 'reference key')}.json"
        if not path.is_file():
            return None
        outputs = _read_json(path, REFERENCE_SCHEMA).get("outputs", [])
        return tuple(codec.decode(TensorRecord, output, file=str(path)) for output in outputs)

    def write_verdict(self, verdict: DataclassInstance, nodeid: str) -> Path:
        """Keep a `Verdict` with the test that gave it, and when.

        The name is a hash of the content: a test that is run twice and changes its mind leaves both.
        """
        judged_at = datetime.now(UTC).isoformat(timespec="microseconds")
        said = {"nodeid": nodeid, "attempt": self.attempt, "judged_at": judged_at}
        return self._write_hashed("verdicts", VERDICT_SCHEMA, {**said, **codec.encode(verdict)})

    def verdicts(self, cls: type[T]) -> tuple[tuple[T, str], ...]:
        """Return the verdicts that stand, with their node ids, oldest first.

        Those of a test in its latest attempt stand, each once; what the test said before is in `judgements`.

        Args:
            cls: `Verdict`; given by the caller, because verdicts are built on this package.
        """
        found = self.judgements(cls)
        latest = {each.nodeid: each.attempt for each in sorted(found, key=lambda each: each.attempt)}
        standing: list[tuple[T, str]] = []
        for each in found:
            pair = (each.verdict, each.nodeid)
            if each.attempt == latest[each.nodeid] and pair not in standing:
                standing.append(pair)
        return tuple(standing)

    def judgements(self, cls: type[T]) -> tuple[Judgement[T], ...]:
        """Return every verdict ever given in this session, oldest first; `cls` is `Verdict`."""
        found = [
            Judgement(
                nodeid=_typed(str, data.pop("nodeid", None), file, "nodeid"),
                attempt=_typed(int, data.pop("attempt", None), file, "attempt"),
                judged_at=_typed(str, data.pop("judged_at", None), file, "judged_at"),
                verdict=codec.decode(cls, data, file=file),
            )
            for file, data in self._read_hashed("verdicts", VERDICT_SCHEMA)
        ]
        return tuple(sorted(found, key=lambda each: (each.attempt, each.judged_at)))

    def write_comparison(self, comparison: DataclassInstance) -> Path:
        """Keep a `Comparison`."""
        return self._write_hashed("comparisons", COMPARISON_SCHEMA, codec.encode(comparison))

    def comparisons(self, cls: type[T]) -> tuple[T, ...]:
        """Return all comparisons, in no meaningful order; `cls` is `Comparison`."""
        return tuple(
            codec.decode(cls, data, file=file)
            for file, data in self._read_hashed("comparisons", COMPARISON_SCHEMA)
        )

    def write_blame(self, blame: Blame) -> Path:
        """Keep who left a device in another state than it was found in."""
        return self._write_hashed("blames", BLAME_SCHEMA, codec.encode(blame))

    def blames(self) -> tuple[Blame, ...]:
        """Return all blame, in no meaningful order."""
        return tuple(
            codec.decode(Blame, data, file=file) for file, data in self._read_hashed("blames", BLAME_SCHEMA)
        )

    def write_file(self, name: str, content: bytes) -> Path:
        """Write a file of the session itself, such as `session.json`, whole or not at all."""
        path = self.root / _safe(name, "file name")
        with whole_file(path) as handle:
            handle.write(content)
        return path

    def _write_hashed(self, folder: str, schema: str, data: dict[str, Any]) -> Path:
        digest = hashlib.sha256(codec.dump(data)).hexdigest()
        return _write_json(self.root / folder / f"{digest[:32]}.json", schema, data)

    def _read_hashed(self, folder: str, schema: str) -> Iterator[tuple[str, dict[str, Any]]]:
        # Names that begin with a dot are files still being written; `glob` would list them.
        for path in sorted((self.root / folder).glob("[!.]*.json")):
            yield str(path), _read_json(path, schema)


def _write_json(path: Path, schema: str, data: dict[str, Any]) -> Path:
    with whole_file(path) as handle:
        handle.write(codec.dump({"schema": schema, **data}))
    return path


def _read_json(path: Path, schema: str) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise codec.damaged(str(path), f"it cannot be read: {error}") from None
    return codec.parse(raw, file=str(path), schema=schema)


def _typed(cls: type[T], value: object, file: str, field: str) -> T:
    if type(value) is not cls:
        raise codec.damaged(
            file, "text was expected" if cls is str else "a whole number was expected", field=field
        )
    return value


def _safe(name: str, what: str) -> str:
    """Return a name that is one path component and stays in its folder."""
    if not _SAFE_NAME.fullmatch(name):
        raise DevicelabError(
            f"{what} {name[:80]!r} cannot name a file of a session",
            fix="use up to 200 letters, digits, `_`, `.` and `-`, a letter or digit first",
        )
    return name


def _point_latest(reports: Path, session_id: str) -> None:
    """Point `reports/latest` at a session: a new link is renamed over the old one, so it never dangles."""
    latest = reports / "latest"
    link = reports / f".latest-{session_id}"
    try:
        if latest.exists() and not latest.is_symlink():
            raise FileExistsError(f"{latest} is not a symbolic link of ours")
        link.symlink_to(session_id, target_is_directory=True)
        link.replace(latest)
    except OSError as error:
        link.unlink(missing_ok=True)
        log.warning("%s does not point to session %s: %s", latest, session_id, error)
