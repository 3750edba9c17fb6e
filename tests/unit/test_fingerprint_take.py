from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from pytest_devicelab.audit.fingerprint.probe import Probe
from pytest_devicelab.audit.fingerprint.requantize import requantize_probes
from pytest_devicelab.audit.fingerprint.take import take_fingerprint
from pytest_devicelab.errors import InfrastructureError
from pytest_devicelab.evidence.record import (
    DeviceIdentity,
    ModelIdentity,
    NodePlacement,
    OpRow,
    RunRecord,
    Status,
)
from pytest_devicelab.lab.session import LabSession
from pytest_devicelab.matrix.soc import Soc, find_soc
from pytest_devicelab.matrix.specs import DeviceSpec, ModelSpec, Source
from pytest_devicelab.runtimes.inputs import Arrays
from pytest_devicelab.virtual.engine import Engine, EngineJob
from tests.unit.rounding_engine import ROUNDERS, engine

PROBES = tuple(requantize_probes())[:8]
VERSION_RUN = 1  # under ort, one probe is compiled for its context binary, which names the version of QAIRT
SPEC = DeviceSpec(
    id="bench",
    kind="virtual",
    source=Source(file="m.yaml", line=1, column=1),
    soc=find_soc("SM8650")[0],
)


class Bench:
    """Stands in for a LabSession: an engine in this process, and chips that refuse some nodes.

    Args:
        refuses: names of probes no model may hold.
        names_them: whether the refusal says which operator it was.
        placed: changes the placement the engine reports.
    """

    def __init__(
        self,
        folder: Path,
        how: Engine,
        *,
        refuses: tuple[str, ...] = (),
        names_them: bool = True,
        status: Status = "ok",
        placed: Mapping[str, NodePlacement | None] | None = None,
        ops: tuple[OpRow, ...] = (),
    ) -> None:
        self.folder = folder
        self.how = how
        self.refuses = refuses
        self.names_them = names_them
        self.status = status
        self.placed = placed or {}
        self.ops = ops
        self.runs = 0
        self._outputs: dict[str, dict[str, np.ndarray[Any, Any]]] = {}

    def chip(self, spec: DeviceSpec) -> Soc | None:
        return spec.soc

    def keep_model(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def run(self, spec: DeviceSpec, model: ModelSpec, inputs: Arrays, purpose: str) -> RunRecord:
        self.runs += 1
        record = RunRecord(
            id=f"run{self.runs}",
            session="s",
            device=DeviceIdentity(
                id=spec.id, kind="virtual", soc="SM8650", hexagon="V75", simulated=True, serial="secret"
            ),
            model=ModelIdentity(id=model.id, variant="", sha256=""),
            runtime=model.runtime,
            backend="htp",
            purpose="evaluate",
            status=self.status,
            error="the cable is out" if self.status == "failed" else "",
        )
        if self.status != "ok":
            return record
        content = model.path.read_bytes()
        guilty = [name for name in self.refuses if f"{name}_n0".encode() in content]
        if guilty:
            ops = tuple(("QuantizeLinear", f"{name}_n1", "no such kernel") for name in guilty)
            return replace(record, status="refused", refused_ops=ops if self.names_them else ())
        samples = tuple({name: array[i : i + 1] for name, array in inputs.items()} for i in range(3))
        result = self.how(
            EngineJob(model=model.path, format="onnx", inputs=samples, soc=SPEC.soc, work=self.folder)  # type: ignore[arg-type]
        )
        self._outputs[record.id] = {
            name: np.concatenate([sample[name] for sample in result.outputs]) for name in result.outputs[0]
        }
        placement = [self.placed.get(node.node, node) for node in result.placement]
        return replace(
            record,
            placement=tuple(node for node in placement if node is not None),
            versions=result.versions,
            ops=self.ops,
        )

    def outputs(self, record: RunRecord) -> Arrays:
        return self._outputs[record.id]


def take(bench: Bench, probes: tuple[Probe, ...] = PROBES, **more: Any) -> Mapping[str, Any]:
    settings = {"spec": SPEC, "runtime": "ort", **more}
    spec, runtime = settings["spec"], settings["runtime"]
    found = take_fingerprint(cast("LabSession", bench), spec, probes, runtime=runtime, date="2026-11-20")
    assert [answer.name for answer in found.probes] == [probe.name for probe in probes]
    return {answer.name: answer for answer in found.probes} | {"": found}


def test_answers_come_from_one_run_and_carry_no_serial(tmp_path: Path) -> None:
    bench = Bench(tmp_path, engine(ROUNDERS["half up"]))
    found = take(bench)
    assert bench.runs == 1 + VERSION_RUN
    assert found["requantize_ties_uint8_zero128_by4"].facts == {"rounding": "half up"}
    assert len(found["requantize_ties_uint8_zero128_by4"].sha256) == 12
    assert (found[""].device.serial, found[""].date) == ("", "2026-11-20")


def test_the_cpu_s_answer_is_never_the_chip_s(tmp_path: Path) -> None:
    found = take(Bench(tmp_path, engine(np.rint, unit="cpu")))
    assert {found[probe.name].status for probe in PROBES} == {"not_on_npu"}
    assert {found[probe.name].sha256 for probe in PROBES} == {""}


def test_one_node_on_the_cpu_silences_its_probe_alone(tmp_path: Path) -> None:
    name = PROBES[3].name
    stray = NodePlacement(node=f"{name}_n1", op="QuantizeLinear", unit="cpu")
    found = take(Bench(tmp_path, engine(np.rint), placed={stray.node: stray}))
    assert found[name].words == "not on npu: QuantizeLinear ran on cpu"
    assert found[PROBES[0].name].sha256


def test_a_node_that_is_gone_counts_only_when_no_nameless_one_rounded_on_the_cpu(tmp_path: Path) -> None:
    name = PROBES[3].name
    gone: Mapping[str, NodePlacement | None] = {f"{name}_n0": None}
    assert take(Bench(tmp_path, engine(np.rint), placed=gone))[name].sha256
    nameless = NodePlacement(node="DequantizeLinear", op="DequantizeLinear", unit="cpu")
    found = take(Bench(tmp_path, engine(np.rint), placed={f"{name}_n0": nameless}))
    assert found[name].words == "not on npu: a DequantizeLinear the runtime added ran on the CPU"
    assert found[PROBES[0].name].sha256


def test_without_placement_nothing_is_said(tmp_path: Path) -> None:
    nowhere = {f"{probe.name}_n{index}": None for probe in PROBES for index in (0, 1)}
    found = take(Bench(tmp_path, engine(np.rint), placed=nowhere))
    assert {found[probe.name].status for probe in PROBES} == {"not_on_npu"}


@pytest.mark.parametrize(("names_them", "runs"), [(True, 2), (False, 7)])
def test_refused_probes_are_found_and_the_others_answered(
    names_them: bool, runs: int, tmp_path: Path
) -> None:
    name = PROBES[5].name
    bench = Bench(tmp_path, engine(np.rint), refuses=(name,), names_them=names_them)
    found = take(bench)
    assert found[name].status == "refused"
    assert all(found[probe.name].sha256 for probe in PROBES if probe.name != name)
    assert bench.runs == runs + VERSION_RUN


def test_a_lab_that_fails_gives_no_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="the cable is out"):
        take(Bench(tmp_path, engine(np.rint), status="failed"))


def test_a_device_without_npu_is_not_even_asked(tmp_path: Path) -> None:
    bench = Bench(tmp_path, engine(np.rint))
    found = take(bench, spec=replace(SPEC, engine="cpu"))
    assert {found[probe.name].status for probe in PROBES} == {"not_on_npu"}
    assert bench.runs == 0


def test_under_qnn_the_op_profile_must_name_the_probe(tmp_path: Path) -> None:
    name = PROBES[0].name
    ops = (OpRow(name="x", cycles=1, sources=(f"QuantizeLinear:{name}_n1",)),)
    found = take(Bench(tmp_path, engine(np.rint), ops=ops), runtime="qnn")
    assert found[name].sha256
    assert {found[probe.name].status for probe in PROBES[1:]} == {"not_on_npu"}
