"""What the rest of the project needs of a runtime: prepare on the host, run on the device, read what is left."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from pytest_devicelab.errors import TransferError
from pytest_devicelab.evidence.record import NodePlacement, OpRow, Quantization
from pytest_devicelab.matrix.soc import Soc
from pytest_devicelab.matrix.specs import DeviceSpec
from pytest_devicelab.runtimes.inputs import Arrays
from pytest_devicelab.runtimes.kit import Kit, Place

_DTYPES = frozenset(
    {
        "bool",
        *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
        "float16",
        "float32",
        "float64",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFile:
    """One output as the runtime leaves it on the device: a raw file a sample.

    Attributes:
        name: the tensor's name in the model.
        file: the end of its path, after `folder`.
        dtype: numpy dtype name of the raw bytes, little-endian.
        shape: of one sample, batch dimension included.
        quantization: of integer outputs, or of the grid float outputs lie on, where the runtime knows it.
        folder: the beginning of its path below the output folder; `{}` stands for the number of the sample.
    """

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    quantization: Quantization | None = None
    folder: str = "Result_{}/"

    def __post_init__(self) -> None:
        """Refuse what a device cannot mean: it is a device that says this, and both file and numbers are used.

        Raises:
            TransferError: the file would lie elsewhere, the dtype is none of numbers, the shape is negative, or the
                scale is no step.
        """
        if (
            not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.]*", self.file)
            or not re.fullmatch(r"[A-Za-z0-9_]+\{\}[/_]", self.folder)
            or self.dtype not in _DTYPES
            or any(extent < 0 for extent in self.shape)
            or (self.quantization is not None and not 0 < self.quantization.scale < math.inf)
        ):
            raise TransferError(
                f"output {self.name[:80]!r} cannot be read",
                why=f"file {self.file[:80]!r}, dtype {self.dtype[:80]!r}, shape {list(self.shape)[:16]}, "
                f"quantization {self.quantization}",
                fix="a file is a name of letters, digits, _ and .; a dtype is numpy's, such as float32",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A model made ready for one chip.

    Attributes:
        file: what goes to the device.
        outputs: what the runtime will write; None where only a run can tell.
        options: the options that took part, defaults included.
        versions: of the tools that made it.
        log: what the compiler said.
        op_types: ONNX operator type of each named node, to name the sources of an op row.
        op_sources: backend operator -> ONNX nodes it was made from, where the compiler said so.
        native_inputs: inputs whose files hold the graph's own dtype, when that is not float32.
        graphs: names of the graphs in the file, where the runtime knows graphs by name.
        kit: what goes to the device beside the model; None where the device has its own runner.
        backend: where the file itself says it runs; empty for what `Runtime.backend` says.
    """

    file: Path
    outputs: tuple[OutputFile, ...] | None
    options: Mapping[str, str]
    versions: Mapping[str, str] = field(default_factory=dict)
    log: bytes = b""
    op_types: Mapping[str, str] = field(default_factory=dict)
    op_sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    native_inputs: tuple[str, ...] = ()
    graphs: tuple[str, ...] = ()
    kit: Kit | None = None
    backend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run on a device: paths are the device's.

    Attributes:
        kit_folder: where the runner's kit lies.
        program: of the matrix, where the device has the runner there; empty for the runtime's own, found by name.
    """

    model: str
    input_list: str
    output_dir: str
    log_level: str
    backend: str
    kit_folder: str = ""
    program: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftovers:
    """What a runtime says of a run in the files it left beside the outputs."""

    ops: tuple[OpRow, ...] = ()
    placement: tuple[NodePlacement, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


class DeclaredInput(NamedTuple):
    """dtype and shape of one input, batch included; None for a dimension left open."""

    dtype: str
    shape: tuple[int | None, ...]


class Runtime(Protocol):
    """How models run on a device. One that another package brings is an entry point of `devicelab.runtimes`."""

    name: str
    suffixes: tuple[str, ...]
    """Endings of the model files it takes, such as `.onnx`."""
    evidence_files: tuple[str, ...]
    """Files below the output folder that are worth pulling where they exist."""

    def require(self) -> None:
        """Raise `UserError`, saying how to install it, where a package is missing that this runtime needs on the host."""

    def declared_inputs(self, model: Path) -> Mapping[str, DeclaredInput]:
        """Return the inputs a model file declares, by name.

        Raises:
            ModelError: it is no such model, or nobody could write an input list for it.
        """

    def run_on_host(self, model: Path, inputs: Arrays) -> Arrays:
        """Run a model on this machine's CPU: the yardstick of every accuracy verdict.

        Args:
            model: a file this runtime takes.
            inputs: arrays `[N, ...]` by input name.

        Returns:
            Arrays `[N, ...]` by output name.

        Raises:
            ModelError: the model does not run here; then accuracy is inconclusive.
        """

    def backend(self, spec: DeviceSpec, soc: Soc | None) -> str:
        """Say which backend a device gives this runtime: `htp` or `cpu`.

        Raises:
            InfrastructureError: the device has none that this runtime can use.
        """

    def prepare(
        self, model: Path, soc: Soc | None, options: Mapping[str, str], *, backend: str, cache: Path
    ) -> Prepared:
        """Make a model ready for a chip; `CompileRefused` when it does not compile for it."""

    def command(self, prepared: Prepared, job: Job) -> tuple[str, ...]:
        """Return the command line that runs a job on the device."""

    def read_outputs(self, prepared: Prepared, folder: Path) -> tuple[OutputFile, ...]:
        """Say what the run wrote, from what was prepared or from the pulled evidence files."""

    def read_leftovers(self, prepared: Prepared, folder: Path) -> Leftovers:
        """Read op rows, placement and versions from the pulled evidence files."""


@runtime_checkable
class BringsKit(Protocol):
    """A runtime whose runner is pushed to the device."""

    def kit(self, prepared: Prepared, place: Place) -> Kit | None:
        """Return what goes to the device, or None where the device has it; nothing is pushed before it is checked.

        Raises:
            InfrastructureError: a file is missing, or is not for this device; says which, and what would be.
        """
