"""What a QNN context binary says of itself: chip, graphs, inputs and outputs.

Read with the vendor's own reader, libQnnSystem.so of the `onnxruntime-qnn` wheel, called through ctypes.

Source: QNN API headers: QnnTypes.h (data types, tensors, quantization), System/QnnSystemContext.h (binary
and graph info, versions 1 to 3), System/QnnSystemInterface.h, HTP/QnnHtpSystemContext.h (context metadata).
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pytest_devicelab.errors import ModelError, UserError
from pytest_devicelab.evidence.record import Quantization
from pytest_devicelab.virtual import qnn_structs as qnn
from pytest_devicelab.virtual.simulator import library_folder

# Qnn_DataType_t -> numpy; the fixed-point types hold quantized integers.
_DTYPES: Mapping[int, str] = {
    0x0008: "int8",
    0x0016: "int16",
    0x0032: "int32",
    0x0064: "int64",
    0x0108: "uint8",
    0x0116: "uint16",
    0x0132: "uint32",
    0x0164: "uint64",
    0x0216: "float16",
    0x0232: "float32",
    0x0264: "float64",
    0x0308: "int8",
    0x0316: "int16",
    0x0332: "int32",
    0x0408: "uint8",
    0x0416: "uint16",
    0x0432: "uint32",
    0x0508: "bool",
}
_FIXED_POINT = range(0x0300, 0x0500)
_DEFINED = 1
_SCALE_OFFSET = 0

# No tensor of a real graph comes near these; a file that claims more is damaged.
_MAX_GRAPHS = 1024
_MAX_TENSORS = 4096
_MAX_RANK = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One input or output of a graph. `dtype` is a numpy name; `quantization` is None for plain values."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    quantization: Quantization | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole tensor."""
        count = 1
        for length in self.shape:
            count *= length
        return count * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphInfo:
    """One graph of a context binary."""

    name: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextBinary:
    """What a context binary says of itself.

    Attributes:
        build_id: the QNN build that made it, `v2.51.0.260929181845`.
        soc_model: QNN id of the chip it was made for; None where the format is too old to say.
        hexagon: `V75`; None where the format is too old to say.
    """

    build_id: str
    soc_model: int | None
    hexagon: str | None
    graphs: tuple[GraphInfo, ...]


def read_context_binary(path: Path) -> ContextBinary:
    """Read what a context binary says of itself.

    Raises:
        ModelError: the file cannot be read, or is not a whole context binary.
        UserError: the onnxruntime-qnn wheel is not installed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read", why=str(error)) from error
    reader = _Reader(library_folder() / "libQnnSystem.so")
    try:
        # What the reader returns lies in its own memory: decoded before it is closed.
        return _decode(reader.describe(data))
    except _UnusableBinary as error:
        raise ModelError(
            f"{path}: not a QNN context binary that can be used",
            why=str(error),
            fix="compile the model again, or copy the file again if it was cut off",
            size_bytes=len(data),
        ) from None
    finally:
        reader.close()


class _UnusableBinary(Exception):
    """Why a binary cannot be used."""


class _Reader:
    """libQnnSystem.so with one open system context."""

    def __init__(self, library: Path) -> None:
        provider = ctypes.POINTER(ctypes.POINTER(qnn.SystemInterface))()
        count = ctypes.c_uint32()
        code = ctypes.CDLL(str(library)).QnnSystemInterface_getProviders(
            ctypes.byref(provider), ctypes.byref(count)
        )
        if code or not count.value:
            raise UserError(f"{library}: offers no QNN system interface", why=f"error code {code}")
        self._interface = provider[0].contents
        self._handle = ctypes.c_void_p()
        create = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(self._interface.context_create)
        code = create(ctypes.addressof(self._handle))
        if code:
            raise UserError(f"{library}: gives no system context", why=f"error code {code}")

    def describe(self, data: bytes) -> qnn.Binary:
        """Return the vendor's description, valid until `close`."""
        function = ctypes.CFUNCTYPE(
            ctypes.c_uint64, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint64, ctypes.c_void_p
        )
        found = ctypes.POINTER(qnn.Binary)()
        code = function(self._interface.context_get_metadata)(
            self._handle, data, len(data), ctypes.addressof(found)
        )
        if code or not found:
            raise _UnusableBinary(f"QNN answers with error code {code} to its {len(data):,} bytes")
        return found.contents

    def close(self) -> None:
        """Free the system context and everything it described."""
        free = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)
        free(self._interface.context_free)(self._handle)


def _decode(binary: qnn.Binary) -> ContextBinary:
    if binary.version not in (1, 2, 3):
        raise _UnusableBinary(f"its description has version {binary.version}; versions 1 to 3 are known")
    newest = binary.version == 3
    info = binary.of.v3 if newest else binary.of.v2
    if not 0 < info.graph_count <= _MAX_GRAPHS or not info.graphs:
        raise _UnusableBinary(f"it claims {info.graph_count} graphs")
    return ContextBinary(
        build_id=_text(info.build, "build id"),
        soc_model=info.soc_model if newest else None,
        hexagon=_hexagon(info) if newest else None,
        graphs=tuple(_graph(info.graphs[index]) for index in range(info.graph_count)),
    )


def _hexagon(info: qnn.BinaryV3) -> str | None:
    if not info.metadata or info.metadata_size < ctypes.sizeof(qnn.HtpContextMetadata):
        return None
    metadata = qnn.HtpContextMetadata.from_address(info.metadata)
    return f"V{metadata.dsp_arch}" if metadata.version == 1 else None


def _graph(graph: qnn.Graph) -> GraphInfo:
    if graph.version not in (1, 2, 3):
        raise _UnusableBinary(f"a graph has version {graph.version}; versions 1 to 3 are known")
    name = _text(graph.of.name, "graph name")
    return GraphInfo(
        name=name,
        inputs=_tensors(graph.of.inputs, graph.of.input_count, f"inputs of {name}"),
        outputs=_tensors(graph.of.outputs, graph.of.output_count, f"outputs of {name}"),
    )


def _tensors(first: ctypes._Pointer[qnn.Tensor], count: int, what: str) -> tuple[TensorInfo, ...]:
    if not 0 < count <= _MAX_TENSORS or not first:
        raise _UnusableBinary(f"it claims {count} {what}")
    return tuple(_tensor(first[index]) for index in range(count))


def _tensor(tensor: qnn.Tensor) -> TensorInfo:
    if tensor.version not in (1, 2):
        raise _UnusableBinary(f"a tensor has version {tensor.version}; versions 1 and 2 are known")
    fields = tensor.of
    name = _text(fields.name, "tensor name")
    dtype = _DTYPES.get(fields.dtype)
    if dtype is None:
        raise _UnusableBinary(f"tensor {name} has data type {fields.dtype:#06x}, which is not known")
    if fields.rank > _MAX_RANK or (fields.rank and not fields.dimensions):
        raise _UnusableBinary(f"tensor {name} claims rank {fields.rank}")
    return TensorInfo(
        name=name,
        dtype=dtype,
        shape=tuple(fields.dimensions[axis] for axis in range(fields.rank)),
        quantization=_quantization(fields.quantize, dtype) if fields.dtype in _FIXED_POINT else None,
    )


def _quantization(params: qnn.QuantizeParams, dtype: str) -> Quantization | None:
    """Return per-tensor quantization; None where the binary gives none or another kind."""
    if params.definition != _DEFINED or params.encoding != _SCALE_OFFSET:
        return None
    encoding = params.of.scale_offset
    # QNN adds its offset where everybody else subtracts a zero point.
    return Quantization(scale=encoding.scale, zero_point=-encoding.offset, dtype=dtype)


def _text(value: bytes | None, what: str) -> str:
    if value is None:
        raise _UnusableBinary(f"it has no {what}")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise _UnusableBinary(f"its {what} is not text: {value[:40]!r}") from None
