"""What a .pte file says of itself, without ExecuTorch: inputs, outputs, and the backends it was lowered for.

A program lowered for QNN holds context binaries of one Hexagon. No CPU runs it, and no phone with another one.

Source: pytorch/executorch: schema/program.fbs and exir/_serialize/_program.py (extended header) for the file;
backends/qualcomm/serialization/qc_compiler_spec.fbs (the fields read have kept their places in all its versions) and
runtime/backends/QnnCustomProtocol.h for QNN's part.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pytest_devicelab.errors import ModelError
from pytest_devicelab.matrix.soc import soc_by_qnn_id
from pytest_devicelab.virtual.context_binary import TensorInfo
from pytest_devicelab.virtual.flatbuffer import MalformedBuffer, Table, root

QNN = "QnnBackend"
METHOD = "forward"
_IDENTIFIER = b"ET12"
_HEADER = b"eh00"
_COMPILE_SPEC = "qnn_compile_spec"
_CONTEXT = 0x5678ABCD.to_bytes(4, "little")
_RAW_CONTEXT = b"\0\0\0\2"
"""How a context binary begins, which older versions of ExecuTorch put in bare: seen in all that QAIRT 2.51 made here."""
_BUILD = re.compile(rb"(?<![0-9.])([0-9]{1,2}\.[0-9]{1,3}\.[0-9]{1,3})\.[0-9]{6,14}(?![0-9.])")
"""A QAIRT build as context binaries name it, `v2.46.0.260424121129`: version, then the build's date and time."""
_TENSOR = 5  # of the union KernelTypes
_UNBOUND = 2  # of TensorShapeDynamism
_SEGMENT = 1  # of DataLocation
_MOST_TENSORS = 4096
_MOST_RANK = 16
# Source: PyTorch, c10/core/ScalarType.h.
_DTYPES = {
    0: "uint8",
    1: "int8",
    2: "int16",
    3: "int32",
    4: "int64",
    5: "float16",
    6: "float32",
    7: "float64",
}
_DTYPES |= {11: "bool", 27: "uint16", 28: "uint32", 29: "uint64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PteDelegate:
    """A part of a program that a backend runs.

    Attributes:
        backend: `XnnpackBackend`, `QnnBackend`.
        soc_model: QNN id of the chip it was lowered for; 0 where it does not say, as of other backends.
        hexagon: `V73`, or empty.
        context: whether it holds a context binary, which belongs to that Hexagon; else QNN prepares it on the device.
        qairt: version of the compiler that made the context binary, `2.46.0`, or empty.
    """

    backend: str
    soc_model: int = 0
    hexagon: str = ""
    context: bool = False
    qairt: str = ""

    def __str__(self) -> str:
        """Name what it was lowered for: `QnnBackend for SM8550 (Hexagon V73), made with QAIRT 2.46.0`."""
        if self.backend != QNN:
            return self.backend
        known = (
            "/".join(soc.name for soc in soc_by_qnn_id(self.soc_model))
            if self.soc_model
            else "a chip it does not name"
        )
        chip = known or f"QNN chip {self.soc_model}"
        arch = f" (Hexagon {self.hexagon})" if self.hexagon else ""
        return f"{self.backend} for {chip}{arch}{f', made with QAIRT {self.qairt}' if self.qairt else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PteProgram:
    """The method `forward` of a program. It names no tensor, so they are `input_0`, `output_0`, ..."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    delegates: tuple[PteDelegate, ...]

    @property
    def qnn(self) -> PteDelegate | None:
        """The first part that QNN runs; all of a program's are lowered for one chip. None where QNN has no part."""
        return next((delegate for delegate in self.delegates if delegate.backend == QNN), None)


def read_pte(path: Path) -> PteProgram:
    """Read what a .pte file says of itself; it is not loaded, and no code of a vendor sees it.

    Raises:
        ModelError: it cannot be read, is no whole ExecuTorch program, or its shapes are open.
    """
    try:
        data = path.read_bytes()
        program = root(data, _IDENTIFIER)
        plan = next((plan for plan in program.tables(1) if plan.text(0) == METHOD), None)
        if plan is None:
            raise MalformedBuffer(f"it has no method {METHOD!r}")
        values = tuple(plan.tables(2))
        return PteProgram(
            inputs=_tensors("input", plan.numbers(3, "i"), values),
            outputs=_tensors("output", plan.numbers(4, "i"), values),
            delegates=tuple(_delegate(each, program) for each in plan.tables(7)),
        )
    except (OSError, MalformedBuffer) as error:
        raise ModelError(
            f"{path}: not an ExecuTorch program that can be run",
            why=str(error),
            fix="name a .pte file with fixed shapes and a method `forward`; export it anew if it was cut short",
        ) from error


def _tensors(what: str, indices: tuple[int, ...], values: tuple[Table, ...]) -> tuple[TensorInfo, ...]:
    if len(indices) > _MOST_TENSORS:
        raise MalformedBuffer(f"it claims {len(indices):,} {what}s")
    # Padded, so that the order of the names is the order of the arguments.
    width = len(str(max(len(indices) - 1, 0)))
    return tuple(_tensor(f"{what}_{number:0{width}d}", index, values) for number, index in enumerate(indices))


def _tensor(name: str, index: int, values: tuple[Table, ...]) -> TensorInfo:
    value = values[index] if 0 <= index < len(values) else None
    tensor = value.table(1) if value is not None and value.number(0, "B") == _TENSOR else None
    if tensor is None:
        raise MalformedBuffer(f"{name} is no tensor")
    dtype = _DTYPES.get(tensor.number(0, "b"))
    shape, order = tensor.numbers(2, "i"), tensor.blob(3)
    if dtype is None:
        raise MalformedBuffer(
            f"{name} has PyTorch's scalar type {tensor.number(0, 'b')}, which is none of numbers"
        )
    if tensor.number(8, "b") == _UNBOUND:
        raise MalformedBuffer(f"the shape of {name} is open, without an upper bound")
    if (
        len(shape) > _MOST_RANK
        or any(extent < 0 for extent in shape)
        or list(order) != list(range(len(shape)))
    ):
        raise MalformedBuffer(
            f"{name} is not a dense tensor: sizes {shape[:_MOST_RANK]}, order {list(order[:_MOST_RANK])}"
        )
    return TensorInfo(name=name, dtype=dtype, shape=shape)


def _delegate(delegate: Table, program: Table) -> PteDelegate:
    backend = delegate.text(0)
    if backend != QNN:
        return PteDelegate(backend=backend)
    payload = _payload(delegate, program)
    soc_model, arch = next(_compiled_for(delegate), (0, 0))
    context = payload.startswith((_CONTEXT, _RAW_CONTEXT))
    build = _BUILD.search(payload) if context else None
    return PteDelegate(
        backend=backend,
        soc_model=soc_model,
        hexagon=f"V{arch}" if arch > 0 else "",
        context=context,
        qairt=build[1].decode() if build else "",
    )


def _compiled_for(delegate: Table) -> Iterator[tuple[int, int]]:
    """Return the QNN id of the chip and the Hexagon version that a part was lowered for, where it says."""
    for spec in delegate.tables(2):
        if spec.text(0) != _COMPILE_SPEC:
            continue
        soc = root(spec.blob(1), b"").table(0)
        if soc is not None:
            htp = soc.table(1)
            yield soc.number(0, "i"), htp.number(0, "i") if htp is not None else 0


def _payload(delegate: Table, program: Table) -> bytes:
    """Return what the backend gets: from the program itself, or from a segment behind it."""
    reference = delegate.table(1)
    if reference is None:
        return b""
    index = reference.number(1, "I")
    if reference.number(0, "b") != _SEGMENT:
        inline = next((each for number, each in enumerate(program.tables(3)) if number == index), None)
        return b"" if inline is None else inline.blob(0)
    data = program.data
    segment = next((each for number, each in enumerate(program.tables(4)) if number == index), None)
    if segment is None or data[8:12] != _HEADER or len(data) < 32:
        raise MalformedBuffer("what it was lowered to is not in the file")
    start = int.from_bytes(data[24:32], "little") + segment.number(0, "Q")
    size = segment.number(1, "Q")
    if start + size > len(data):
        raise MalformedBuffer(f"it was cut short: a part ends at byte {start + size:,} of {len(data):,}")
    return data[start : start + size]
