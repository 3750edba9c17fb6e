"""The ort runtime: ONNX Runtime on the device, NPU first, with the CPU for what the NPU does not take.

It drives `ort-run`, whose command line docs/reference/ort-run.md describes as a contract.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_devicelab.errors import TransferError
from pytest_devicelab.evidence.codec import decode
from pytest_devicelab.evidence.record import NodePlacement, OpRow, Quantization
from pytest_devicelab.matrix.soc import Soc
from pytest_devicelab.matrix.specs import DeviceSpec
from pytest_devicelab.runtimes.runtime import Job, Leftovers, OutputFile, Prepared
from pytest_devicelab.virtual.onnx_model import load_model, output_quantization

_OUTPUTS, _PLACEMENT, _OPS, _VERSIONS = "outputs.json", "placement.json", "ops.json", "versions.json"
_LOG_LEVELS = {"off": "error", "error": "error", "warn": "warn", "info": "info", "verbose": "verbose"}


class OrtRuntime:
    """ort-run with the ONNX model itself: compiled on the device, with fallback to its CPU."""

    name = "ort"
    evidence_files: tuple[str, ...] = (_OUTPUTS, _PLACEMENT, _OPS, _VERSIONS, "profile.csv")

    def backend(self, spec: DeviceSpec, soc: Soc | None) -> str:
        """Say `cpu` where the device has no NPU for ONNX Runtime to use, else `htp`."""
        without_npu = soc is None or not soc.has_hexagon or (spec.simulated and spec.engine == "cpu")
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
        """Read what ort-run says it wrote; the grid of a float output is taken from the model."""
        grids = output_quantization(load_model(prepared.file))
        found = _read(folder / _OUTPUTS)
        if not found:
            raise TransferError(
                f"ort-run left no {_OUTPUTS}", why="it says which outputs there are", fix="see stderr.txt"
            )
        outputs = []
        for entry in found:
            output = decode(OutputFile, entry, file=str(folder / _OUTPUTS))
            grid: Quantization | None = output.quantization or grids.get(output.name)
            outputs.append(
                OutputFile(
                    name=output.name,
                    file=output.file,
                    dtype=output.dtype,
                    shape=output.shape,
                    quantization=grid,
                )
            )
        return tuple(outputs)

    def read_leftovers(self, prepared: Prepared, folder: Path) -> Leftovers:
        """Read placement, op rows and versions as ort-run wrote them."""
        versions = _read(folder / _VERSIONS)
        return Leftovers(
            ops=tuple(decode(OpRow, row, file=str(folder / _OPS)) for row in _read(folder / _OPS)),
            placement=tuple(
                decode(NodePlacement, node, file=str(folder / _PLACEMENT))
                for node in _read(folder / _PLACEMENT)
            ),
            versions={str(key): str(value) for key, value in versions.items()} if versions else {},
        )


def _read(path: Path) -> Any:
    """Read a JSON file a device wrote; an absent one holds nothing."""
    if not path.exists():
        return []
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise TransferError(
            f"{path}: not JSON", why=str(error), fix="the runner stopped early; see stderr.txt"
        ) from error
