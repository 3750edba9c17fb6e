"""Is it the fusion? One model on one device, run again with one switch thrown at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pytest_devicelab.audit.graph import output_lsb
from pytest_devicelab.audit.taps import Tap, find_taps, tap_model
from pytest_devicelab.audit.walk import Walk
from pytest_devicelab.errors import Inconclusive
from pytest_devicelab.evidence.record import Purpose, RunRecord
from pytest_devicelab.lab.session import LabSession
from pytest_devicelab.matrix.soc import soc_from_properties
from pytest_devicelab.matrix.specs import DeviceSpec, ModelSpec
from pytest_devicelab.tensors.diff import diff_bitwise
from pytest_devicelab.tensors.metrics import is_classification, top1_flips

Kind = Literal["control", "taps", "optimization", "edges", "memory", "precision", "runtime"]

_FINALIZATION = "htp_graph_finalization_optimization_mode"
_EDGES = "offload_graph_io_quantization"
# Each costs some runs to tell from its neighbours; whoever reads the answer needs no more.
_CULPRITS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputChange:
    """How far an output is from the base run's: elements, bits and the units engineers ask for."""

    output: str
    elements: int
    elements_different: int
    bits_different: int
    max_abs: float
    max_lsb: float | None
    sqnr_db: float | None
    top1_flips: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchResult:
    """What one switch did.

    Attributes:
        switch: what was changed against the base, in words of the option.
        changes: one entry for each output, also where it is the same; empty when the switch could not be tried.
        moved: nodes the runtime itself says are on another unit than in the base run, `op node: unit`. Then it is
            the unit that changed the bits, before any fusion did.
        problem: why it could not be tried; empty when it was.
    """

    switch: str
    kind: Kind
    changes: tuple[OutputChange, ...] = ()
    moved: tuple[str, ...] = ()
    problem: str = ""

    @property
    def changed(self) -> bool:
        """Whether any bit of any output is another one."""
        return any(change.elements_different for change in self.changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """What changes the bits of a model on a device.

    Attributes:
        results: one a switch; the first is the control, the base run again. Tapped tensors that change bits, or
            cannot be tapped, have an entry of their own, up to a few; those that do neither share one.
        answer: one sentence to the question whether it is the fusion.
    """

    model: str
    device: str
    samples: int
    results: tuple[SwitchResult, ...]
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Switch:
    name: str
    kind: Kind
    model: ModelSpec
    path: Path


def measure_sensitivity(
    session: LabSession, model: ModelSpec, spec: DeviceSpec, *, samples: int
) -> Sensitivity:
    """Run a model on a device with one switch thrown at a time, and hold each run against the base bit by bit.

    The switches: taps on every activation and behind nodes that only move values, each finalization level, spill
    and fill buffers, graph edges on the CPU and on the NPU, fp16 from the float model where the chip has it, and the
    other runtime.

    Raises:
        UserError: the model or its inputs cannot be used.
        Inconclusive: the base run did not succeed, so that there is nothing to hold the others against.
    """
    bench = _Bench(session, model, spec, samples)
    results = [bench.control(), *bench.tap(), *(bench.throw(switch) for switch in bench.switches())]
    return Sensitivity(
        model=model.id,
        device=spec.id,
        samples=bench.walk.samples,
        results=tuple(results),
        answer=_answer(spec.id, results),
    )


class _Bench:
    """One model on one device, with the base run every other is held against."""

    def __init__(self, session: LabSession, model: ModelSpec, spec: DeviceSpec, samples: int) -> None:
        self.walk = Walk(session, model, samples)
        self._session = session
        self._model = model
        # A device's own choice of runtime would overrule the switch.
        self._runtime = spec.runtime or model.runtime
        self._spec = replace(spec, runtime=None)
        self._base = self._run(replace(model, runtime=self._runtime), model.path, "taps")
        if self._base.status != "ok":
            raise Inconclusive(
                f"{model.id} does not run on {spec.id}, so that there is nothing to hold a switch against",
                why=self._base.error,
            )
        self._lsb = output_lsb(self.walk.content)
        offloaded_io = model.options.get(_EDGES, "0") != "0"
        everywhere = find_taps(self.walk.content, offloaded_io=offloaded_io, movers=True)
        inner = {tap.tensor for tap in self.walk.taps}
        self._named = 0
        self._moved = tuple(tap for tap in everywhere if tap.tensor not in inner)

    def control(self) -> SwitchResult:
        """Run the base again, cold: if that changes bits, no switch can be blamed for any."""
        again = self._run(replace(self._model, runtime=self._runtime), self._model.path, "repeat")
        return self._result("nothing: run again", "control", again)

    def switches(self) -> Sequence[_Switch]:
        """Return what can be changed against the base, one thing at a time."""
        base = replace(self._model, runtime=self._runtime)
        found = []
        options: Sequence[tuple[str, str, Kind]] = (
            *((_FINALIZATION, level, "optimization") for level in "0123"),
            ("enable_htp_spill_fill_buffer", "1", "memory"),
            (_EDGES, "0", "edges"),
            (_EDGES, "1", "edges"),
        )
        for key, value, kind in options:
            if self._base.options.get(key) == value:
                continue
            changed = replace(base, options={**base.options, key: value})
            name = f"{key}={value}"
            if key == _EDGES and value == "1" and self._runtime == "qnn":
                # qnn-net-run takes whole graphs only; with edges on the CPU it takes ONNX Runtime to run them.
                changed, name = replace(changed, runtime="ort"), f"{name}, under runtime ort"
            found.append(_Switch(name=name, kind=kind, model=changed, path=base.path))
        if self._runtime == "qnn":
            found.append(
                _Switch(
                    name="runtime ort", kind="runtime", model=replace(base, runtime="ort"), path=base.path
                )
            )
        if base.reference is not None:
            half = replace(base, options={**base.options, "enable_htp_fp16_precision": "1"})
            found.append(
                _Switch(name="float model in fp16", kind="precision", model=half, path=base.reference)
            )
        return found

    def throw(self, switch: _Switch) -> SwitchResult:
        """Run with a switch thrown."""
        soc = self._spec.soc or soc_from_properties(self._base.device.properties)
        if switch.kind == "precision" and soc is not None and soc.htp_fp16 is False:
            problem = f"the NPU of {soc.name} has no fp16"
            return SwitchResult(switch=switch.name, kind=switch.kind, problem=problem)
        return self._result(switch.name, switch.kind, self._run(switch.model, switch.path, "taps"))

    def tap(self) -> list[SwitchResult]:
        """Tap the activations together, then the tensors behind nodes that only move values."""
        found: list[SwitchResult] = []
        for taps in (self.walk.taps, self._moved):
            tried = self._divide(taps) if taps else []
            found += [result for _, result in tried if result.changed or result.problem]
            same = [(count, result) for count, result in tried if not (result.changed or result.problem)]
            if same:
                where = (
                    "activations" if taps is self.walk.taps else "tensors behind nodes that only move values"
                )
                name = f"taps on {sum(count for count, _ in same)} {where}"
                found.append(replace(same[0][1], switch=name))
        return found

    def _divide(self, taps: Sequence[Tap]) -> list[tuple[int, SwitchResult]]:
        """Tap some tensors; where that changes bits or is refused, find out by halves which of them it is.

        It stops when it has named a few: the others stay together.
        """
        name = f"taps on {len(taps)} tensors together"
        if len(taps) == 1:
            name = f"a tap on {taps[0].tensor} ({taps[0].op} {taps[0].node})"
        record = self._run(replace(self._model, runtime=self._runtime), self._tapped(taps), "taps")
        whole = self._result(name, "taps", record)
        if len(taps) == 1 and whole.changed:
            self._named += 1
        if len(taps) == 1 or not (whole.changed or whole.problem) or self._named >= _CULPRITS:
            return [(len(taps), whole)]
        middle = len(taps) // 2
        halves = [*self._divide(taps[:middle]), *self._divide(taps[middle:])]
        together = whole.changed and not any(result.changed for _, result in halves)
        return [(len(taps), whole)] if together else halves

    def _tapped(self, taps: Sequence[Tap]) -> Path:
        content = tap_model(self.walk.content, taps).model
        name = f"{self._model.id}.tapped.{hashlib.sha256(content).hexdigest()[:16]}.onnx"
        return self._session.keep_model(name, content)

    def _run(self, model: ModelSpec, path: Path, purpose: Purpose) -> RunRecord:
        return self._session.run(self._spec, model, self.walk.inputs, purpose, path=path)

    def _result(self, switch: str, kind: Kind, record: RunRecord) -> SwitchResult:
        """Hold a run against the base."""
        if record.status != "ok":
            return SwitchResult(switch=switch, kind=kind, problem=record.error)
        names = {tensor.name for tensor in record.outputs}
        if missing := [tensor.name for tensor in self._base.outputs if tensor.name not in names]:
            return SwitchResult(switch=switch, kind=kind, problem=f"it gives no output {missing[0]}")
        changes = tuple(self._change(tensor.name, record) for tensor in self._base.outputs)
        return SwitchResult(switch=switch, kind=kind, changes=changes, moved=self._moved_nodes(record))

    def _moved_nodes(self, record: RunRecord) -> tuple[str, ...]:
        before = {placed.node: placed.unit for placed in self._base.placement}
        return tuple(
            f"{placed.op} {placed.node}: {placed.unit}"
            for placed in record.placement
            if placed.node and before.get(placed.node, placed.unit) != placed.unit
        )

    def _change(self, name: str, record: RunRecord) -> OutputChange:
        expected, found = (self.walk.read(run.output(name)) for run in (self._base, record))
        diff = diff_bitwise(expected, found, lsb=self._lsb.get(name))
        return OutputChange(
            output=name,
            elements=diff.elements,
            elements_different=diff.elements_different,
            bits_different=diff.bits_different,
            max_abs=diff.max_abs,
            max_lsb=diff.max_lsb,
            sqnr_db=diff.sqnr_db,
            top1_flips=top1_flips(expected, found) if is_classification(expected) else None,
        )


def _answer(device: str, results: Sequence[SwitchResult]) -> str:
    control, *switches = results
    if control.problem or control.changed:
        return f"It cannot be said: {device} does not repeat its own bits from run to run."
    taps = [result for result in switches if result.kind == "taps"]
    guilty = [result.switch for result in taps if result.changed and not result.moved]
    movers = [result for result in taps if result.changed and result.moved]
    levels = [result.switch for result in switches if result.kind == "optimization" and result.changed]
    if guilty:
        more = ", and it is not the only one" if len(guilty) > 1 else ""
        return f"It is the fusion: {guilty[0]} changes the output's bits on {device}{more}."
    if levels:
        return f"It is the graph's optimization: {', '.join(levels)} changes bits on {device}; no tap does."
    if movers:
        return (
            f"It is the placement, not the fusion: {movers[0].switch} puts {len(movers[0].moved)} nodes of {device} on "
            f"another unit ({movers[0].moved[0]}, ...), and that changes the output's bits."
        )
    untried = [result for result in switches if result.kind in ("taps", "optimization") and result.problem]
    if all(result.problem for result in taps):
        return f"It cannot be said: no tapped model runs on {device}."
    but = f" (not tried, because {device} refuses them: {len(untried)} more)" if untried else ""
    return f"It is not the fusion: with its activations tapped, and at each level, {device} gives the same bits{but}."
