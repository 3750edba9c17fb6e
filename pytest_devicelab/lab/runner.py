"""One attempt at a run: deploy, run, collect."""

from __future__ import annotations

import hashlib
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.devices.performance import fixed_performance
from pytest_devicelab.devices.slots import DEVICE_ROOT, deploy_archive, deploy_file, sha256_file
from pytest_devicelab.errors import CompileRefused, InfrastructureError, TransferError
from pytest_devicelab.evidence.atomic import host_failed
from pytest_devicelab.evidence.events import Event
from pytest_devicelab.evidence.record import LogCapture, RunRecord, Transfers
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.lab.capture import WatchedRun, run_watched
from pytest_devicelab.lab.gate import HealthGate
from pytest_devicelab.lab.heard import about_the_run, heard_lines, runner_pids
from pytest_devicelab.lab.kit_delivery import choose_kit, lay_out
from pytest_devicelab.lab.outputs import Outputs
from pytest_devicelab.lab.request import RunRequest, hoped_identity
from pytest_devicelab.lab.unsuccessful import unsuccessful
from pytest_devicelab.logs.last_words import last_words
from pytest_devicelab.logs.scan import scan_log
from pytest_devicelab.matrix.soc import Soc
from pytest_devicelab.runtimes.inputs import pack_inputs
from pytest_devicelab.runtimes.kit import Kit
from pytest_devicelab.runtimes.registry import find_runtime
from pytest_devicelab.runtimes.runtime import Job, Leftovers, Prepared, Runtime


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """What lies on the device for a run: the job, the inputs' folder and how many samples are in it."""

    job: Job
    inputs: str
    samples: int


class Run:
    """One attempt, step by step."""

    def __init__(
        self,
        device: AdbDevice,
        request: RunRequest,
        store: SessionStore,
        cache: Path,
        progress: Callable[[str], None],
    ) -> None:
        self._device = device
        self._request = request
        self._store = store
        self._cache = cache
        self._progress = progress
        self._folder = store.run_folder(request.id)
        self._work = f"{DEVICE_ROOT}/runs/{request.id}"
        self._runtime: Runtime = find_runtime(request.runtime)
        self._before = (device.pushed_bytes, device.pulled_bytes)
        self._outputs = Outputs(device, store, self._folder, self._work)
        self._events: list[Event] = []
        self._log_lines: dict[str, int] = {}
        self._unparsed: dict[str, int] = {}
        self._files: dict[str, str] = {}
        self._capture = LogCapture(level=request.logging.level, buffer_bytes=request.logging.buffer_bytes)
        self._held: Mapping[str, str] = {}
        self._gate = HealthGate(device, request.health, store, user=request.id, progress=progress)

    def carry_out(self) -> tuple[RunRecord, InfrastructureError | None]:
        """Return the record, and the failure of the lab if there was one."""
        record = self._blank()
        try:
            identity = self._device.identity()
            record = replace(record, device=identity)
            soc = self._device.chip(identity.properties)
            record = replace(record, backend=self._runtime.backend(self._device.spec, soc))
            self._say("compiling")
            prepared = self._prepare(soc, record.backend)
            self._gate.enter()
            backend = prepared.backend or record.backend
            record = replace(record, backend=backend, options=prepared.options, versions=prepared.versions)
            prepared = self._equip(prepared, soc)
            record = replace(record, versions={**record.versions, **_sdk_version(prepared.kit)})
            with self._held_clocks():
                outcome = self._execute(prepared, record.backend)
            record = (
                self._collected(record, prepared)
                if outcome is None
                else unsuccessful(record, *outcome, self._events, self._device.spec)
            )
            self._gate.leave()
        except CompileRefused as error:
            ops = tuple((op["op"], op["node"], op["reason"]) for op in error.evidence.get("ops", ()))
            record = replace(record, status="refused", error=str(error), refused_ops=ops)
        except (InfrastructureError, OSError) as problem:
            failure = problem if isinstance(problem, InfrastructureError) else host_failed(problem)
            with suppress(InfrastructureError):  # what happened first is what counts
                self._gate.leave()
            # What was measured before the lab failed, or on a device that throttled, counts for nothing.
            return self._finish(replace(record, status="failed", measured=None, error=str(failure))), failure
        return self._finish(record), None

    @contextmanager
    def _held_clocks(self) -> Iterator[None]:
        if not self._request.fixed_performance:
            yield
            return
        with fixed_performance(self._device) as held:
            self._held = {"fixed_performance": "on" if held else "not on this device"}
            yield

    def _say(self, step: str) -> None:
        self._progress(
            f"device={self._device.id} model={self._request.model.id} {self._request.purpose}: {step}"
        )

    def _blank(self) -> RunRecord:
        spec = self._device.spec
        return RunRecord(
            id=self._request.id,
            session=self._store.id,
            device=hoped_identity(spec),
            model=self._request.model,
            runtime=self._request.runtime,
            backend="",
            purpose=self._request.purpose,
            status="failed",
            samples=len(next(iter(self._request.inputs.values()))),
            options=self._request.options,
        )

    def _prepare(self, soc: Soc | None, backend: str) -> Prepared:
        prepared = self._runtime.prepare(
            self._request.path, soc, self._request.options, backend=backend, cache=self._cache
        )
        if prepared.log:
            self._keep("compile.log", prepared.log)
        return prepared

    def _equip(self, prepared: Prepared, soc: Soc | None) -> Prepared:
        kit = choose_kit(
            self._device,
            self._runtime,
            prepared,
            soc,
            folder=f"{self._work}/kit",
            sdk=self._request.qairt_sdk,
        )
        return replace(prepared, kit=kit)

    def _execute(self, prepared: Prepared, backend: str) -> tuple[int, str] | None:
        """Deploy and run; return None when the runner succeeded, else its exit status and what it printed."""
        deployed = self._deploy(prepared, backend)
        return self._watch(prepared, deployed, self._runtime.command(prepared, deployed.job))

    def _deploy(self, prepared: Prepared, backend: str) -> Deployed:
        device, request = self._device, self._request
        self._say("deploying")
        model = deploy_file(device, prepared.file, prepared.file.name)
        archive = pack_inputs(request.inputs, self._cache)
        inputs = deploy_archive(device, archive.path)
        work = shlex.quote(self._work)
        cleared = device.script(f"rm -rf {work} && mkdir -p {work}")
        if cleared.exit_code != 0:
            # What an earlier run left there could be taken for this one's.
            raise InfrastructureError(
                f"device {device.id}: {self._work} cannot be made anew",
                why=cleared.stderr.decode("utf-8", "replace").strip()[:500],
                fix="remove it on the device; root may have made it",
            )
        if prepared.kit is not None:
            lay_out(device, prepared.kit, f"{self._work}/kit")
        job = Job(
            model=model,
            input_list="input_list.txt",
            output_dir=f"{self._work}/out",
            log_level=request.logging.level,
            backend=backend,
            kit_folder=f"{self._work}/kit",
            program=device.spec.runners.get(request.runtime, ""),
        )
        return Deployed(job=job, inputs=inputs, samples=archive.samples)

    def _watch(
        self, prepared: Prepared, deployed: Deployed, command: tuple[str, ...]
    ) -> tuple[int, str] | None:
        """Run a command line with logs; None when it succeeded, else its exit status and what it printed."""
        device, request = self._device, self._request
        token = hashlib.sha256(f"{request.id}{time.time_ns()}".encode()).hexdigest()[:16]
        done = run_watched(
            device,
            command,
            request.logging,
            cwd=deployed.inputs,
            token=token,
            spool=self._folder / "logcat.part",
            timeout_s=request.timeout_s,
            started=lambda: self._say(f"running {deployed.samples} samples"),
            broken_off=lambda data: self._read_log("logcat", data),
            environment=prepared.kit.environment if prepared.kit else {},
        )
        self._hear(done)
        if done.exit_code == 0:
            self._require_same(deployed.job.model, prepared.file)
            return None
        return done.exit_code, last_words(done.stderr, done.stdout)

    def _require_same(self, model: str, sent: Path) -> None:
        """Require that the model on the device is still the one that was sent: it was read after it was checked."""
        expected, found = sha256_file(sent), self._device.hash(model)
        if found != expected:
            raise TransferError(
                f"device {self._device.id}: the model changed on the device while it ran",
                why=f"sent with sha256 {expected[:16]}, afterwards {str(found)[:16]}",
                fix=f"find out what else writes to {DEVICE_ROOT}; the outputs of this run count for nothing",
            )

    def _hear(self, done: WatchedRun) -> None:
        """Read the logs of a run; of those of the device, what is the run's own."""
        window, profile = done.window, self._request.logging
        self._read_log("stdout", done.stdout)
        self._read_log("stderr", done.stderr)
        self._read_log("logcat", window.data)
        if window.lost:
            self._events.append(_window_lost(window.lost))
        pids = runner_pids(self._events, window.data, done.pid)
        self._events = about_the_run(self._events, pids)
        self._capture = LogCapture(
            level=profile.level,
            heard=heard_lines(window.data, done.stdout, pids),
            pid=done.pid,
            streamed=window.streamed,
            lost=window.lost,
            buffer_bytes=profile.buffer_bytes,
            buffers=window.buffers,
        )

    def _read_log(self, source: str, data: bytes) -> None:
        if data:
            self._keep(f"{source}.txt", data)
        scan = scan_log(data, source=source)
        self._log_lines[source] = scan.lines
        self._unparsed[source] = scan.unparsed
        self._events.extend(scan.events)

    def _collected(self, record: RunRecord, prepared: Prepared) -> RunRecord:
        self._say("collecting")
        self._fetch((*self._runtime.evidence_files, *(prepared.kit.evidence_files if prepared.kit else ())))
        outputs = self._runtime.read_outputs(prepared, self._folder)
        tensors = tuple(self._outputs.collect(output, record.samples) for output in outputs)
        left: Leftovers = self._runtime.read_leftovers(prepared, self._folder)
        self._device.shell(["rm", "-rf", self._work])
        return replace(
            record,
            status="ok",
            outputs=tensors,
            ops=left.ops,
            placement=left.placement,
            versions={**record.versions, **left.versions},
        )

    def _fetch(self, names: Iterable[str]) -> None:
        """Pull those of the files that the runner left in its output folder."""
        out = f"{self._work}/out"
        present = set(self._device.script(f"cd {shlex.quote(out)} && ls").text.split())
        for name in dict.fromkeys(names):
            # What an attempt before this one brought must not speak for it.
            (self._folder / name).unlink(missing_ok=True)
            if name in present:
                self._device.pull(f"{out}/{name}", self._folder / name)
                self._files[name] = name

    def _keep(self, name: str, data: bytes) -> None:
        self._device.require_held()
        (self._folder / name).write_bytes(data)
        self._files[name] = name

    def _finish(self, record: RunRecord) -> RunRecord:
        pushed, pulled = self._before
        return replace(
            record,
            events=tuple(self._events),
            log_sources=self._log_lines,
            unparsed_lines=self._unparsed,
            capture=self._capture,
            files=self._files,
            telemetry={**self._gate.telemetry, **self._held},
            transfers=Transfers(
                pushed_bytes=self._device.pushed_bytes - pushed,
                pulled_bytes=self._device.pulled_bytes - pulled,
                spared_bytes=self._outputs.spared_bytes,
            ),
        )


def _sdk_version(kit: Kit | None) -> Mapping[str, str]:
    return {"qairt_sdk": kit.version} if kit is not None and kit.version else {}


def _window_lost(why: str) -> Event:
    return Event(
        kind="lost_records",
        dialect="logcat",
        source="logcat",
        line=0,
        offset=0,
        raw="",
        fields={"reason": why},
    )
