"""The ort runtime: ONNX Runtime on the device, NPU first, with the CPU for what the NPU does not take.

It drives `ort-run`, whose command line docs/reference/ort-run.md describes as a contract.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_devicelab.errors import InfrastructureError, TransferError
from pytest_devicelab.evidence.codec import decode
from pytest_devicelab.evidence.record import NodePlacement, OpRow
from pytest_devicelab.matrix.soc import Soc
from pytest_devicelab.matrix.specs import DeviceSpec
from pytest_devicelab.runtimes.macs import node_macs
from pytest_devicelab.runtimes.runtime import Job, Leftovers, OutputFile, Prepared
from pytest_devicelab.virtual.onnx_model import (
    conversions_around,
    edge_conversions,
    load_model,
    op_types,
    output_quantization,
)

if TYPE_CHECKING:
    import onnx

_OUTPUTS, _PLACEMENT, _OPS, _VERSIONS = "outputs.json", "placement.json", "ops.json", "versions.json"
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
_LOG_LEVELS = {"off": "error", "error": "error", "warn": "warn", "info": "info", "verbose": "verbose"}


class OrtRuntime:
    """ort-run with the ONNX model itself: compiled on the device, with fallback to its CPU."""

    name = "ort"
    evidence_files: tuple[str, ...] = (_OUTPUTS, _PLACEMENT, _OPS, _VERSIONS, "profile.csv")

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
        """Hand the model out as it is; it is compiled where it runs."""
        return Prepared(file=model, outputs=None, options=options if backend == "htp" else {})

    def command(self, prepared: Prepared, job: Job) -> tuple[str, ...]:
        """Return ort-run's command line."""
        options = [f"--ep_option={key}={value}" for key, value in sorted(prepared.options.items())]
        return (
            "ort-run",
            f"--model={job.model}",
            f"--input_list={job.input_list}",
            f"--output_dir={job.output_dir}",
            f"--ep={'cpu' if job.backend == 'cpu' else 'qnn'}",
            *options,
            f"--log_level={_LOG_LEVELS[job.log_level]}",
            "--profile",
        )

    def read_outputs(self, prepared: Prepared, folder: Path) -> tuple[OutputFile, ...]:
        """Read what ort-run says it wrote: all outputs of the model, each in a file of its own.

        How an output is quantized is for the model to say: the device's word on it would be a yardstick of its own.
        """
        model = load_model(prepared.file)
        grids = output_quantization(model)
        outputs = _read(folder / _OUTPUTS, OutputFile)
        found, wanted = (
            sorted(output.name for output in outputs),
            sorted(each.name for each in model.graph.output),
        )
        if found != wanted or len({output.file for output in outputs}) != len(outputs):
            raise TransferError(
                f"{folder / _OUTPUTS}: ort-run does not say which outputs there are",
                why=f"it names {found or 'none'}, the model {wanted}"
                if found != wanted
                else "two outputs are in the same file",
                fix="see stderr.txt beside it",
            )
        return tuple(
            replace(output, quantization=grids.get(output.name) or output.quantization) for output in outputs
        )

    def read_leftovers(self, prepared: Prepared, folder: Path) -> Leftovers:
        """Read placement, op rows and versions as ort-run wrote them."""
        versions = _load(folder / _VERSIONS, dict)
        model = load_model(prepared.file)
        return Leftovers(
            ops=_read(folder / _OPS, OpRow),
            placement=_weighed(_whole(_placement(folder / _PLACEMENT), model), model),
            versions={str(key): str(value) for key, value in versions.items()},
        )


def _placement(path: Path) -> tuple[NodePlacement, ...]:
    """Read where each node went; how much it computes and what it borders on is not the device's to say."""
    rows = (
        row | {"macs": None, "boundary": None} if isinstance(row, dict) else row for row in _load(path, list)
    )
    return tuple(decode(NodePlacement, row, file=str(path)) for row in rows)


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


Row = TypeVar("Row")
Json = TypeVar("Json", dict[str, Any], list[Any])


def _read(path: Path, cls: type[Row]) -> tuple[Row, ...]:
    """Read a JSON list of rows that a device wrote; an absent file holds none."""
    return tuple(decode(cls, row, file=str(path)) for row in _load(path, list))


def _load(path: Path, kind: type[Json]) -> Json:
    if not path.exists():
        return kind()
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise TransferError(
            f"{path}: not JSON", why=str(error), fix="the runner stopped early; see stderr.txt"
        ) from error
    if not isinstance(found, kind):
        raise TransferError(
            f"{path}: not what it should be",
            why=f"a JSON {kind.__name__} was expected, found {type(found).__name__}",
            fix="docs/reference/ort-run.md says what a runner writes",
        )
    return found
