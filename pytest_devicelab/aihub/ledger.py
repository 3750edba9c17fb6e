"""Which jobs this session has asked for, on disk before and after it asks: an interrupted session pays for none twice."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from pytest_devicelab.aihub.edge import HubEdge
from pytest_devicelab.aihub.messages import HubDevice, JobKind, Submission
from pytest_devicelab.aihub.outcome import Deadline, HubOffline, HubRateLimited, HubRefused
from pytest_devicelab.errors import DeadlineExceeded
from pytest_devicelab.evidence import codec
from pytest_devicelab.evidence.atomic import whole_file

T = TypeVar("T")

JOB_SCHEMA = "devicelab.aihub.job/1"
DEVICE_SCHEMA = "devicelab.aihub.device/1"
UPLOAD_SCHEMA = "devicelab.aihub.upload/1"

# After a lost answer the job may take a moment to show up in the list: how often we look, and between which pauses.
_LOOKS_S = (0.0, 0.5, 1.5, 3.0)
# Clocks differ: jobs this much older than our first request are looked at too.
_SLACK_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEntry:
    """One job of the session, `jobs/<key>.json`.

    Attributes:
        name: its name in AI Hub. `job_id`: empty from before we ask until AI Hub has answered.
        asked_s: POSIX time of the first request.
        attempt: counts up when a job failed for the lab's sake; `failed`: ids of the jobs before this one.
    """

    kind: JobKind
    name: str
    job_id: str
    asked_s: float
    device: str = ""
    os: str = ""
    model_id: str = ""
    model_sha256: str = ""
    dataset_id: str = ""
    attempt: int = 1
    failed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A file that AI Hub holds: `sha256` of what was uploaded, and the id it got."""

    sha256: str
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to pause: between two looks at a job, doubling up to `most_s`."""

    first_s: float = 0.5
    most_s: float = 15.0
    sleep: Callable[[float], object] = field(default=time.sleep)


class JobLedger:
    """The jobs of a session, shared by its processes.

    Args:
        root: the session's folder.
        uploads: folder that outlives sessions, for what was uploaded to this address.
    """

    def __init__(self, root: Path, session_id: str, uploads: Path) -> None:
        self._jobs = root / "jobs"
        self._session_id = session_id
        self._uploads = uploads

    def key(self, *parts: str) -> str:
        """Return the key of a job: equal for equal parts in one session."""
        return hashlib.sha256("\0".join((self._session_id, *parts)).encode()).hexdigest()[:24]

    def read(self, key: str) -> JobEntry | None:
        """Return what is known of a job; None when it was never asked for."""
        path = self._jobs / f"{key}.json"
        if not path.is_file():
            return None
        return codec.decode(
            JobEntry, codec.parse(path.read_bytes(), file=str(path), schema=JOB_SCHEMA), file=str(path)
        )

    def write(self, key: str, entry: JobEntry) -> None:
        """Keep what is known of a job."""
        with whole_file(self._jobs / f"{key}.json") as file:
            file.write(codec.dump({"schema": JOB_SCHEMA, **codec.encode(entry)}))

    def read_device(self, spec_id: str) -> HubDevice | None:
        """Return the device this session chose for an entry of the matrix, once it has."""
        path = self._jobs / f"device-{spec_id}.json"
        if not path.is_file():
            return None
        data = codec.parse(path.read_bytes(), file=str(path), schema=DEVICE_SCHEMA)
        return codec.decode(HubDevice, data, file=str(path))

    def write_device(self, spec_id: str, device: HubDevice) -> None:
        """Keep the device this session chose for an entry of the matrix."""
        with whole_file(self._jobs / f"device-{spec_id}.json") as file:
            file.write(codec.dump({"schema": DEVICE_SCHEMA, **codec.encode(device)}))

    def give_up(self, key: str) -> None:
        """Let a job that failed for the lab's sake be asked for anew, by whoever asks for the run again."""
        entry = self.read(key)
        if entry is not None and entry.job_id:
            failed = (*entry.failed, entry.job_id)
            self.write(key, replace(entry, job_id="", asked_s=0.0, attempt=entry.attempt + 1, failed=failed))

    def ensure(
        self, key: str, entry: JobEntry, job: Submission, edge: HubEdge, deadline: Deadline, wait: Patience
    ) -> str:
        """Return the id of a job, asking for it only when this session surely has not.

        `job.name` is completed with `key`, so that no other job has it; `entry` is what to write down.

        Raises:
            InfrastructureError: AI Hub is offline or refuses until the deadline.
        """
        self._jobs.mkdir(parents=True, exist_ok=True)
        with _alone(self._jobs / f".{key}.lock", deadline):
            known = self.read(key)
            if known is not None and known.job_id:
                return known.job_id
            # A request that was written down may have arrived; one that was not is sure to be new.
            sent = known is not None and known.asked_s > 0
            entry = known or entry
            if not sent:
                entry = replace(entry, asked_s=time.time())
            named = replace(job, name=f"{job.name[:80]} dl-{key}-{entry.attempt}")
            entry = replace(entry, name=named.name, model_id=job.model_id, dataset_id=job.dataset_id)
            self.write(key, entry)
            job_id = _submit(named, entry.asked_s, edge, deadline, wait, sent=sent)
            self.write(key, replace(entry, job_id=job_id))
            return job_id

    def upload(
        self,
        kind: str,
        sha256: str,
        send: Callable[[], str],
        exists: Callable[[str], bool],
        deadline: Deadline,
    ) -> str:
        """Return the id of a file in AI Hub, uploading it unless it is there already."""
        self._uploads.mkdir(parents=True, exist_ok=True)
        path = self._uploads / f"{kind}-{sha256}.json"
        with _alone(path.with_suffix(".lock"), deadline):
            if path.is_file():
                known = codec.decode(
                    Upload,
                    codec.parse(path.read_bytes(), file=str(path), schema=UPLOAD_SCHEMA),
                    file=str(path),
                )
                if exists(known.id):
                    return known.id
            made = send()
            if not made:
                raise HubRefused(f"AI Hub: the upload of a {kind} got no id")
            with whole_file(path) as file:
                upload = codec.encode(Upload(sha256=sha256, id=made))
                file.write(codec.dump({"schema": UPLOAD_SCHEMA, **upload}))
            return made


@contextmanager
def _alone(lock: Path, deadline: Deadline) -> Iterator[None]:
    """Keep other processes out of a block; `DeadlineExceeded` when one of them is in it for too long."""
    held = FileLock(lock)
    try:
        held.acquire(timeout=deadline.left_s)
    except Timeout:
        raise DeadlineExceeded(
            f"another process is at the same upload or job of AI Hub for over {deadline.whole_s:g} s",
            fix=f"look for a hung process; the lock is {lock}",
        ) from None
    try:
        yield
    finally:
        held.release()


def _submit(
    job: Submission, asked_s: float, edge: HubEdge, deadline: Deadline, wait: Patience, *, sent: bool
) -> str:
    """Ask for a job until there is one, looking for it first wherever it may already have been made."""
    pause_s = wait.first_s
    while True:
        if sent and (found := _look(job, asked_s, edge, deadline, wait)):
            return found
        try:
            return edge.submit(job, deadline)
        except HubOffline:
            sent = True
        except HubRateLimited:
            pass  # AI Hub says that it did nothing
        deadline.require(f"submitting {job.name}")
        wait.sleep(min(pause_s, deadline.left_s))
        pause_s = min(2 * pause_s, wait.most_s)


def _look(job: Submission, asked_s: float, edge: HubEdge, deadline: Deadline, wait: Patience) -> str:
    """Return the id of the job that an unanswered request made, or nothing once it surely made none."""
    for pause_s in _LOOKS_S:
        wait.sleep(min(pause_s, deadline.left_s))
        found = patiently(lambda: edge.find_jobs(job.name, asked_s - _SLACK_S, deadline), deadline, wait)
        if found:
            return found[0]
    return ""


def patiently(
    ask: Callable[[], T], deadline: Deadline, wait: Patience, *, outage: Deadline | None = None
) -> T:
    """Ask something harmless until it is answered or the deadline is over, whose last trouble is then raised.

    Args:
        ask: raises `HubOffline` or `HubRateLimited` where there is no answer yet.
        deadline: the end of our patience.
        wait: how long to pause.
        outage: the end of it where nobody answers at all; None for the same.
    """
    pause_s = wait.first_s
    while True:
        try:
            return ask()
        except (HubOffline, HubRateLimited) as trouble:
            until = outage if outage is not None and isinstance(trouble, HubOffline) else deadline
            if until.left_s <= pause_s:
                raise
        wait.sleep(pause_s)
        pause_s = min(2 * pause_s, wait.most_s)
