"""Tensor files: what is read from them, and what each damaged or hostile one is refused for."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from pytest_devicelab.audit.file_diff import FileDiff, diff_files
from pytest_devicelab.audit.tensor_files.folder import open_file
from pytest_devicelab.audit.tensor_files.source import TensorSource, TensorSpec
from pytest_devicelab.errors import TensorFileError, TensorMismatch
from pytest_devicelab.tensors.formats import FORMATS, codes_of

Array = npt.NDArray[np.generic]
NO_SPEC = TensorSpec()
VALUES = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def diff(reference: Path, observed: Path, **spec: object) -> FileDiff:
    number = FORMATS[str(spec.pop("dtype"))] if "dtype" in spec else None
    return diff_files(reference, observed, spec=TensorSpec(number=number, **spec))  # type: ignore[arg-type]


def read(source: TensorSource, elements: int = 10) -> list[int]:
    chunks = [chunk.copy() for chunk in source.chunks(elements)]
    assert all(chunk.size == elements for chunk in chunks[:-1])
    codes: list[int] = np.concatenate(chunks).tolist()
    return codes


def refused(file: Path, **spec: object) -> TensorFileError:
    def read_all() -> list[list[int]]:
        return [read(source) for source in open_file(file, TensorSpec(**spec))]  # type: ignore[arg-type]

    with pytest.raises(TensorFileError) as caught:
        read_all()
    assert caught.value.evidence["file"] == str(file)
    assert str(file) in caught.value.what
    assert caught.value.why
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize(
    "array",
    [
        VALUES,
        np.asfortranarray(VALUES),
        VALUES.astype(">f4"),
        np.asfortranarray(VALUES).astype(">f8"),
        np.array(3, np.int64),
        np.array([True, False]),
        np.zeros((3, 0), np.uint8),
    ],
)
def test_npy_is_read_in_c_order(tmp_path: Path, array: Array) -> None:
    np.save(tmp_path / "x.npy", array)
    np.savez_compressed(tmp_path / "x.npz", inner=array)
    for name, inner in (("x.npy", None), ("x.npz", "inner")):
        (source,) = open_file(tmp_path / name, NO_SPEC)
        assert (source.name, source.shape) == (inner, array.shape)
        if array.size:
            assert read(source) == codes_of(array).tolist()


def test_elements_numpy_has_no_name_for_need_one(tmp_path: Path) -> None:
    file = tmp_path / "x.npy"
    np.save(file, VALUES.astype(ml_dtypes.bfloat16))
    assert "--dtype bfloat16" in refused(file).fix
    (source,) = open_file(file, TensorSpec(number=FORMATS["bfloat16"]))
    assert read(source) == codes_of(VALUES.astype(ml_dtypes.bfloat16)).tolist()
    assert refused(file, number=FORMATS["float32"]).evidence["found"].endswith("V2")


def test_objects_and_records_are_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "x.npy"
    np.save(file, np.array([{"a": 1}], dtype=object))
    error = refused(file)
    assert "run the code" in error.why
    assert error.evidence["found"] == "object"
    np.savez(tmp_path / "x.npz", fine=VALUES, bad=np.array([None]))
    assert refused(tmp_path / "x.npz").evidence["tensor"] == "bad"
    np.save(file, np.zeros(2, [("a", "f4"), ("b", "i4")]))
    refused(file)
    for text in (np.array(["a"]), np.zeros(2, np.complex64)):
        np.save(file, text)
        assert refused(file).evidence["expected"] == list(FORMATS)
    file.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    assert "magic" in refused(file).why


@pytest.mark.parametrize("kept", [0, 5, 60, 127, 128, 130, 223])
def test_cut_off_npy_files_name_what_is_missing(tmp_path: Path, kept: int) -> None:
    file = tmp_path / "x.npy"
    np.save(file, VALUES)
    whole = file.read_bytes()
    assert len(whole) == 224
    file.write_bytes(whole[:kept])
    error = refused(file)
    if kept >= 128:  # the header is whole
        assert error.evidence["expected"] == "96 bytes"
        assert error.evidence["found"] == f"{kept - 128} bytes"
    file.write_bytes(whole + b"\0")
    assert refused(file).evidence["found"] == "more bytes"


def test_damaged_npz_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    np.savez(file, logits=VALUES)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "BadZipFile" in refused(file).why
    at = whole.index(VALUES.tobytes()) + 5
    file.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
    error = refused(file)
    assert "CRC" in error.why
    assert error.evidence["tensor"] == "logits"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "no tensor")
    refused(file)


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    data = io.BytesIO()
    np.save(data, VALUES)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", data.getvalue())
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.npy", data.getvalue())
    assert "same name" in refused(file).why


def test_raw_files_are_described_beside_or_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "logits.raw"
    file.write_bytes(VALUES.tobytes())
    assert "--dtype" in refused(file).fix
    (flat,) = open_file(file, TensorSpec(number=FORMATS["float32"]))
    assert (flat.shape, read(flat)) == ((24,), codes_of(VALUES).tolist())
    (tmp_path / "logits.raw.json").write_text(
        json.dumps({"dtype": "float32", "shape": [2, 3, 4], "scale": 0.5})
    )
    (source,) = open_file(file, NO_SPEC)
    assert (source.name, source.shape, source.scale) == (None, (2, 3, 4), 0.5)
    found = diff(file, file).tensors[0]
    assert (found.name, found.diff.max_lsb) == ("logits", 0.0)


def test_raw_nibbles_are_packed(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(bytes([0x21, 0xF3]))
    (tmp_path / "b.raw").write_bytes(bytes([0x21, 0x03]))
    spec = TensorSpec(number=FORMATS["int4"], shape=(4,))
    found = diff_files(tmp_path / "a.raw", tmp_path / "b.raw", spec=spec).tensors[0].diff
    assert (found.elements, found.bits_different, found.max_abs, found.max_lsb) == (4, 4, 1.0, 1.0)
    odd = TensorSpec(number=FORMATS["int4"], shape=(3,))
    assert diff_files(tmp_path / "a.raw", tmp_path / "b.raw", spec=odd).identical  # padding is no element


@pytest.mark.parametrize("size", [0, 95, 97, 100])
def test_raw_files_of_another_size_are_refused(tmp_path: Path, size: int) -> None:
    file = tmp_path / "x.raw"
    file.write_bytes(bytes(size))
    error = refused(file, number=FORMATS["float32"], shape=(2, 3, 4))
    assert (error.evidence["expected"], error.evidence["found"]) == ("96 bytes", f"{size} bytes")


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"dtype": "float31"}',
        '{"dtype": "int8", "shape": [-1]}',
        '{"dtype": "int8", "shape": [true]}',
        '{"dtype": "int8", "shape": 3}',
        '{"dtype": "int8", "scale": 0}',
        '{"dtype": "int8", "scale": NaN}',
        '{"dtype": "int8", "zero": 0}',
    ],
)
def test_mistakes_in_a_description_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.raw").write_bytes(b"\0")
    beside = tmp_path / "x.raw.json"
    beside.write_text(text)
    with pytest.raises(TensorFileError) as caught:
        open_file(tmp_path / "x.raw", NO_SPEC)
    assert caught.value.evidence["file"] == str(beside)


def hub_file(file: Path, tensors: dict[str, list[Array]], *, claimed: int | None = None) -> None:
    with h5py.File(file, "w") as opened:
        for index, (name, batches) in enumerate(tensors.items()):
            group = opened.create_group(f"data/{index}")
            count = len(batches) if claimed is None else claimed
            group.attrs.update(name=name, order=len(tensors) - index, batch_count=count)
            for number, batch in enumerate(batches):
                group.create_dataset(
                    f"batch_{number}", data=batch, compression="gzip" if batch.ndim else None
                )


def test_the_datasets_of_ai_hub_are_tensors_with_their_batches_in_a_row(tmp_path: Path) -> None:
    file = tmp_path / "x.h5"
    hub_file(file, {"logits": [VALUES, VALUES + 1], "mask": [np.array([[1]], np.uint8)]})
    sources = open_file(file, NO_SPEC)
    assert [(each.name, each.shape) for each in sources] == [("mask", (1, 1)), ("logits", (4, 3, 4))]
    expected = codes_of(np.concatenate([VALUES, VALUES + 1])).tolist()
    for elements in (2, 6, 10, 100):  # less than a row, rows, across batches, all
        assert read(sources[1], elements) == expected


def test_batches_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.h5"
    hub_file(file, {"logits": [VALUES, VALUES[:, :2]]})
    assert refused(file).evidence["tensor"] == "logits"
    hub_file(file, {"logits": [VALUES]}, claimed=2)
    assert "batch_1 is missing" in refused(file).why
    hub_file(file, {"logits": [VALUES]}, claimed=0)
    assert "there are none" in refused(file).why


def test_other_hdf5_files_have_a_tensor_a_dataset(tmp_path: Path) -> None:
    file = tmp_path / "x.h5"
    with h5py.File(file, "w") as opened:
        opened["net/out"] = VALUES
        opened["scalar"] = np.int16(7)
        opened["flags"] = np.array([True, False])
    sources = {each.name: each for each in open_file(file, NO_SPEC)}
    assert {name: each.number.name for name, each in sources.items()} == {
        "net/out": "float32",
        "scalar": "int16",
        "flags": "bool",
    }
    assert read(sources["net/out"], 4) == codes_of(VALUES).tolist()
    assert read(sources["scalar"]) == [7]


def test_hdf5_files_that_point_out_of_themselves_are_refused(tmp_path: Path) -> None:
    outside, file = tmp_path / "secret.h5", tmp_path / "x.h5"
    with h5py.File(outside, "w") as opened:
        opened["x"] = VALUES
    for link in (h5py.ExternalLink(str(outside), "x"), h5py.SoftLink("/y")):
        with h5py.File(file, "w") as opened:
            opened["x"] = link
            opened["y"] = VALUES
        assert "link" in refused(file).why
    with h5py.File(file, "w") as opened:
        opened.create_group("data")["0"] = h5py.ExternalLink(str(outside), "/")
    assert "link" in refused(file).why
    (tmp_path / "bytes").write_bytes(VALUES.tobytes())
    with h5py.File(file, "w") as opened:
        opened.create_dataset("x", VALUES.shape, "f4", external=[(str(tmp_path / "bytes"), 0, VALUES.nbytes)])
    assert "no data of this file" in refused(file).why


def test_damaged_hdf5_files_and_texts_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.h5"
    hub_file(file, {"logits": [VALUES]})
    whole = file.read_bytes()
    for kept in (0, 100, len(whole) - 500):
        file.write_bytes(whole[:kept])
        refused(file)
    with h5py.File(file, "w") as opened:
        opened["words"] = ["a", "b"]
    assert refused(file).evidence["tensor"] == "words"


def test_folders_are_matched_by_relative_name(tmp_path: Path) -> None:
    for side, values in (("ref", VALUES), ("obs", VALUES + 1)):
        (tmp_path / side / "sub").mkdir(parents=True)
        np.save(tmp_path / side / "same.npy", VALUES)
        np.savez(tmp_path / side / "sub" / "x.npz", a=values, b=VALUES)
        (tmp_path / side / "notes.txt").write_text("no tensor")
        np.save(tmp_path / side / f"only_{side}.npy", VALUES)
    np.savez(tmp_path / "obs" / "sub" / "x.npz", a=VALUES + 1)

    found = diff(tmp_path / "ref", tmp_path / "obs")

    assert {each.name: bool(each.diff) for each in found.tensors} == {"same.npy": True, "sub/x.npz:a": False}
    assert found.only_in_reference == ("only_ref.npy", "sub/x.npz:b")
    assert found.only_in_observed == ("only_obs.npy",)
    assert found.comparable
    assert not found.identical
    assert diff(tmp_path / "ref", tmp_path / "ref").identical


def test_one_bad_file_of_a_folder_leaves_the_others_compared(tmp_path: Path) -> None:
    for side in ("ref", "obs"):
        (tmp_path / side).mkdir()
        np.save(tmp_path / side / "a.npy", VALUES)
        np.save(tmp_path / side / "b.npy", VALUES)
    (tmp_path / "obs" / "b.npy").write_bytes(b"\x93NUMPY")
    found = diff(tmp_path / "ref", tmp_path / "obs")
    assert [each.name for each in found.tensors] == ["a.npy"]
    assert [each.name for each in found.not_comparable] == ["b.npy"]
    assert (found.comparable, found.identical) == (False, False)


def test_links_out_of_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ref").mkdir()
    np.save(tmp_path / "secret.npy", VALUES)
    (tmp_path / "ref" / "x.npy").symlink_to(tmp_path / "secret.npy")
    with pytest.raises(TensorFileError, match="link out of"):
        diff(tmp_path / "ref", tmp_path / "ref")


def test_a_tensor_without_a_name_goes_with_the_other_files_only_one(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", VALUES)
    np.savez(tmp_path / "two.npz", logits=VALUES)
    np.savez(tmp_path / "three.npz", logits=VALUES, more=VALUES)
    np.savez(tmp_path / "four.npz", scores=VALUES)
    assert diff(tmp_path / "one.npy", tmp_path / "two.npz").identical
    assert diff(tmp_path / "two.npz", tmp_path / "one.npy").tensors[0].name == "logits"
    assert not diff(tmp_path / "one.npy", tmp_path / "three.npz").comparable
    apart = diff(tmp_path / "two.npz", tmp_path / "four.npz")  # two names are two tensors
    assert (apart.tensors, apart.comparable, apart.identical) == ((), False, False)


def test_mismatches_name_both_sides(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=VALUES, y=VALUES)
    np.savez(tmp_path / "b.npz", x=VALUES[0], y=VALUES.astype(np.float64))
    found = diff(tmp_path / "a.npz", tmp_path / "b.npz")
    assert [each.what for each in found.not_comparable] == [
        "tensor x cannot be compared: expected float32 [2, 3, 4], found float32 [3, 4]",
        "tensor y cannot be compared: expected float32 [2, 3, 4], found float64 [2, 3, 4]",
    ]
    np.save(tmp_path / "empty.npy", VALUES[:0])
    assert "comparing nothing" in diff(tmp_path / "empty.npy", tmp_path / "empty.npy").not_comparable[0].why
    with pytest.raises(TensorMismatch, match="one is a folder"):
        diff(tmp_path, tmp_path / "a.npz")


def test_other_things_are_no_tensor_files(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("")
    assert refused(tmp_path / "x.txt").evidence["found"] == ".txt"
    assert "not exist" in refused(tmp_path / "none.npy").why
    (tmp_path / "d.npy").mkdir()
    assert "no file" in refused(tmp_path / "d.npy").why
