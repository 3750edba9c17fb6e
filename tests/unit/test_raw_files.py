from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_devicelab.evidence.record import Quantization
from pytest_devicelab.virtual.context_binary import TensorInfo
from pytest_devicelab.virtual.tools.raw_files import (
    RunnerError,
    dequantize,
    file_name,
    load_sample,
    quantize,
    read_input_list,
    result_files,
    results_folder,
    write_result,
)
from pytest_devicelab.virtual.tools.runner import vlog_enabled

HOW = Quantization(scale=0.5, zero_point=10, dtype="uint8")
INPUTS = (
    TensorInfo(name="a", dtype="float32", shape=(1, 2)),
    TensorInfo(name="b/c:0", dtype="uint8", shape=(2,), quantization=HOW),
)


@pytest.fixture(autouse=True)
def _on_a_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEVICELAB_VDEVICE", str(tmp_path / "device"))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_names_and_order_say_which_input_a_file_is(tmp_path: Path) -> None:
    path = write(tmp_path / "list", "%y\na:=1.raw b/c:0:=2.raw\n\nb_c_0:=4.raw a:=3.raw\n/data/5.raw 6.raw\n")
    found = read_input_list(path, INPUTS, ["x", "y"])
    assert found.outputs == ("y",)
    assert [(str(s["a"]), str(s["b/c:0"])) for s in found.samples] == [
        ("1.raw", "2.raw"),
        ("3.raw", "4.raw"),
        (str(tmp_path / "device/data/5.raw"), "6.raw"),
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "names no input files"),
        ("#y\n", "names no input files"),
        ("%z\n1 2\n", "outputs the graph does not have: z"),
        ("1\n", "no file for input b/c:0"),
        ("1 2 3\n", "no input for 3"),
        ("q:=1 2\n", "no input for q:=1"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(text: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match=why):
        read_input_list(write(tmp_path / "list", text), INPUTS, ["y"])


def test_a_missing_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match="Failed to open input list"):
        read_input_list(tmp_path / "none", INPUTS, ["y"])


def test_float_files_are_quantized_unless_they_are_native(tmp_path: Path) -> None:
    np.array([1.5, -2.5], "<f4").tofile(tmp_path / "a")
    np.array([0.25, 1e9], "<f4").tofile(tmp_path / "b")
    np.array([7, 8], np.uint8).tofile(tmp_path / "native")
    files = {"a": tmp_path / "a", "b/c:0": tmp_path / "b"}
    sample = load_sample(files, INPUTS, ())
    assert sample["a"].tolist() == [[1.5, -2.5]]
    assert sample["b/c:0"].tolist() == [11, 255]
    native = load_sample({**files, "b/c:0": tmp_path / "native"}, INPUTS, {"b/c:0"})
    assert native["b/c:0"].tolist() == [7, 8]


def test_a_file_of_the_wrong_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\0" * 9)
    with pytest.raises(RunnerError, match=r"has 9 bytes; input a takes 8 \(float32 \[1, 2\]\)"):
        load_sample({"a": tmp_path / "a"}, INPUTS[:1], ())
    with pytest.raises(RunnerError, match="Failed to open input file"):
        load_sample({"a": tmp_path / "none"}, INPUTS[:1], ())


def test_quantizing_rounds_ties_up_and_clamps() -> None:
    values = np.array([0.25, 0.75, -0.25, -1e30, 1e30, np.nan])
    assert quantize(values, HOW).tolist() == [11, 12, 10, 0, 255, 10]


@given(codes=st.lists(st.integers(0, 255), min_size=1), zero=st.integers(0, 255))
def test_codes_survive_a_round_trip(codes: list[int], zero: int) -> None:
    how = Quantization(scale=0.037, zero_point=zero, dtype="uint8")
    values = dequantize(np.array(codes, np.uint8), how)
    assert quantize(values.astype(np.float64), how).tolist() == codes


@given(name=st.text(min_size=1))
def test_a_file_name_never_leaves_its_folder(name: str) -> None:
    plain = file_name(name)
    assert Path(plain).name == plain
    assert not plain[0].isdigit()
    assert plain.isascii()


def test_file_names() -> None:
    assert file_name("/7") == "_7.raw"
    assert file_name("7", native=True) == "_7_native.raw"
    assert file_name("../../etc/passwd") == "______etc_passwd.raw"
    with pytest.raises(RunnerError, match="the same file name"):
        result_files(["a/b", "a.b"])


def test_results_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    files = result_files(["y"])
    with results_folder(out, ("Result_*", "profile.*")) as folder:
        for number in range(3):
            write_result(folder, number, {"y": np.arange(3, dtype=">i4")}, files)
        (folder / "profile.csv").write_text("1")
        assert not out.exists()
    assert (out / "Result_2/y.raw").read_bytes() == np.arange(3, dtype="<i4").tobytes()
    (out / "notes.txt").write_text("kept")
    with pytest.raises(ZeroDivisionError), results_folder(out, ("Result_*",)):
        raise ZeroDivisionError
    assert (out / "Result_2/y.raw").exists()
    with results_folder(out, ("Result_*", "profile.*")) as folder:
        write_result(folder, 0, {"y": np.zeros(1, np.uint8)}, files)
    assert sorted(entry.name for entry in out.iterdir()) == ["Result_0", "notes.txt"]
    assert [entry.name for entry in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("value", ["1", "all", "compilation", "model,execution", " driver:memory ", "x all"])
def test_vlog_on(value: str) -> None:
    assert vlog_enabled(value)


@pytest.mark.parametrize("value", ["", "0", "true", "verbose", "11"])
def test_vlog_off(value: str) -> None:
    assert not vlog_enabled(value)
