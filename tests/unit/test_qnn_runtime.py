from __future__ import annotations

from pathlib import Path

import pytest

from pytest_devicelab.errors import ModelError, TransferError
from pytest_devicelab.runtimes.qnn import QnnRuntime
from pytest_devicelab.runtimes.runtime import Job, Leftovers, Prepared

COLUMNS = b"Message,Time,Unit of Measurement,Event Identifier\n"


@pytest.mark.parametrize(
    "profile",
    [
        b"some,other\n1,2\n",
        COLUMNS + b"NODE,many,CYCLES,conv:OpId_1 (cycles)\n",
        COLUMNS + b"NODE,1,CYCLES\n",
        COLUMNS + b'NODE,"' + b"1" * 200_000 + b'",CYCLES,conv\n',
    ],
    ids=["other columns", "no number", "a column short", "a huge field"],
)
def test_a_profile_that_cannot_be_read_is_the_labs_failure(tmp_path: Path, profile: bytes) -> None:
    prepared = Prepared(file=tmp_path / "context.bin", outputs=(), options={})
    assert QnnRuntime().read_leftovers(prepared, tmp_path) == Leftovers()
    (tmp_path / "qnn-profiling-data_0.csv").write_bytes(profile)
    with pytest.raises(TransferError, match="not an op profile"):
        QnnRuntime().read_leftovers(prepared, tmp_path)


def test_native_inputs_are_named_with_their_graph() -> None:
    job = Job(model="/m", input_list="l", output_dir="/o", log_level="warn", backend="htp")
    prepared = Prepared(
        file=Path("m"), outputs=(), options={}, native_inputs=("ids", "mask"), graphs=("g_1",)
    )
    assert "--native_input_tensor_names=g_1:ids,mask" in QnnRuntime().command(prepared, job)


@pytest.mark.parametrize(("dtype", "fits"), [("UINT8", False), ("FLOAT", True)])
def test_a_name_that_would_end_the_list_of_native_inputs_is_refused(
    tmp_path: Path, dtype: str, fits: bool
) -> None:
    onnx = pytest.importorskip("onnx")
    element = getattr(onnx.TensorProto, dtype)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["a;b"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("a;b", element, [1, 2])],
        [onnx.helper.make_tensor_value_info("y", element, [1, 2])],
    )
    onnx.save(onnx.helper.make_model(graph), tmp_path / "m.onnx")
    if fits:
        assert set(QnnRuntime().declared_inputs(tmp_path / "m.onnx")) == {"a;b"}
    else:
        with pytest.raises(ModelError, match="cannot be written into an input list"):
            QnnRuntime().declared_inputs(tmp_path / "m.onnx")
