"""A phone with Qualcomm's SDK: a stub of the SDK, and a virtual device that the lab takes for a phone."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.devices.slots import DEVICE_ROOT
from pytest_devicelab.evidence.record import ModelIdentity, RunRecord
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.lab.attempts import run_on_device
from pytest_devicelab.lab.request import RunRequest
from pytest_devicelab.matrix.specs import HealthSpec, LogProfile, MeasureSpec, log_profile
from pytest_devicelab.runtimes.host import run_on_host
from pytest_devicelab.runtimes.inputs import Arrays, load_inputs
from tests.e2e.stub_sdk import AARCH64, TRANSCRIPT, X86_64, build_sdk, elf
from tests.e2e.virtual_lab import VirtualLab

FIXTURES = Path(__file__).parents[2] / "fixtures"
Run = Callable[..., RunRecord]


@pytest.fixture
def sdk(tmp_path: Path) -> Path:
    return build_sdk(tmp_path / "qairt it's; $(here)")


@pytest.fixture
def transcript(virtual_lab: VirtualLab) -> Path:
    path = virtual_lab.root("s24") / TRANSCRIPT.removeprefix("/")
    path.unlink(missing_ok=True)
    return path


@pytest.fixture
def run(virtual_lab: VirtualLab, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run the CNN on `s24`, which the matrix calls a phone."""

    def run(sdk: Path | None, **facts: Any) -> RunRecord:
        spec = replace(
            virtual_lab.specs["s24"],
            kind="adb",
            serial=virtual_lab.serial("s24"),
            process_domain=facts.pop("process_domain", "unsigned"),
            runners=facts.pop("runners", {}),
        )
        path: Path = facts.pop("path", FIXTURES / "digits_cnn" / "int8.onnx")
        inputs: Arrays | None = facts.pop("inputs", None)
        plan: MeasureSpec | None = facts.pop("measure", None)
        request = RunRequest(
            id="cnn",
            model=ModelIdentity(id="cnn", variant="", sha256=hashlib.sha256(path.read_bytes()).hexdigest()),
            path=path,
            runtime="qnn",
            options={"offload_graph_io_quantization": "0", **facts},
            inputs=inputs or load_inputs(FIXTURES / "digits_eval.npz", samples=3),
            purpose="measure" if plan else "evaluate",
            logging=LogProfile(level="off") if plan else log_profile("verbose"),
            timeout_s=60,
            measure=plan,
            qairt_sdk=sdk,
            health=HealthSpec(min_free_mib=1),
        )
        store = SessionStore.create(tmp_path / "reports", f"session{len(list(tmp_path.glob('reports/s*')))}")
        device = AdbDevice(spec, virtual_lab.transport("s24"))
        return run_on_device(device, request, store, cache=tmp_path_factory.getbasetemp() / "qairt-cache")

    return run


def test_the_sdks_runner_gets_its_libraries_settings_and_environment(
    run: Run, sdk: Path, transcript: Path
) -> None:
    record = run(sdk, htp_performance_mode="balanced", htp_graph_finalization_optimization_mode="2")
    assert record.status == "ok", record.error
    assert record.versions["qairt_sdk"] == "2.99.0.271120"
    lines = transcript.read_text().splitlines()
    kit = f"{DEVICE_ROOT}/runs/cnn/kit"
    assert f"program {kit}/qnn-net-run" in lines
    assert f"word --backend={kit}/libQnnHtp.so" in lines
    # Files of float32 have no other name without it, and none of which nobody knows whether it is called native.
    assert "word --use_native_output_files" not in lines
    assert f"word --config_file={kit}/backend.json" in lines
    assert f"LD_LIBRARY_PATH {kit}" in lines
    assert any(line.startswith(f"ADSP_LIBRARY_PATH {kit};/vendor/") for line in lines)
    sent = {
        "libQnnHtp.so": "lib/aarch64-android/libQnnHtp.so",
        "libQnnHtpV75Stub.so": "lib/aarch64-android/libQnnHtpV75Stub.so",
        "libQnnSystem.so": "lib/aarch64-android/libQnnSystem.so",
        "libQnnHtpNetRunExtensions.so": "lib/aarch64-android/libQnnHtpNetRunExtensions.so",
        "libQnnHtpV75Skel.so": "lib/hexagon-v75/unsigned/libQnnHtpV75Skel.so",
        "qnn-net-run": "bin/aarch64-android/qnn-net-run",
    }
    for name, place in sent.items():
        digest = hashlib.sha256((sdk / place).read_bytes()).hexdigest()
        assert any(line.startswith(f"file {name} {digest}") for line in lines), name
    assert len([line for line in lines if line.startswith("file ")]) == len(sent) + 2
    start = next(number for number, line in enumerate(lines) if line.startswith("{"))
    decoder = json.JSONDecoder()
    text = "\n".join(lines[start:])
    backend, end = decoder.raw_decode(text)
    htp, _ = decoder.raw_decode(text[end:].lstrip())
    assert backend["backend_extensions"]["config_file_path"] == f"{kit}/htp.json"
    assert htp["graphs"][0]["O"] == 2
    (core,) = htp["devices"][0].pop("cores")
    assert htp["devices"] == [{"dsp_arch": "v75", "pd_session": "unsigned"}]
    assert core["perf_profile"] == "balanced"


def test_the_profile_comes_from_the_viewer_of_the_sdk(run: Run, sdk: Path) -> None:
    with_viewer = run(sdk)
    assert "qnn-profiling-data_0.log" in with_viewer.files
    names = [row.name for row in with_viewer.ops]
    assert len(names) == len(set(names)) > 5
    assert any(row.cycles > 0 and row.sources for row in with_viewer.ops)
    shutil.rmtree(sdk / "bin/x86_64-linux-clang")
    assert run(sdk).ops == ()


def test_a_phones_times_come_from_the_viewer_too(run: Run, sdk: Path, transcript: Path) -> None:
    plan = MeasureSpec(inferences=4, warm_up=1)
    found = run(sdk, measure=plan).measured
    assert found is not None
    assert found.latency.inferences == 4
    assert found.latency.source == "profile of qnn-net-run, NetRun"
    assert found.load_us.value is not None
    words = [line.removeprefix("word ") for line in transcript.read_text().splitlines()]
    assert {"--num_inferences=5", "--keep_num_outputs=1", "--profiling_level=basic"} <= set(words)
    # The SDK's runner is a script here: what it holds is not the model's.
    assert "processes of its own" in found.peak_rss_kib.why
    shutil.rmtree(sdk / "bin/x86_64-linux-clang")
    without = run(sdk, measure=plan).measured
    assert without is not None
    assert "qnn-profile-viewer" in without.latency.why


def test_the_bits_are_those_of_the_devices_own_runner(run: Run, sdk: Path, transcript: Path) -> None:
    bare = run(None)
    assert not transcript.exists()
    outputs = run(sdk).outputs
    assert outputs == bare.outputs
    assert outputs
    assert transcript.exists()


def test_integers_go_in_and_come_out_as_they_are(
    run: Run, sdk: Path, transcript: Path, tmp_path: Path
) -> None:
    """The real runner takes `GRAPH:A,B`, without it reads the file as float32, and calls other dtypes' files native."""
    path = _of_codes(tmp_path / "codes.onnx")
    inputs = {"codes": np.arange(192, dtype=np.uint8).reshape(3, 1, 8, 8)}
    record = run(sdk, path=path, inputs=inputs)
    assert record.status == "ok", record.error
    words = [line.removeprefix("word ") for line in transcript.read_text().splitlines()]
    (native,) = (word for word in words if word.startswith("--native_input_tensor_names="))
    graph, _, names = native.partition("=")[2].partition(":")
    assert (names, f'"{graph}"' in transcript.read_text()) == ("codes", True)
    assert "--use_native_output_files" in words
    (output,) = record.outputs
    assert output.dtype == "uint8"
    found = SessionStore.open(tmp_path / "reports/session0").read_output(output).astype(np.int64)
    np.testing.assert_allclose(found, run_on_host(path, inputs)["logits"].astype(np.int64), atol=2)


def _of_codes(path: Path) -> Path:
    """Write the CNN without its first and last node: it takes what that one would give, and gives what this one takes."""
    model = onnx.load(FIXTURES / "digits_cnn/int8.onnx")
    first = next(node for node in model.graph.node if node.input[0] == "image")
    assert first.op_type == "QuantizeLinear"
    last = next(node for node in model.graph.node if node.output[0] == "logits")
    assert last.op_type == "DequantizeLinear"
    for gone in (first, last):
        model.graph.node.remove(gone)
    names = {first.output[0]: "codes", last.input[0]: "logits"}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    model.graph.input[0].name = "codes"
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.elem_type = onnx.TensorProto.UINT8
    onnx.save(model, path)
    return path


def test_a_phone_without_a_runner_is_told_of_the_sdk(run: Run) -> None:
    record = run(None, runners={"qnn": "/data/local/tmp/not-there"})
    assert record.status == "failed"
    assert "exited with 127" in record.error
    assert "let `qairt_sdk` in the matrix name Qualcomm's SDK" in record.error


def test_a_second_run_pushes_no_library_again(run: Run, sdk: Path) -> None:
    run(sdk)
    assert run(sdk).transfers.pushed_bytes == 0


def test_room_is_needed_for_what_is_not_there_yet(run: Run, sdk: Path, virtual_lab: VirtualLab) -> None:
    library = sdk / "lib/aarch64-android/libQnnHtp.so"
    library.write_bytes(elf(AARCH64, bytes(3_000_000)))
    virtual_lab.tell("s24", "fault disk_full free_bytes=2000000")
    try:
        refused = run(sdk)
        virtual_lab.tell("s24", "fault clear disk_full")
        assert run(sdk).status == "ok"
        virtual_lab.tell("s24", "fault disk_full free_bytes=2000000")
        again = run(sdk)
    finally:
        virtual_lab.tell("s24", "fault clear disk_full")
    assert refused.status == "failed"
    assert "no room for the model and the runner's files" in refused.error
    assert refused.transfers.pushed_bytes == 0
    assert again.status == "ok", again.error


def _drop(place: str) -> Callable[[Path], None]:
    return lambda sdk: (sdk / place).unlink()


def _write(place: str, content: bytes) -> Callable[[Path], None]:
    def write(sdk: Path) -> None:
        (sdk / place).write_bytes(content)

    return write


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_drop("lib/hexagon-v75/unsigned/libQnnHtpV75Skel.so"), "lacks libQnnHtpV75Skel.so"),
        (_drop("bin/aarch64-android/qnn-net-run"), "lacks qnn-net-run"),
        (_write("bin/aarch64-android/qnn-net-run", elf(X86_64)), "is for x86_64; needed is aarch64"),
        (_write("lib/aarch64-android/libQnnHtp.so", b"not a library"), "neither a program nor a library"),
        (_write("lib/aarch64-android/libQnnHtp.so", b"#!/bin/sh\n"), "is a script; needed is aarch64"),
        (
            _write("lib/hexagon-v75/unsigned/libQnnHtpV75Skel.so", elf(AARCH64)),
            "is for aarch64; needed is hexagon",
        ),
        (_write("sdk.yaml", b"version: 2.10.0.230101\n"), "older than the context binary"),
    ],
    ids=[
        "no skel",
        "no runner",
        "wrong machine",
        "no library",
        "script as library",
        "skel of another machine",
        "old SDK",
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_pushed(
    run: Run, sdk: Path, transcript: Path, spoil: Callable[[Path], None], said: str
) -> None:
    spoil(sdk)
    record = run(sdk)
    assert record.status == "failed"
    assert said in record.error
    assert "fix:" in record.error
    assert record.transfers.pushed_bytes == 0
    assert not transcript.exists()


def test_a_signed_domain_takes_a_signed_skel(run: Run, sdk: Path) -> None:
    record = run(sdk, process_domain="signed")
    assert record.status == "failed"
    assert "lib/hexagon-v75/signed/libQnnHtpV75Skel.so" in record.error


def test_a_phone_with_a_runner_of_its_own_gets_nothing_of_the_sdk(
    run: Run, sdk: Path, virtual_lab: VirtualLab, transcript: Path
) -> None:
    program = virtual_lab.root("s24") / "data/local/tmp/own-net-run"
    program.write_text('#!/bin/sh\n[ -z "$LD_LIBRARY_PATH" ] || exit 9\nqnn-net-run "$@"\n')
    program.chmod(0o755)
    try:
        record = run(sdk, runners={"qnn": "/data/local/tmp/own-net-run"})
    finally:
        program.unlink()
    assert record.status == "ok", record.error
    assert "qairt_sdk" not in record.versions
    assert not transcript.exists()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ('rm "$out/Result_1/logits.raw"', "output logits is missing or incomplete"),
        ('printf x > "$out/Result_1/logits.raw"', "output logits has the wrong size"),
    ],
)
def test_outputs_that_are_missing_or_short_are_no_result(
    run: Run, virtual_lab: VirtualLab, spoil: str, said: str
) -> None:
    program = virtual_lab.root("s24") / "data/local/tmp/spoiling-net-run"
    find_out = 'for word in "$@"; do case $word in --output_dir=*) out=${word#*=} ;; esac; done'
    program.write_text(f'#!/bin/sh\nqnn-net-run "$@" || exit $?\n{find_out}\n{spoil}\n')
    program.chmod(0o755)
    try:
        record = run(None, runners={"qnn": "/data/local/tmp/spoiling-net-run"})
    finally:
        program.unlink()
    assert record.status == "failed"
    assert said in record.error


def test_an_sdk_for_another_chip(run: Run, tmp_path: Path) -> None:
    record = run(build_sdk(tmp_path / "other", hexagons=("68", "81")))
    assert "SM8650 has Hexagon V75, the SDK is for hexagon-v68, hexagon-v81" in record.error
