"""A run that measures: time and energy in one execution of the runner, memory in another.

It is a run of its own. The run that gives outputs logs and profiles, which takes time and memory that are not the
model's; and to look at a process's memory stops it for a moment, so nothing is timed meanwhile.
"""

from __future__ import annotations

from dataclasses import replace

from pytest_devicelab.devices.energy import energy_between, read_energy
from pytest_devicelab.devices.process_memory import read_memory, sampling_script
from pytest_devicelab.errors import DeadlineExceeded
from pytest_devicelab.evidence.measurements import Figure, Measurements, absent
from pytest_devicelab.evidence.record import RunRecord
from pytest_devicelab.lab.runner import Deployed, Run
from pytest_devicelab.matrix.specs import MeasureSpec
from pytest_devicelab.runtimes.runtime import Job, Prepared
from pytest_devicelab.runtimes.timing import Measures, no_timing

_UNSEEN = absent("it was not measured")


class MeasuringRun(Run):
    """One attempt at measuring a model. It brings no outputs: those are the evaluation's."""

    _energy: Figure = _UNSEEN
    _memory: tuple[Figure, Figure] = (_UNSEEN, _UNSEEN)

    def _execute(self, prepared: Prepared, backend: str) -> tuple[int, str] | None:
        deployed = self._deploy(prepared, backend)
        simulated = self._device.identity().simulated
        before = read_energy(self._device, simulated=simulated)
        failed = self._watch(prepared, deployed, self._command(prepared, deployed.job))
        if failed is None:
            self._energy = energy_between(before, read_energy(self._device, simulated=simulated))
            self._memory = self._look_at_memory(prepared, deployed)
        return failed

    def _collected(self, record: RunRecord, prepared: Prepared) -> RunRecord:
        timing = no_timing(f"runtime {self._runtime.name} has no way to be timed")
        if isinstance(self._runtime, Measures):
            self._fetch(self._runtime.timing_files)
            timing = self._runtime.read_timing(prepared, self._folder, self._events, self._plan)
        self._device.shell(["rm", "-rf", self._work])
        rss, pss = self._memory
        measured = Measurements(
            simulated=record.device.simulated,
            latency=timing.latency,
            load_us=timing.load_us,
            peak_rss_kib=rss,
            peak_pss_kib=pss,
            energy_mj=self._energy,
        )
        return replace(record, status="ok", measured=measured)

    def _command(self, prepared: Prepared, job: Job) -> tuple[str, ...]:
        if isinstance(self._runtime, Measures):
            return self._runtime.timed_command(prepared, job, self._plan)
        return self._runtime.command(prepared, job)

    def _look_at_memory(self, prepared: Prepared, deployed: Deployed) -> tuple[Figure, Figure]:
        """Run it once more, looking at its memory all the while; its times must not take the place of the first's."""
        self._say("running once more, for its memory")
        text = sampling_script(
            self._command(prepared, replace(deployed.job, output_dir=f"{self._work}/again")),
            cwd=deployed.inputs,
            environment=prepared.kit.environment if prepared.kit else {},
        )
        try:
            done = self._device.script(text, timeout_s=self._request.timeout_s)
        except DeadlineExceeded:
            why = (
                f"the runner did not end within {self._request.timeout_s:g} s while its memory was looked at"
            )
            return absent(why), absent(why)
        self._keep("memory.txt", done.stdout)
        return read_memory(done.text)

    @property
    def _plan(self) -> MeasureSpec:
        assert self._request.measure is not None
        return self._request.measure
