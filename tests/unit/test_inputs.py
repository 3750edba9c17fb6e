from __future__ import annotations

import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as some

from pytest_devicelab.errors import ModelError
from pytest_devicelab.runtimes.inputs import Arrays, listed, load_inputs, pack_inputs


def unpack(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        found = {}
        for member in tar.getmembers():
            assert member.isreg()
            file = tar.extractfile(member)
            assert file is not None
            found[member.name] = file.read()
    return found


def test_one_raw_file_a_sample_and_input(tmp_path: Path) -> None:
    arrays: Arrays = {
        "image": np.arange(12, dtype=np.float32).reshape(2, 2, 3),
        "mask": np.array([[1], [0]], dtype=np.uint8),
    }
    archive = pack_inputs(arrays, tmp_path)
    files = unpack(archive.path)
    assert archive.samples == 2
    assert files.pop("input_list.txt") == b"image:=0_0.raw mask:=0_1.raw\nimage:=1_0.raw mask:=1_1.raw\n"
    assert files == {
        "0_0.raw": np.arange(6, dtype="<f4").tobytes(),
        "0_1.raw": b"\1",
        "1_0.raw": np.arange(6, 12, dtype="<f4").tobytes(),
        "1_1.raw": b"\0",
    }


def test_bytes_are_little_endian_and_in_c_order(tmp_path: Path) -> None:
    plain = np.arange(12, dtype="<i4").reshape(2, 2, 3)
    odd: npt.NDArray[Any] = np.asfortranarray(plain.astype(">i4"))
    first, second = (
        unpack(pack_inputs({"x": plain}, tmp_path).path),
        unpack(pack_inputs({"x": odd}, tmp_path).path),
    )
    assert first == second
    assert first["1_0.raw"] == np.arange(6, 12, dtype="<i4").tobytes()


def test_the_same_arrays_give_the_same_archive(tmp_path: Path) -> None:
    arrays = {"x": np.ones((3, 4), np.float32)}
    first = pack_inputs(arrays, tmp_path / "one")
    again = pack_inputs(arrays, tmp_path / "one")
    other = pack_inputs(dict(arrays), tmp_path / "two")
    assert first == again
    assert first.sha256 == other.sha256
    assert list((tmp_path / "one").glob("*.tar")) == [first.path]


VARIANTS: list[Arrays] = [
    {"x": np.zeros((2, 4), np.float32)},
    {"y": np.zeros((2, 4), np.float32)},
    {"x": np.zeros((2, 4), np.int32)},
    {"x": np.zeros((2, 2, 2), np.float32)},
    {"x": np.zeros((1, 8), np.float32)},
    {"x": np.array([[0, 0, 0, -0.0]] * 2, np.float32)},
    {"x": np.zeros((2, 2), np.float32), "y": np.zeros((2, 2), np.float32)},
]


def test_other_arrays_never_share_an_archive(tmp_path: Path) -> None:
    assert len({pack_inputs(arrays, tmp_path).path for arrays in VARIANTS}) == len(VARIANTS)


def test_an_archive_that_was_cut_short_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {"x": np.ones((3, 4), np.float32)}

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "addfile", fail)
        with pytest.raises(KeyboardInterrupt):
            pack_inputs(arrays, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(unpack(pack_inputs(arrays, tmp_path).path)) == 4


NUMBERS = st.sampled_from(["<f4", "<f8", "<i8", "<u2", "i1", "?"])


@settings(deadline=None, max_examples=30)
@given(array=NUMBERS.flatmap(lambda dtype: some.arrays(dtype, some.array_shapes(max_dims=3, max_side=4))))
def test_what_is_packed_is_what_was_loaded(tmp_path_factory: pytest.TempPathFactory, array: Any) -> None:
    folder = tmp_path_factory.mktemp("inputs")
    np.savez(folder / "in.npz", x=array)
    archive = pack_inputs(load_inputs(folder / "in.npz"), folder)
    files = unpack(archive.path)
    back = b"".join(files[f"{sample}_0.raw"] for sample in range(archive.samples))
    assert back == array.tobytes()


# Loading


def test_samples_are_counted_from_the_first(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.arange(10).reshape(5, 2), y=np.arange(5))
    arrays = load_inputs(tmp_path / "in.npz", samples=2)
    assert arrays["x"].tolist() == [[0, 1], [2, 3]]
    assert arrays["y"].tolist() == [0, 1]


class Payload:
    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (Path("pickle-was-run"),)


def test_objects_are_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("in.npz", x=np.array([Payload()], dtype=object))
    Path("bare.npz").write_bytes(pickle.dumps(Payload()))
    for name in ("in.npz", "bare.npz"):
        with pytest.raises(ModelError, match="inputs cannot be read"):
            load_inputs(Path(name))
    assert not Path("pickle-was-run").exists()


def test_files_that_are_no_inputs(tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("x")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.savez(tmp_path / "whole.npz", x=np.zeros((100, 100)))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-300])
    damaged = bytearray((tmp_path / "whole.npz").read_bytes())
    damaged[5000] ^= 1
    (tmp_path / "damaged.npz").write_bytes(damaged)
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    for name in ("array.npy", "text.npz", "empty.npz", "cut.npz", "damaged.npz", "other.npz", "missing.npz"):
        with pytest.raises(ModelError, match=r"cannot be read|not numbers|no samples") as caught:
            load_inputs(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"x": np.float32(1)},
        {"x": np.zeros((0, 3))},
        {"x": np.zeros((2, 3)), "y": np.zeros((3, 3))},
        {"x": np.array(["a", "b"])},
    ],
)
def test_arrays_that_are_no_samples(tmp_path: Path, arrays: dict[str, Any]) -> None:
    np.savez(tmp_path / "in.npz", **arrays)
    with pytest.raises(ModelError):
        load_inputs(tmp_path / "in.npz")


@pytest.mark.parametrize("tampered", [b"", b"another archive"])
def test_an_archive_in_the_cache_that_was_changed_is_made_anew(tmp_path: Path, tampered: bytes) -> None:
    arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
    first = pack_inputs(arrays, tmp_path)
    genuine = first.path.read_bytes()
    first.path.write_bytes(tampered)
    assert pack_inputs(arrays, tmp_path) == first
    assert first.path.read_bytes() == genuine


def test_numbers_in_names_count_as_such(tmp_path: Path) -> None:
    """ExecuTorch's runners take files by their place: `input_10` is the eleventh, and not the third."""
    arrays: Arrays = {f"input_{number}": np.full((1, 1), number, np.uint8) for number in range(12)}
    files = unpack(pack_inputs(arrays, tmp_path).path)
    line = files["input_list.txt"].decode().split()
    assert [word.partition(":=")[0] for word in line] == [f"input_{number}" for number in range(12)]
    assert [files[word.partition(":=")[2]][0] for word in line] == list(range(12))


@given(st.lists(st.text(alphabet="ab019.", max_size=6), unique=True))
def test_the_order_of_inputs_is_one_whatever_it_was_before(names: list[str]) -> None:
    assert listed(names) == listed(reversed(names))
    assert sorted(listed(names)) == sorted(names)


def test_a_number_of_any_length_is_taken() -> None:
    long = "1" + "0" * 5000
    assert listed([f"a{long}", "a2", "a02"]) == ["a02", "a2", f"a{long}"]
