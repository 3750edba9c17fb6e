"""What .pte files say of themselves; the fixtures are by ExecuTorch's own serializers (fixtures/build_qnn_pte.py)."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_devicelab.errors import InfrastructureError, ModelError
from pytest_devicelab.matrix.soc import find_soc
from pytest_devicelab.matrix.specs import DeviceSpec, Source
from pytest_devicelab.runtimes.executorch import ExecutorchRuntime
from pytest_devicelab.runtimes.kit import Place
from pytest_devicelab.virtual.executorch_model import load_executorch
from pytest_devicelab.virtual.pte_file import PteDelegate, read_pte

FIXTURES = Path(__file__).parents[2] / "fixtures"
CPU, QNN = FIXTURES / "digits_cnn/float.pte", FIXTURES / "pte/qnn_sm8550.pte"
INLINE, OPEN = FIXTURES / "pte/qnn_sm8650_inline.pte", FIXTURES / "pte/open_shape.pte"


def place(kind: str, soc: str | None) -> Place:
    source = Source(file="m.yaml", line=1, column=1)
    spec = DeviceSpec(id="d", kind=kind, source=source)
    return Place(
        spec=spec, soc=find_soc(soc)[0] if soc else None, abis=("arm64-v8a",), folder="/kit", sdk=None
    )


@pytest.mark.parametrize("path", [CPU, QNN, INLINE])
def test_inputs_and_outputs(path: Path) -> None:
    program = read_pte(path)
    assert [(each.name, each.dtype, each.shape) for each in (*program.inputs, *program.outputs)] == [
        ("input_0", "float32", (1, 1, 8, 8)),
        ("output_0", "float32", (1, 10)),
    ]


def test_what_a_program_was_lowered_for() -> None:
    assert read_pte(CPU).delegates == (PteDelegate(backend="XnnpackBackend"),)
    assert read_pte(CPU).qnn is None
    # The context binary lies in a segment behind the program in one, and inside of the program in the other.
    assert str(read_pte(QNN).qnn) == "QnnBackend for SM8550 (Hexagon V73), made with QAIRT 2.46.0"
    assert str(read_pte(INLINE).qnn) == "QnnBackend for SM8650 (Hexagon V75), made with QAIRT 2.46.0"
    assert "QNN chip 9999" in str(PteDelegate(backend="QnnBackend", soc_model=9999))


def test_an_open_shape_is_refused_before_anything_is_started() -> None:
    with pytest.raises(ModelError, match="the shape of input_0 is open"):
        ExecutorchRuntime().declared_inputs(OPEN)


@pytest.mark.parametrize("length", [0, 7, 40, 200, 900, 1700, 1900])
def test_a_file_that_was_cut_short(tmp_path: Path, length: int) -> None:
    path = tmp_path / "cut.pte"
    path.write_bytes(QNN.read_bytes()[:length])
    with pytest.raises(ModelError, match="not an ExecuTorch program"):
        read_pte(path)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1919), st.integers(0, 255)), min_size=1, max_size=40))
def test_a_damaged_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(QNN.read_bytes())
    for position, value in changes:
        data[position % len(data)] = value
    path = tmp_path_factory.getbasetemp() / "damaged.pte"
    path.write_bytes(data)
    try:
        program = read_pte(path)
    except ModelError:
        return
    for tensor in (*program.inputs, *program.outputs):
        assert tensor.size_bytes >= 0
    assert all(
        str(delegate).isprintable() or delegate.backend != "QnnBackend" for delegate in program.delegates
    )


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, tail: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.pte"
    path.write_bytes(tail[:4].ljust(4, b"\0") + b"ET12" + tail[4:])
    with pytest.raises(ModelError):
        read_pte(path)


def test_a_program_for_qnn_needs_no_executorch_to_be_prepared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda name: pytest.fail(f"imported {name}"))
    runtime = ExecutorchRuntime()
    assert set(runtime.declared_inputs(QNN)) == {"input_0"}
    prepared = runtime.prepare(QNN, None, {}, backend="cpu", cache=tmp_path)
    assert (prepared.backend, prepared.versions) == ("htp", {"qairt": "2.46.0"})
    assert [output.shape for output in prepared.outputs or ()] == [(1, 10)]


@pytest.mark.parametrize(
    ("kind", "soc", "said"),
    [
        (
            "adb",
            "SM8650",
            r"lowered to QnnBackend for SM8550 \(Hexagon V73\).*the device is SM8650, Hexagon V75",
        ),
        ("adb", "Tensor G4", r"lowered to QnnBackend for SM8550 .*Hexagon none"),
        ("adb", None, r"the device is a chip nobody knows"),
        ("virtual", "SM8550", r"lowered for QNN, which a virtual device does not run"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_pushed(
    tmp_path: Path, kind: str, soc: str | None, said: str
) -> None:
    runtime = ExecutorchRuntime()
    prepared = runtime.prepare(QNN, None, {}, backend="cpu", cache=tmp_path)
    with pytest.raises(InfrastructureError, match=said):
        runtime.kit(prepared, place(kind, soc))


def test_what_fits_needs_nothing_beside_it(tmp_path: Path) -> None:
    runtime = ExecutorchRuntime()
    for path, kind, soc in [(QNN, "adb", "SM8550"), (INLINE, "adb", "SM8650")]:
        assert (
            runtime.kit(runtime.prepare(path, None, {}, backend="cpu", cache=tmp_path), place(kind, soc))
            is None
        )


def test_only_a_context_binary_binds_a_program_to_one_hexagon(tmp_path: Path) -> None:
    framed, runtime = b"\xcd\xab\x78\x56", ExecutorchRuntime()
    assert QNN.read_bytes().count(framed) == 1
    path = tmp_path / "other.pte"
    # Older versions of ExecuTorch put the context binary in without a frame.
    path.write_bytes(QNN.read_bytes().replace(framed, b"\0\0\0\2"))
    with pytest.raises(InfrastructureError, match="lowered for another NPU"):
        runtime.kit(runtime.prepare(path, None, {}, backend="cpu", cache=tmp_path), place("adb", "SM8650"))
    # What QNN prepares on the device is no context binary, and its SDK's version is not known.
    path.write_bytes(QNN.read_bytes().replace(framed, b"PK\3\4"))
    prepared = runtime.prepare(path, None, {}, backend="cpu", cache=tmp_path)
    assert prepared.versions == {}
    assert runtime.kit(prepared, place("adb", "SM8650")) is None


def test_the_wheels_runtime_is_not_asked_to_run_what_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loaded:
        def get(self) -> Any:
            pytest.fail("ExecuTorch's runtime was given a program for QNN")

    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(Runtime=Loaded()))
    with pytest.raises(ModelError, match=r"lowered for QNN(?s:.*)computes on the CPU"):
        load_executorch(QNN)
    with pytest.raises(ModelError, match="lowered for QNN"):
        ExecutorchRuntime().run_on_host(QNN, {"input_0": np.zeros((1, 1, 8, 8), np.float32)})
