"""`devicelab diff`: exit status, what it prints, and how much memory it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_devicelab.cli import main

LOGITS = (np.arange(40, dtype=np.float32) / 4 - 5).reshape(4, 10)


@pytest.fixture
def changed() -> np.ndarray[Any, Any]:
    values: np.ndarray[Any, Any] = LOGITS.copy()
    values[2, 3] += 0.5
    return values


def test_identical_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "a.npy", LOGITS)
    assert main(["diff", str(tmp_path / "a.npy"), str(tmp_path / "a.npy")]) == 0
    assert "Identical: no bit differs in 40 elements of 1 tensor." in capsys.readouterr().out


def test_different_files_as_a_table_and_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: np.ndarray[Any, Any]
) -> None:
    np.savez(tmp_path / "a.npz", logits=LOGITS, ids=np.arange(3, dtype=np.int8))
    np.savez(tmp_path / "b.npz", logits=changed, ids=np.arange(3, dtype=np.int8))
    assert main(["diff", str(tmp_path / "a.npz"), str(tmp_path / "b.npz"), "--lsb", "0.25"]) == 1
    head, logits, ids, sentence = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["tensor", "dtype", "shape", "different"]
    assert logits.split()[:6] == ["logits", "float32", "4x10", "1", "of", "40"]
    assert "0 of 3" in ids
    assert sentence.startswith("Different: 1 tensor of 2 differs; logits would have passed with an absolute")
    assert " 2 LSB or " in sentence


def test_json_holds_the_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: np.ndarray[Any, Any]
) -> None:
    np.save(tmp_path / "a.npy", LOGITS)
    np.save(tmp_path / "b.npy", changed)
    assert main(["diff", str(tmp_path / "a.npy"), str(tmp_path / "b.npy"), "--lsb", "0.25", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["identical"] is False
    (tensor,) = data["tensors"]
    named = {
        *("name", "dtype", "shape", "elements", "elements_different", "bits_different", "max_ulp", "max_lsb"),
        *("max_abs", "sqnr_db", "cosine", "psnr_db", "tolerance", "spread", "top_k", "bit_histogram"),
    }
    assert named <= tensor.keys()
    assert (tensor["name"], tensor["dtype"], tensor["shape"]) == ("a", "float32", [4, 10])
    assert (tensor["elements"], tensor["elements_different"], tensor["max_abs"]) == (40, 1, 0.5)
    assert (tensor["max_lsb"], tensor["tolerance"]["lsb"]) == (2.0, 2.0)
    assert tensor["bits_different"] == sum(tensor["bit_histogram"]) > 0
    assert tensor["top_k"][0] == {"k": 1, "samples": 4, "agreement": 1.0}


def test_json_has_no_bare_infinity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "a.npy", np.ones(3))
    np.save(tmp_path / "b.npy", np.array([1, np.nan, np.inf]))
    assert main(["diff", str(tmp_path / "a.npy"), str(tmp_path / "b.npy"), "--json"]) == 1
    (tensor,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["tensors"]
    assert (tensor["max_abs"], tensor["sqnr_db"], tensor["max_ulp"]) == ("Infinity", "-Infinity", None)


@pytest.mark.parametrize("as_json", [True, False])
def test_what_cannot_be_compared_exits_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    np.savez(tmp_path / "a.npz", logits=LOGITS)
    np.savez(tmp_path / "b.npz", scores=LOGITS)
    np.savez(tmp_path / "c.npz", logits=LOGITS[:2])
    (tmp_path / "d.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:100])
    for observed in ("b.npz", "c.npz", "d.npz", "none.npz"):
        status = main(
            ["diff", str(tmp_path / "a.npz"), str(tmp_path / observed), *(["--json"] if as_json else [])]
        )
        said = capsys.readouterr()
        assert status == 2, observed
        if as_json:
            assert json.loads(said.out)["identical"] is False
        else:
            assert "ot comparable" in said.out or "cannot be compared" in said.err


def test_a_tensor_on_one_side_only_is_a_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "a.npz", logits=LOGITS, more=LOGITS)
    np.savez(tmp_path / "b.npz", logits=LOGITS)
    assert main(["diff", str(tmp_path / "a.npz"), str(tmp_path / "b.npz")]) == 1
    out = capsys.readouterr().out
    assert "only in the reference: more" in out
    assert "1 tensor is on one side only; what both have is identical." in out


def test_names_from_files_do_not_reach_the_terminal_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named: dict[str, Any] = {"x\x1b[2J": LOGITS, "y": LOGITS}
    np.savez(tmp_path / "a.npz", **named)
    np.savez(tmp_path / "b.npz", y=LOGITS)
    assert main(["diff", str(tmp_path / "a.npz"), str(tmp_path / "b.npz")]) == 1
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("mistake", [["--lsb", "0"], ["--shape", "1,x"], ["--dtype", "float31"]])
def test_mistakes_in_options_exit_2(tmp_path: Path, mistake: list[str]) -> None:
    np.save(tmp_path / "a.npy", LOGITS)
    try:
        status = main(["diff", str(tmp_path / "a.npy"), str(tmp_path / "a.npy"), *mistake])
    except SystemExit as exit_:  # argparse
        status = int(exit_.code or 0)
    assert status == 2


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--lsb", "-1", "'-1' is no quantization step: it takes a number above 0"),
        ("--lsb", "one", "'one' is no quantization step: it takes a number above 0"),
        ("--shape", "1,x", "'1,x' is no shape: it takes sizes from 0 on, such as 1,10"),
    ],
)
def test_a_mistake_in_an_option_says_what_it_takes(
    option: str, value: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["diff", "a.npy", "b.npy", option, value])
    assert words in capsys.readouterr().err


def test_tensors_that_do_not_fit_are_named_with_what_was_expected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "a.npz", logits=LOGITS)
    np.savez(tmp_path / "c.npz", logits=LOGITS[:2])
    assert main(["diff", str(tmp_path / "a.npz"), str(tmp_path / "c.npz")]) == 2
    assert (
        f"not comparable: logits: expected float32 [4, 10] as in {tmp_path / 'a.npz'}, "
        f"found float32 [2, 10] in {tmp_path / 'c.npz'}\n"
    ) in capsys.readouterr().out


def test_a_path_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "there"
    there.mkdir()
    for pair in ((there, tmp_path / "none"), (tmp_path / "none", there), (tmp_path / "none", tmp_path)):
        assert main(["diff", *map(str, pair)]) == 2
        said = capsys.readouterr().err
        assert f"{tmp_path / 'none'}: cannot be compared\n  why: it does not exist" in said


def test_a_lone_nan_passes_no_tolerance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "a.npy", np.ones(3))
    np.save(tmp_path / "b.npy", np.array([1, np.nan, 1]))
    assert main(["diff", str(tmp_path / "a.npy"), str(tmp_path / "b.npy")]) == 1
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == "Different: 1 tensor of 1 differs; a would not have passed with any tolerance."


def test_files_larger_than_the_memory_allowed_are_compared_in_it(tmp_path: Path) -> None:
    size = 400 << 20  # each; sparse, with a stretch of numbers in the middle
    numbers = np.random.default_rng(0).normal(size=4 << 20).astype(np.float32)
    for name, values in (("a.raw", numbers), ("b.raw", numbers * np.float32(1.001))):
        with (tmp_path / name).open("wb") as file:
            file.seek(size // 2)
            file.write(values.tobytes())
            file.truncate(size)
    # Not getrusage, whose peak is also that of the process this one was forked from.
    program = (
        "import re, sys; from pytest_devicelab.cli import main; status = main(sys.argv[1:]); "
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]); sys.exit(status)"
    )
    command = [sys.executable, "-c", program, "diff", "a.raw", "b.raw", "--dtype", "float32", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    found, peak_kb = done.stdout.splitlines()
    assert 4_000_000 < json.loads(found)["tensors"][0]["elements_different"] <= 4 << 20
    assert int(peak_kb) < 300 * 1024
