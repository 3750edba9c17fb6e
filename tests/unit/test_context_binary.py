from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_devicelab.errors import ModelError
from pytest_devicelab.evidence.record import Quantization
from pytest_devicelab.virtual import context_binary, qnn_structs
from pytest_devicelab.virtual.context_binary import ContextBinary, GraphInfo, TensorInfo, read_context_binary

UFIXED_8, FLOAT_32, INT_4 = 0x0408, 0x0232, 0x0304


class Described:
    """A description as libQnnSystem gives it, built by hand; keeps alive what its pointers point to."""

    def __init__(self, *, version: int = 3, graph_version: int = 3, tensor_version: int = 1) -> None:
        self.dimensions = (ctypes.c_uint32 * 2)(1, 10)
        self.inputs = self.tensors(tensor_version, b"x", FLOAT_32)
        self.outputs = self.tensors(tensor_version, b"y", UFIXED_8)
        quantize = self.outputs[0].of.quantize
        quantize.definition, quantize.encoding = 1, 0
        quantize.of.scale_offset.scale, quantize.of.scale_offset.offset = 0.5, -3
        self.graphs = (qnn_structs.Graph * 1)()
        self.graph = self.graphs[0]
        self.graph.version = graph_version
        self.graph.of.name = b"g"
        self.graph.of.input_count = self.graph.of.output_count = 1
        self.graph.of.inputs, self.graph.of.outputs = self.inputs, self.outputs
        self.metadata = qnn_structs.HtpContextMetadata(version=1, dsp_arch=75)
        self.binary = qnn_structs.Binary(version=version)
        self.info = self.binary.of.v3 if version == 3 else self.binary.of.v2
        self.info.build = b"v2.51.0"
        self.info.graph_count, self.info.graphs = 1, self.graphs
        if version == 3:
            self.info.soc_model = 57
            self.info.metadata_size = ctypes.sizeof(self.metadata)
            self.info.metadata = ctypes.addressof(self.metadata)

    def tensors(self, version: int, name: bytes, dtype: int) -> ctypes.Array[qnn_structs.Tensor]:
        tensors = (qnn_structs.Tensor * 1)()
        tensors[0].version = version
        fields = tensors[0].of
        fields.name, fields.dtype, fields.rank, fields.dimensions = name, dtype, 2, self.dimensions
        return tensors

    def decode(self) -> ContextBinary:
        return context_binary._decode(self.binary)


@pytest.mark.parametrize("tensor_version", [1, 2])
@pytest.mark.parametrize("graph_version", [1, 2, 3])
@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_version_is_read(version: int, graph_version: int, tensor_version: int) -> None:
    described = Described(version=version, graph_version=graph_version, tensor_version=tensor_version)
    how = Quantization(scale=0.5, zero_point=3, dtype="uint8")
    assert described.decode() == ContextBinary(
        build_id="v2.51.0",
        soc_model=57 if version == 3 else None,
        hexagon="V75" if version == 3 else None,
        graphs=(
            GraphInfo(
                name="g",
                inputs=(TensorInfo(name="x", dtype="float32", shape=(1, 10)),),
                outputs=(TensorInfo(name="y", dtype="uint8", shape=(1, 10), quantization=how),),
            ),
        ),
    )


def test_tensor_size() -> None:
    assert TensorInfo(name="x", dtype="uint16", shape=(1, 3, 5)).size_bytes == 30
    assert TensorInfo(name="x", dtype="float32", shape=()).size_bytes == 4


def test_structures_have_the_sizes_of_the_c_ones() -> None:
    # Qnn_QuantizeParams_t, Qnn_Tensor_t, QnnSystemContext_GraphInfo_t on a 64-bit machine.
    assert ctypes.sizeof(qnn_structs.QuantizeParams) == 40
    assert ctypes.sizeof(qnn_structs.Tensor) == 144
    assert ctypes.sizeof(qnn_structs.Graph) == 88


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("graph_count", 0, "claims 0 graphs"),
        ("graph_count", 2**32 - 1, "claims 4294967295 graphs"),
        ("graphs", None, "claims 1 graphs"),
        ("build", None, "no build id"),
        ("build", b"\xff\xfe", "build id is not text"),
    ],
)
def test_a_nonsensical_binary_is_refused(field: str, value: object, why: str) -> None:
    described = Described()
    setattr(described.info, field, value)
    with pytest.raises(context_binary._UnusableBinary, match=why):
        described.decode()


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("name", None, "no tensor name"),
        ("dtype", INT_4, "data type 0x0304, which is not known"),
        ("rank", 2**31, "claims rank"),
        ("dimensions", None, "claims rank 2"),
    ],
)
def test_a_nonsensical_tensor_is_refused(field: str, value: object, why: str) -> None:
    described = Described()
    setattr(described.inputs[0].of, field, value)
    with pytest.raises(context_binary._UnusableBinary, match=why):
        described.decode()


@pytest.mark.parametrize(
    ("field", "value"), [("output_count", 2**31), ("output_count", 0), ("outputs", None)]
)
def test_nonsensical_outputs_are_refused(field: str, value: object) -> None:
    described = Described()
    setattr(described.graph.of, field, value)
    with pytest.raises(context_binary._UnusableBinary, match="outputs of g"):
        described.decode()


def test_unknown_versions_are_refused() -> None:
    for described, what in (
        (Described(version=4), "its description has version 4"),
        (Described(graph_version=4), "a graph has version 4"),
        (Described(tensor_version=3), "a tensor has version 3"),
    ):
        with pytest.raises(context_binary._UnusableBinary, match=what):
            described.decode()


def test_quantization_of_another_kind_is_unknown_not_guessed() -> None:
    described = Described()
    described.outputs[0].of.quantize.encoding = 1
    assert described.decode().graphs[0].outputs[0].quantization is None


@given(content=st.binary(max_size=400))
def test_a_file_that_is_no_context_binary_is_an_error(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "random.bin"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not a QNN context binary"):
        read_context_binary(path)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        read_context_binary(tmp_path / "none.bin")
