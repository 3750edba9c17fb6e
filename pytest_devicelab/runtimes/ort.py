"""The ort runtime: ONNX Runtime on the device, NPU first, with the CPU for what the NPU does not take.

It drives `ort-run`, whose command line docs/reference/ort-run.md describes as a contract.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_devicelab.errors import InfrastructureError
from pytest_devicelab.evidence.events import Event
from pytest_devicelab.evidence.record import NodePlacement, OpRow
from pytest_devicelab.matrix.soc import Soc
from pytest_devicelab.matrix.specs import DeviceSpec, MeasureSpec
from pytest_devicelab.runtimes.host import declared_inputs, run_on_host
from pytest_devicelab.runtimes.inputs import Arrays
from pytest_devicelab.runtimes.macs import node_macs
from pytest_devicelab.runtimes.runner_files import (
    OPS,
    OUTPUTS,
    PLACEMENT,
    VERSIONS,
    read_outputs,
    read_placement,
    read_rows,
    read_versions,
    require_all,
)
from pytest_devicelab.runtimes.runtime import DeclaredInput, Job, Leftovers, OutputFile, Prepared
from pytest_devicelab.runtimes.timing import TIMING, Timing, read_timing_json
from pytest_devicelab.virtual.onnx_model import (
    conversions_around,
    edge_conversions,
    load_model,
    op_types,
    output_quantization,
)

if TYPE_CHECKING:
    import onnx

_STRICT = "strict"
"""Our own option of the ort runtime; the others are the QNN execution provider's."""
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
_LOG_LEVELS = {"off": "error", "error": "error", "warn": "warn", "info": "info", "verbose": "verbose"}


class OrtRuntime:
    """ort-run with the ONNX model itself: compiled on the device, with fallback to its CPU."""

    name = "ort"
    evidence_files: tuple[str, ...] = (OUTPUTS, PLACEMENT, OPS, VERSIONS, "profile.csv")
    suffixes: tuple[str, ...] = (".onnx",)
    timing_files: tuple[str, ...] = (TIMING,)

    def require(self) -> None:
        """Ask for nothing: which of the packages are needed depends on the devices, and preflight says it."""

    def declared_inputs(self, model: Path) -> Mapping[str, DeclaredInput]:
        """Return what the ONNX model declares."""
        return declared_inputs(model)

    def run_on_host(self, model: Path, inputs: Arrays) -> Arrays:
        """Run the ONNX model on ONNX Runtime's CPU provider."""
        return run_on_host(model, inputs)

    def backend(self, spec: DeviceSpec, soc: Soc | None) -> str:
        """Say `cpu` where the device has no NPU for ONNX Runtime to use, else `htp`.

        Raises:
            InfrastructureError: nobody knows its chip. On the CPU its NPU would pass for tested.
        """
        if soc is None:
            raise InfrastructureError(
                f"device {spec.id} does not say which chip it has, or it has one nothing is known of",
                why="without the chip nobody can tell whether it has an NPU for the model to run on",
                fix=f"name the chip as `soc:` of device {spec.id} ({spec.source})",
            )
        without_npu = not soc.has_hexagon or (spec.simulated and spec.engine == "cpu")
        return "cpu" if without_npu else "htp"

    def prepare(
        self, model: Path, soc: Soc | None, options: Mapping[str, str], *, backend: str, cache: Path
    ) -> Prepared:
        """Hand the model out as it is; it is compiled where it runs. Options of the NPU do not count on a CPU."""
        kept = {key: value for key, value in options.items() if backend == "htp" or key == _STRICT}
        return Prepared(file=model, outputs=None, options=kept)

    def command(self, prepared: Prepared, job: Job) -> tuple[str, ...]:
        """Return ort-run's command line."""
        return (*_common(prepared, job), f"--log_level={_LOG_LEVELS[job.log_level]}", "--profile")

    def timed_command(self, prepared: Prepared, job: Job, plan: MeasureSpec) -> tuple[str, ...]:
        """Return it without profile, with every inference timed."""
        rounds = f"--repeat={plan.warm_up + plan.inferences}"
        return (*_common(prepared, job), "--log_level=error", rounds, "--timing")

    def read_timing(
        self, prepared: Prepared, folder: Path, events: Iterable[Event], plan: MeasureSpec
    ) -> Timing:
        """Read the times as ort-run wrote them."""
        return read_timing_json(folder / TIMING, plan, "ort-run")

    def read_outputs(self, prepared: Prepared, folder: Path) -> tuple[OutputFile, ...]:
        """Read what ort-run says it wrote: all outputs of the model, each in a file of its own.

        How an output is quantized is for the model to say: the device's word on it would be a yardstick of its own.
        """
        model = load_model(prepared.file)
        grids = output_quantization(model)
        outputs = read_outputs(folder / OUTPUTS)
        require_all(outputs, [each.name for each in model.graph.output], folder / OUTPUTS, "ort-run")
        return tuple(
            replace(output, quantization=grids.get(output.name) or output.quantization) for output in outputs
        )

    def read_leftovers(self, prepared: Prepared, folder: Path) -> Leftovers:
        """Read placement, op rows and versions as ort-run wrote them."""
        model = load_model(prepared.file)
        return Leftovers(
            ops=read_rows(folder / OPS, OpRow),
            placement=_weighed(_whole(read_placement(folder / PLACEMENT), model), model),
            versions=read_versions(folder / VERSIONS),
        )


def _common(prepared: Prepared, job: Job) -> tuple[str, ...]:
    return (
        job.program or "ort-run",
        f"--model={job.model}",
        f"--input_list={job.input_list}",
        f"--output_dir={job.output_dir}",
        f"--ep={'cpu' if job.backend == 'cpu' else 'qnn'}",
        *(f"--ep_option={key}={value}" for key, value in sorted(prepared.options.items()) if key != _STRICT),
        *(["--strict"] if prepared.options.get(_STRICT) == "1" else []),
    )


def _whole(placement: tuple[NodePlacement, ...], model: onnx.ModelProto) -> tuple[NodePlacement, ...]:
    """Return an assignment with its edges marked; none where it leaves out most of the model.

    ONNX Runtime renames and joins some nodes before it assigns them, so it cannot be held to every name. One that
    misses more than half of the computing nodes accounts for some other graph, and is no evidence for this one.
    """
    known = op_types(model)
    computing = {name for name, op in known.items() if op not in _CONVERSIONS}
    named = {node.node for node in placement}
    if 2 * len(computing & named) < len(computing):
        return ()
    on_cpu = {node.node for node in placement if node.unit == "cpu" and node.op not in _CONVERSIONS}
    edges = edge_conversions(model) | conversions_around(model, on_cpu)
    return tuple(
        # A conversion the runtime put in itself belongs to the node on the CPU it was put in for, if there is one.
        replace(node, boundary=node.node in edges or (node.node not in known and bool(on_cpu or edges)))
        if node.op in _CONVERSIONS
        else node
        for node in placement
    )


def _weighed(placement: tuple[NodePlacement, ...], model: onnx.ModelProto) -> tuple[NodePlacement, ...]:
    """Add what each node computes, from the model: nodes that a runtime put in compute nothing that counts.

    Where it replaced one that does, the sum falls short of the model's: then nobody knows, and it says None.
    """
    counts = node_macs(model)
    total = sum(count or 0 for count in counts.values())
    placed = tuple(replace(node, macs=counts.get(node.node, 0)) for node in placement)
    whole = None not in counts.values() and sum(node.macs or 0 for node in placed) == total
    return placed if whole else tuple(replace(node, macs=None) for node in placed)
