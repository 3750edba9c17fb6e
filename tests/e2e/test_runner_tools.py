from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pytest_devicelab.matrix.soc import find_soc
from pytest_devicelab.matrix.specs import DeviceSpec, Source
from pytest_devicelab.runtimes.compile import compile_context
from pytest_devicelab.virtual import image, properties
from pytest_devicelab.virtual.logd import LogDaemon

FIXTURES = Path(__file__).parents[2] / "fixtures"
CNN = FIXTURES / "digits_cnn" / "int8.onnx"
CHANNEL_NORM = FIXTURES / "digits_channelnorm" / "int8.onnx"
TMP = "/data/local/tmp"
SAMPLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Phone:
    """A virtual device without its adbd: its folder, and its log daemon in a thread."""

    root: Path

    @property
    def tmp(self) -> Path:
        return self.root / "data/local/tmp"

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        program = str(self.root / "system/bin" / argv[0])
        return subprocess.run(
            [program, *argv[1:]],
            env=image.environment(self.root),
            cwd=self.tmp,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def net_run(self, *more: str, context: str = "model.bin") -> subprocess.CompletedProcess[str]:
        return self.run(
            *("qnn-net-run", "--retrieve_context", f"{TMP}/{context}", "--backend", "libQnnHtp.so"),
            *("--input_list", f"{TMP}/list.txt", "--output_dir", f"{TMP}/out", *more),
        )

    def ort_run(self, *more: str, model: str = "model.onnx") -> subprocess.CompletedProcess[str]:
        return self.run(
            *("ort-run", "--model", f"{TMP}/{model}", "--input_list", f"{TMP}/list.txt"),
            *("--output_dir", f"{TMP}/out", *more),
        )

    def result(self, number: int, file: str = "logits.raw", dtype: str = "<f4") -> npt.NDArray[Any]:
        return np.fromfile(self.tmp / "out" / f"Result_{number}" / file, dtype)

    def json(self, name: str) -> Any:
        return json.loads((self.tmp / "out" / name).read_text())

    def logcat(self) -> str:
        return self.run("logcat", "-d").stdout


def make_phone(root: Path, soc: str, engine: str = "htp") -> Phone:
    chip = find_soc(soc)[0]
    place = Source(file="m", line=1, column=1)
    image.build_image(DeviceSpec(id="phone", kind="virtual", source=place, soc=chip, engine=engine), root)
    phone = Phone(root=root)
    images = np.load(FIXTURES / "digits_eval.npz", allow_pickle=False)["image"]
    for number in range(SAMPLES):
        images[number : number + 1].tofile(phone.tmp / f"{number}.raw")
    lines = [f"image:={TMP}/{number}.raw\n" for number in range(SAMPLES)]
    (phone.tmp / "list.txt").write_text("".join(lines))
    (phone.tmp / "model.onnx").write_bytes(CNN.read_bytes())
    (phone.tmp / "norm.onnx").write_bytes(CHANNEL_NORM.read_bytes())
    return phone


@pytest.fixture(scope="session")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    cache = tmp_path_factory.mktemp("cache")
    socs = ("SM8650", "SM8450")
    return {soc: compile_context(CNN, find_soc(soc)[0], {}, cache).path.read_bytes() for soc in socs}


@pytest.fixture
def phone(tmp_path: Path, contexts: dict[str, bytes]) -> Phone:
    phone = make_phone(tmp_path / "phone", "SM8650")
    (phone.tmp / "model.bin").write_bytes(contexts["SM8650"])
    (phone.tmp / "other.bin").write_bytes(contexts["SM8450"])
    return phone


@pytest.fixture
def log(phone: Phone) -> Iterator[None]:
    """The phone's log daemon."""
    loop = asyncio.new_event_loop()
    daemon = LogDaemon(phone.root)
    loop.run_until_complete(daemon.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield
    asyncio.run_coroutine_threadsafe(daemon.close(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_both_runners_write_the_same_bits(phone: Phone) -> None:
    done = phone.net_run()
    assert done.returncode == 0, done.stdout
    assert listing(phone.tmp / "out") == [f"Result_{number}/logits.raw" for number in range(SAMPLES)]
    from_context = [phone.result(number) for number in range(SAMPLES)]
    assert phone.ort_run().returncode == 0
    for number, expected in enumerate(from_context):
        assert phone.result(number).tobytes() == expected.tobytes()
        assert expected.shape == (10,)
    assert len({array.tobytes() for array in from_context}) == SAMPLES


def test_ort_run_describes_what_it_wrote(phone: Phone) -> None:
    done = phone.ort_run("--profile", "--repeat", "2", "--placement", f"{TMP}/where.json")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert phone.json("outputs.json") == [
        {"name": "logits", "file": "logits.raw", "dtype": "float32", "shape": [1, 10], "quantization": None}
    ]
    assert {"onnxruntime", "onnxruntime-qnn"} <= set(phone.json("versions.json"))
    assert {node["unit"] for node in phone.json("placement.json")} == {"htp"}
    assert json.loads((phone.tmp / "where.json").read_text()) == phone.json("placement.json")
    assert any(source.startswith("Conv:") for row in phone.json("ops.json") for source in row["sources"])
    assert (phone.tmp / "out/profile.csv").read_text().startswith("Msg Timestamp,")
    for number in range(SAMPLES):
        assert phone.result(number).tobytes() == phone.result(number + SAMPLES).tobytes()
    assert phone.ort_run().returncode == 0
    assert not (phone.tmp / "out/profile.csv").exists()
    assert not (phone.tmp / f"out/Result_{SAMPLES}").exists()


def test_ort_run_shows_a_fallback_and_strict_refuses_it(phone: Phone) -> None:
    assert phone.ort_run(model="norm.onnx").returncode == 0
    on_cpu = [node for node in phone.json("placement.json") if node["unit"] == "cpu"]
    assert "LayerNormalization" in {node["op"] for node in on_cpu}
    before = listing(phone.tmp / "out")
    done = phone.ort_run("--strict", model="norm.onnx")
    assert done.returncode == 1
    assert "LayerNormalization" in done.stderr
    assert "last axis" in done.stderr
    assert listing(phone.tmp / "out") == before


def test_ort_run_on_the_cpu(tmp_path: Path) -> None:
    phone = make_phone(tmp_path / "pixel", "Tensor G4", engine="cpu")
    assert phone.ort_run(model="norm.onnx").returncode == 0
    assert {node["unit"] for node in phone.json("placement.json")} == {"cpu"}
    done = phone.ort_run("--ep", "qnn")
    assert done.returncode == 1
    assert "has no NPU here" in done.stderr


def test_the_cpu_of_a_phone_with_an_npu(phone: Phone) -> None:
    assert phone.ort_run("--ep", "cpu").returncode == 0
    assert {node["unit"] for node in phone.json("placement.json")} == {"cpu"}


def test_native_files(phone: Phone) -> None:
    done = phone.net_run("--use_native_input_files", "--output_data_type", "float_and_native")
    assert done.returncode == 0, done.stdout
    files = {Path(name).name for name in listing(phone.tmp / "out")}
    assert files == {"logits.raw"}, "float32 is not called native"


def test_inferences_go_round_the_list(phone: Phone) -> None:
    assert phone.net_run("--num_inferences", "5", "--keep_num_outputs", "4").returncode == 0
    assert len(listing(phone.tmp / "out")) == 4
    assert phone.result(3).tobytes() == phone.result(0).tobytes()


def test_profile_of_qnn_net_run(phone: Phone) -> None:
    assert phone.net_run("--profiling_level", "detailed").returncode == 0
    profile = phone.tmp / "out/qnn-profiling-data_0.csv"
    assert ",NODE," in profile.read_text()
    assert (phone.tmp / "out/qnn-profiling-data_0.log").stat().st_size > 0
    assert phone.net_run("--profiling_level", "basic").returncode == 0
    assert ",NODE," not in profile.read_text()
    assert ",EXECUTE," in profile.read_text()
    assert phone.net_run().returncode == 0
    assert not profile.exists()


def test_the_console_says_as_much_as_it_is_asked_for(phone: Phone) -> None:
    quiet = phone.net_run("--log_level", "error")
    loud = phone.net_run("--log_level", "verbose")
    assert "QnnGraph_execute" not in quiet.stdout
    assert "[VERBOSE]" in loud.stdout
    assert "QnnGraph_execute done" in loud.stdout


@pytest.mark.usefixtures("log")
def test_vlog_changes_what_reaches_logcat(phone: Phone) -> None:
    assert phone.net_run().returncode == 0
    silent = phone.logcat()
    assert " W QnnDsp" in silent
    assert " V QnnDsp" not in silent
    properties.set(phone.root, "debug.nn.vlog", "all")
    assert phone.net_run().returncode == 0
    assert " V QnnDsp" in phone.logcat()


@pytest.mark.usefixtures("log")
def test_a_refusal_reaches_logcat_with_the_runtime_s_reason(phone: Phone) -> None:
    done = phone.ort_run("--strict", "--log_level", "verbose", model="norm.onnx")
    assert done.returncode == 1
    said = phone.logcat()
    assert "V onnxruntime: [V:onnxruntime:" in said
    assert "Validation FAILED" in said
    assert "REASON : " in said
    assert "E ort-run : not the whole graph runs on the NPU" in said


def test_a_context_of_another_hexagon_is_refused(phone: Phone) -> None:
    done = phone.net_run(context="other.bin")
    assert done.returncode == 1
    assert "made for V69" in done.stdout
    assert "5005" in done.stdout
    assert not (phone.tmp / "out").exists()


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--foo"], "unrecognized arguments: --foo"),
        (["--model", "libmodel.so"], "--model is not supported on a virtual device"),
        (["--duration", "3"], "--duration is not supported"),
        (["--backend", "libQnnGpu.so"], "has libQnnHtp.so only"),
        (["--num_inferences", "0"], "takes a number of at least 1"),
        (["--profiling_level", "loud"], "invalid choice: 'loud'"),
        (["--config_file", f"{TMP}/none.json"], "Failed to read config file"),
        (["--retrieve_context", f"{TMP}/none.bin"], "Could not create context from binary"),
        (["--retrieve_context", f"{TMP}/model.onnx"], "not a QNN context binary"),
        (["--input_list", f"{TMP}/none.txt"], "Failed to open input list"),
        (["--input_list", f"{TMP}/gone.txt"], "Failed to open input file"),
        (["--input_list", f"{TMP}/short.txt"], "has 8 bytes; input image takes 256"),
        (["--native_input_tensor_names", "g:image"], "takes GRAPH:A,B; the graph is "),
        (["--native_input_tensor_names", "image"], "takes GRAPH:A,B; the graph is "),
    ],
)
def test_qnn_net_run_refuses_and_leaves_nothing(more: Sequence[str], why: str, phone: Phone) -> None:
    (phone.tmp / "gone.txt").write_text(f"{TMP}/gone.raw\n")
    (phone.tmp / "short.raw").write_bytes(b"\0" * 8)
    (phone.tmp / "short.txt").write_text(f"{TMP}/short.raw\n")
    before = listing(phone.tmp)
    done = phone.net_run(*more)
    assert done.returncode == 1
    assert why in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert listing(phone.tmp) == before


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--foo"], "unrecognized arguments: --foo"),
        (["--ep_option", "novalue"], "takes KEY=VALUE"),
        (["--ep_option", "no_such=1"], "unknown option of the QNN execution provider: no_such"),
        (["--repeat", "0"], "at least 1"),
        (["--model", f"{TMP}/none.onnx"], "cannot be read"),
        (["--model", f"{TMP}/model.bin"], "not an ONNX model"),
        (["--input_list", f"{TMP}/none.txt"], "Failed to open input list"),
    ],
)
def test_ort_run_refuses_and_leaves_nothing(more: Sequence[str], why: str, phone: Phone) -> None:
    before = listing(phone.tmp)
    done = phone.ort_run(*more)
    assert done.returncode == 1
    assert why in done.stderr
    assert "Traceback" not in done.stderr
    assert listing(phone.tmp) == before


def test_version(phone: Phone) -> None:
    done = phone.run("qnn-net-run", "--version")
    assert done.returncode == 0
    assert "virtual device" in done.stdout
