"""Carries runs out in AI Hub: upload once, compile for the chip, infer, collect; the record is the same as a phone's."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version

from filelock import FileLock, Timeout

from pytest_devicelab.aihub.account import account_file, read_account
from pytest_devicelab.aihub.edge import HubEdge, require_client
from pytest_devicelab.aihub.ledger import JobLedger, Patience, patiently
from pytest_devicelab.aihub.messages import HubDevice
from pytest_devicelab.aihub.outcome import Deadline, HubRefused
from pytest_devicelab.aihub.run import HubRun
from pytest_devicelab.aihub.selection import choose, hub_attributes, identity
from pytest_devicelab.errors import InfrastructureError, SessionEnded, UserError
from pytest_devicelab.evidence.record import Attempt, RunRecord
from pytest_devicelab.lab.executor import ExecutorContext
from pytest_devicelab.lab.request import RunRequest
from pytest_devicelab.lab.retry import failure_class
from pytest_devicelab.matrix.specs import DeviceSpec

_OUTAGE_S = 3.0
"""How long to wait before nobody there is taken for an answer: one dropped connection is not worth a run."""


class AihubExecutor:
    """Runs on devices of kind aihub. Each call waits for its own jobs, so calls in several threads wait side by side.

    Args:
        context: the session, and the cache that remembers uploads.

    Raises:
        UserError: qai_hub is not installed, or has no settings.
    """

    def __init__(self, context: ExecutorContext) -> None:
        require_client()
        self._account = read_account(account_file())
        self._store = context.store
        self._cache = context.cache
        self._progress = context.progress
        self._edge = HubEdge(self._account)
        host = self._account.api_url.partition("://")[2].strip("/")
        uploads = context.cache / "aihub" / "".join(char if char.isalnum() else "_" for char in host)
        self._ledger = JobLedger(context.store.root, context.store.id, uploads)
        self._ended = threading.Event()

    @staticmethod
    def require() -> None:
        """Raise UserError when no run could be carried out here, before anything is started."""
        require_client()
        read_account(account_file())

    def close(self) -> None:
        """Wait for no more jobs; they go on in the cloud, and the ledger knows them."""
        self._ended.set()

    def carry_out(self, spec: DeviceSpec, request: RunRequest) -> RunRecord:
        """Return the record of a run, picking up the jobs this session has already asked for."""
        deadline = Deadline.after(spec.timeout_s)
        locks = self._store.root / "locks"
        locks.mkdir(exist_ok=True)
        try:
            with FileLock(locks / f"{request.id}.lock", timeout=spec.timeout_s):
                known = self._store.read_record(request.id)
                return known if known is not None else self._make(spec, request, deadline)
        except Timeout:
            raise UserError(
                f"device {spec.id}: another process of this session is at {request.id} for over {spec.timeout_s:g} s",
                fix="end it, or raise timeout_s",
            ) from None

    def _make(self, spec: DeviceSpec, request: RunRequest, deadline: Deadline) -> RunRecord:
        started, clock = datetime.now(UTC).isoformat(timespec="milliseconds"), time.monotonic()
        blank = RunRecord(
            id=request.id,
            session=self._store.id,
            device=identity(spec, None, None, self._account),
            model=request.model,
            runtime=request.runtime,
            backend="htp",
            purpose=request.purpose,
            status="failed",
            samples=len(next(iter(request.inputs.values()))),
            versions={"qai_hub": version("qai_hub")},
        )
        run = HubRun(
            spec=spec,
            request=request,
            record=blank,
            edge=self._edge,
            ledger=self._ledger,
            folder=self._store.run_folder(request.id),
            store=self._store,
            cache=self._cache,
            deadline=deadline,
            wait=Patience(sleep=self._sleep),
            progress=self._progress,
        )
        error = failed = ""
        try:
            _require_qnn(spec, request)
            outage = Deadline.after(min(_OUTAGE_S, deadline.left_s))
            patiently(lambda: self._edge.check(deadline), deadline, run.wait, outage=outage)
            run.carry_out(self._device(spec, deadline))
        except SessionEnded as ended:
            # No record: whoever resumes the session picks the jobs up.
            return replace(run.record, status="failed", error=str(ended))
        except InfrastructureError as failure:
            error, failed = self._account.hide(str(failure)), failure_class(failure)
            run.record = replace(run.record, status="failed", error=error)
        attempt = Attempt(
            number=1,
            started=started,
            duration_s=round(time.monotonic() - clock, 3),
            error=error,
            failure=failed,
        )
        record = replace(run.record, attempts=(attempt,))
        self._store.write_record(record)
        return record

    def _device(self, spec: DeviceSpec, deadline: Deadline) -> HubDevice:
        known = self._ledger.read_device(spec.id)
        if known is None:
            listed = self._edge.devices(spec.name or "", spec.hub_os or "", hub_attributes(spec), deadline)
            known = choose(spec, listed)
            # A session stays with what it chose, also when AI Hub gets a newer one meanwhile.
            self._ledger.write_device(spec.id, known)
        return known

    def _sleep(self, seconds: float) -> None:
        if self._ended.wait(seconds):
            raise SessionEnded(
                "the session ended while AI Hub was at it",
                why="nobody waits for its jobs any more",
                fix="resume the session: they are picked up, not submitted anew",
            )


def _require_qnn(spec: DeviceSpec, request: RunRequest) -> None:
    if request.runtime != "qnn":
        raise HubRefused(
            f"device {spec.id}: runtime {request.runtime} is not run in AI Hub",
            why="models are compiled to QNN context binaries there, and run whole on the NPU",
            fix=f"give device {spec.id} `runtime: qnn`",
        )
    if spec.compiler == "hub" and request.options:
        raise HubRefused(
            f"device {spec.id}: the options of model {request.model.id} are not AI Hub's",
            why=f"{', '.join(sorted(request.options))}: options of ONNX Runtime's QNN provider",
            fix=f"give device {spec.id} `compiler: ours`, or leave the options out",
        )
