"""Names chosen by an enemy: whatever they hold, they are one word to a shell, one file in its folder, or refused."""

from __future__ import annotations

import os
import shlex
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pytest_devicelab.devices.slots import slot_name
from pytest_devicelab.errors import ModelError
from pytest_devicelab.matrix.decode_device import ID
from pytest_devicelab.runtimes.inputs import pack_inputs
from pytest_devicelab.runtimes.names import file_problem, require_listable
from pytest_devicelab.runtimes.registry import find_runtime
from pytest_devicelab.runtimes.runtime import Job, OutputFile, Prepared
from pytest_devicelab.virtual.context_binary import TensorInfo
from pytest_devicelab.virtual.tools.raw_files import file_name, read_input_list, told_files

_SHARP = [
    *" '\"`$;&|<>(){}[]*?~#!%\\/.,:=-\n\r\t\0\x07\x1b\x7f\u202e\u2066\u200b\u2028é\u0301",
    *(
        "..",
        "../",
        "$(touch pwned)",
        "`touch pwned`",
        "${IFS}",
        "; touch pwned #",
        ":=",
        "-rf",
        "é" * 130,
        "x" * 256,
    ),
]
NAMES = st.lists(st.sampled_from(_SHARP) | st.characters(codec="utf-8"), min_size=1, max_size=12).map("".join)
"""Names as a file, a tensor, a node or an option may have: text that UTF-8 can hold."""
FILE_NAMES = NAMES.map(
    lambda name: name.replace("/", "").replace("\0", "").encode()[:250].decode(errors="ignore") or "x"
)
"""Names that a file on this machine can have."""


@settings(deadline=None)
@given(FILE_NAMES)
def test_a_files_slot_holds_it_under_a_plain_name(name: str) -> None:
    found = slot_name(name)
    assert found not in ("", ".", "..")
    assert os.path.basename(found) == found  # noqa: PTH119 - a device's path, as text
    assert all(char.isalnum() or char in "._-" for char in found)
    assert len(found.encode()) <= 255


@pytest.fixture(scope="module")
def printer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runner that prints each of its arguments, and does nothing else."""
    path = tmp_path_factory.mktemp("bin") / "printer"
    path.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("runtime", ["qnn", "ort", "litert", "executorch"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(model="-rf $(touch pwned)`touch pwned`;\n'\"", option="1;touch pwned")
@given(model=FILE_NAMES, option=NAMES.filter(lambda text: "\0" not in text))
def test_a_shell_hands_each_word_on_as_it_is(
    printer: Path, tmp_path: Path, runtime: str, model: str, option: str
) -> None:
    """The command line of a run, joined as `lab/capture.py` joins it, in a real shell."""
    (tmp_path / "list").write_text("x:=0.raw\n")
    job = Job(
        model=f"/slots/0/{model}",
        input_list="list",
        output_dir=str(tmp_path / "out dir;'"),
        log_level="warn",
        backend="htp",
        kit_folder=f"/kit {model}",
        program=str(printer),
    )
    prepared = Prepared(
        file=Path("m"),
        outputs=(),
        options={"vtcm_mb": option},
        native_inputs=("a'b;$(touch${IFS}pwned)",),
        graphs=("g;`id`",),
    )
    command = find_runtime(runtime).command(prepared, job)
    done = subprocess.run(
        ["/bin/sh", "-c", f"cd {shlex.quote(str(tmp_path))} && exec {shlex.join(command)}"],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    printed = [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]]
    if runtime == "executorch":
        assert printed[0] == f"--model_path={job.model}"
    else:
        assert printed == [os.fsdecode(os.fsencode(word)) for word in command[1:]]
    assert {entry.name for entry in tmp_path.iterdir()} <= {"list", "out dir;'"}


@settings(deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=5, unique=True))
def test_outputs_get_files_of_their_own_in_the_folder_of_results(names: list[str]) -> None:
    files = told_files(names)
    assert len(set(files.values())) == len(names)
    for name, file in files.items():
        assert OutputFile(name=name, file=file, dtype="float32", shape=(1,)).file == file  # refuses any other
        assert len(file) <= 255
    # Of qnn-net-run's names it is known beforehand whether they will do.
    if not file_problem(names):
        assert len({file_name(name, native=True) for name in names}) == len(names)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(names=["../$(touch${IFS}pwned)", "a'b;`id`", "-rf", 'é"=&|>pwned'])
@given(names=st.lists(NAMES, min_size=1, max_size=4, unique=True))
def test_an_input_list_says_what_was_meant_or_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    monkeypatch.setenv("DEVICELAB_VDEVICE", str(tmp_path))
    try:
        require_listable(Path("m"), names, (":", ","))
    except ModelError:
        return
    arrays = {name: np.full((2, 1), number, np.float32) for number, name in enumerate(names)}
    archive = pack_inputs(arrays, tmp_path)
    with tarfile.open(archive.path) as tar:
        assert all(
            entry.isfile() and "/" not in entry.name and not entry.name.startswith((".", "-"))
            for entry in tar
        )
        tar.extractall(tmp_path, filter="data")
    listed = read_input_list(
        tmp_path / "input_list.txt",
        [TensorInfo(name=name, dtype="float32", shape=(1,)) for name in names],
        ["y"],
    )
    for sample in listed.samples:
        assert {name: np.fromfile(tmp_path / path, np.float32)[0] for name, path in sample.items()} == {
            name: number for number, name in enumerate(names)
        }


@settings(deadline=None)
@given(NAMES)
@example("a\n")
@example("É")
@example("..")
def test_an_id_of_the_matrix_is_a_plain_name(name: str) -> None:
    if ID.fullmatch(name):
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.")
        assert not name.startswith(".")


def test_an_output_that_may_take_anothers_native_file_is_refused() -> None:
    assert "would share a file" in file_problem(["a", "a_native"])
    assert file_problem(["a", "b_native"]) == ""
