from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.devices.adb_server import AdbServer
from pytest_devicelab.devices.adb_transport import AdbTransport
from pytest_devicelab.devices.device import ShellResult
from pytest_devicelab.devices.slots import DEVICE_ROOT
from pytest_devicelab.devices.toggles import restore_toggles, toggled
from pytest_devicelab.errors import DeviceLost, InfrastructureError
from pytest_devicelab.evidence.record import ModelIdentity, RunRecord
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.lab.address import LabAddress
from pytest_devicelab.lab.attempts import run_on_device
from pytest_devicelab.lab.lab import Lab
from pytest_devicelab.lab.recovery import Limits
from pytest_devicelab.lab.request import RunRequest
from pytest_devicelab.lab.session import LabSession, side_by_side
from pytest_devicelab.matrix.specs import LabSpec, LogProfile, MatrixSpec, ModelSpec, Source, log_profile
from pytest_devicelab.runtimes.host import run_on_host
from pytest_devicelab.runtimes.inputs import load_inputs
from tests.e2e.virtual_lab import VirtualLab

FIXTURES = Path(__file__).parents[2] / "fixtures"
SAMPLES = 3
PLACE = Source(file="matrix.yaml", line=1, column=1)
OUTPUT = {"name": "logits", "file": "logits.raw", "dtype": "float32", "shape": [1, 10], "quantization": None}


def model_spec(folder: str = "digits_cnn", **facts: Any) -> ModelSpec:
    values = {
        "id": folder,
        "path": FIXTURES / folder / "int8.onnx",
        "source": PLACE,
        "inputs": FIXTURES / "digits_eval.npz",
        "runtime": "ort",
        "samples": SAMPLES,
        **facts,
    }
    return ModelSpec(**values)


@pytest.fixture
def store(tmp_path: Path) -> SessionStore:
    return SessionStore.create(tmp_path / "reports", "session")


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "runner-cache"


def request_for(
    device: str, model: ModelSpec, *, timeout_s: float = 60, logging: LogProfile | None = None
) -> RunRequest:
    assert model.inputs is not None
    digest = hashlib.sha256(model.path.read_bytes()).hexdigest()
    return RunRequest(
        id=f"{model.id}.{device}.evaluate",
        model=ModelIdentity(id=model.id, variant="", sha256=digest),
        path=model.path,
        runtime=model.runtime,
        options=model.options,
        inputs=load_inputs(model.inputs, samples=model.samples),
        purpose="evaluate",
        logging=logging or log_profile("verbose"),
        timeout_s=timeout_s,
    )


@pytest.fixture
def run(virtual_lab: VirtualLab, store: SessionStore, cache: Path) -> Callable[..., RunRecord]:
    """Run a model on a device of the lab; the record that is returned is the one on disk."""

    def run(
        name: str,
        model: ModelSpec | None = None,
        *,
        device: AdbDevice | None = None,
        progress: Callable[[str], None] = lambda text: None,
        timeout_s: float = 60,
    ) -> RunRecord:
        request = request_for(name, model or model_spec(), timeout_s=timeout_s)
        held = device or virtual_lab.device(name)
        record = run_on_device(held, request, store, cache=cache, progress=progress)
        assert store.read_record(request.id) == record
        assert len(record.attempts) >= 1
        assert [attempt.number for attempt in record.attempts] == list(range(1, len(record.attempts) + 1))
        assert all(
            attempt.started.endswith("+00:00") and attempt.duration_s > 0 for attempt in record.attempts
        )
        assert all((store.run_folder(record.id) / path).is_file() for path in record.files.values())
        return record

    return run


@pytest.fixture
def runner_on_pixel(virtual_lab: VirtualLab) -> Iterator[Callable[[str], None]]:
    """Put a shell script in the place of `ort-run` on the device `pixel`; it finds its output folder in `$out`."""
    path = virtual_lab.root("pixel") / "system/bin/ort-run"
    genuine = path.read_bytes()

    def write(script: str) -> None:
        find_out = 'for word in "$@"; do case $word in --output_dir=*) out=${word#*=} ;; esac; done'
        path.write_text(f"#!/bin/sh\n{find_out}\n{script}\n")

    yield write
    path.write_bytes(genuine)


@pytest.fixture
def slow_pixel(virtual_lab: VirtualLab, runner_on_pixel: Callable[[str], None]) -> None:
    """Have `ort-run` on `pixel` take its time, so that what happens 0.3 s later happens in mid-run on any machine."""
    genuine = (virtual_lab.root("pixel") / "system/bin/ort-run").read_text()
    runner_on_pixel(f"sleep 1.5\n{genuine}")


def writes(outputs: object, sizes: tuple[int, ...] = (40,) * SAMPLES, file: str = "logits.raw") -> str:
    """A script of a runner that writes zeros and says of them what it is told to say."""
    lines = [
        f'mkdir -p "$out/Result_{n}" && head -c {size} /dev/zero > "$out/Result_{n}/{file}"'
        for n, size in enumerate(sizes)
    ]
    said = outputs if isinstance(outputs, str) else json.dumps(outputs)
    return "\n".join([*lines, f"cat > \"$out/outputs.json\" <<'END'\n{said}\nEND"])


# Runs that end as they should


def test_a_run_and_all_it_left_behind(run: Callable[..., RunRecord], store: SessionStore) -> None:
    steps: list[str] = []
    record = run("pixel", progress=steps.append)
    assert (record.status, record.error, record.samples) == ("ok", "", SAMPLES)
    assert (record.device.soc, record.device.simulated, record.backend) == ("Tensor G4", True, "cpu")
    (tensor,) = record.outputs
    assert (tensor.name, tensor.dtype, tensor.shape) == ("logits", "float32", (SAMPLES, 10))
    array = store.read_output(tensor)
    assert hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() == tensor.sha256
    assert {node.unit for node in record.placement} == {"cpu"}
    assert record.versions["onnxruntime"]
    assert record.log_sources.keys() == {"stdout", "stderr", "logcat"}
    assert record.transfers.pushed_bytes > 0
    assert [text.rpartition(": ")[2] for text in steps] == [
        *("compiling", "deploying", f"running {SAMPLES} samples", "collecting")
    ]


def test_a_run_leaves_nothing_but_slots_on_the_device(
    run: Callable[..., RunRecord], virtual_lab: VirtualLab
) -> None:
    run("pixel")
    device = virtual_lab.device("pixel")
    assert device.getprop("debug.nn.vlog") == ""
    left = device.exec_out(["find", "/data/local/tmp/devicelab", "-type", "f"]).decode().splitlines()
    assert left
    assert all(path.startswith("/data/local/tmp/devicelab/slots/") for path in left)


def test_equal_outputs_of_two_devices_are_pulled_once(
    virtual_lab: VirtualLab, run: Callable[..., RunRecord], store: SessionStore
) -> None:
    pulled: dict[str, list[str]] = {"pixel": [], "twin": []}

    class Watched(AdbTransport):
        def pull(self, remote: str, local: Path, *, timeout_s: float, limit_bytes: int = 1 << 30) -> int:
            pulled[self._name].append(remote.rpartition("/")[2])
            return super().pull(remote, local, timeout_s=timeout_s, limit_bytes=limit_bytes)

    records = {}
    for name in pulled:
        server = virtual_lab.server
        cable = Watched(host=server.host, port=server.port, serial=virtual_lab.serial(name), name=name)
        records[name] = run(name, device=AdbDevice(virtual_lab.specs[name], cable))
    assert records["pixel"].outputs == records["twin"].outputs
    outputs = {name: [file for file in files if file.endswith(".raw")] for name, files in pulled.items()}
    assert len(outputs["pixel"]) == 1
    assert outputs["twin"] == []
    assert records["pixel"].transfers.pulled_bytes >= SAMPLES * 10 * 4
    assert [records[name].transfers.spared_bytes for name in ("pixel", "twin")] == [0, SAMPLES * 10 * 4]
    assert len(list((store.root / "arrays").iterdir())) == 1


def test_what_is_on_the_device_is_not_pushed_again(run: Callable[..., RunRecord]) -> None:
    run("pixel")
    assert run("pixel").transfers.pushed_bytes == 0


def save_integer_model(path: Path) -> None:
    """Write `x uint8 [1, 8]`, quantized -> MatMul -> `y float32 [1, 4]`, and three samples beside it."""
    rng = np.random.default_rng(1)
    constants = {
        "s": np.float32(0.05),
        "z": np.uint8(128),
        "ws": np.float32(0.01),
        "wz": np.int8(0),
        "os": np.float32(0.02),
        "oz": np.uint8(100),
        "w": rng.integers(-127, 127, (8, 4)).astype(np.int8),
    }
    wires = [
        ("DequantizeLinear", ["x", "s", "z"], "xf"),
        ("DequantizeLinear", ["w", "ws", "wz"], "wf"),
        ("MatMul", ["xf", "wf"], "m"),
        ("QuantizeLinear", ["m", "os", "oz"], "q"),
        ("DequantizeLinear", ["q", "os", "oz"], "y"),
    ]
    graph = helper.make_graph(
        [helper.make_node(op, inputs, [output], name=f"make_{output}") for op, inputs, output in wires],
        "integers",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    np.savez(path.with_suffix(".npz"), x=rng.integers(0, 256, (SAMPLES, 8)).astype(np.uint8))


def test_inputs_of_the_models_own_dtype(
    run: Callable[..., RunRecord], store: SessionStore, tmp_path: Path
) -> None:
    path = tmp_path / "integers.onnx"
    save_integer_model(path)
    inputs = path.with_suffix(".npz")
    record = run("s24", model_spec(id="integers", path=path, inputs=inputs, runtime="qnn"))
    assert record.status == "ok", record.error
    on_cpu = run_on_host(path, load_inputs(inputs))
    assert np.allclose(real(store, record), on_cpu["y"].astype(np.float64), rtol=0, atol=0.021)  # one step


def test_the_edges_of_the_graph_may_stay_outside_of_it(
    run: Callable[..., RunRecord], store: SessionStore
) -> None:
    inside = run("s24", model_spec(id="inside", runtime="qnn"))
    outside = run(
        "s24", model_spec(id="outside", runtime="qnn", options={"offload_graph_io_quantization": "1"})
    )
    assert (inside.status, outside.status) == ("ok", "ok"), outside.error
    (first,), (second,) = inside.outputs, outside.outputs
    assert (first.dtype, second.dtype) == ("float32", "uint8")
    assert second.quantization is not None
    assert np.allclose(
        real(store, outside), real(store, inside), rtol=0, atol=second.quantization.scale * 1.01
    )


def real(store: SessionStore, record: RunRecord) -> npt.NDArray[np.float64]:
    """The values of a run's only output."""
    (tensor,) = record.outputs
    values = store.read_output(tensor).astype(np.float64)
    if tensor.dtype == "float32" or tensor.quantization is None:
        return values
    return (values - tensor.quantization.zero_point) * tensor.quantization.scale


# Refused


def test_a_model_the_npu_refuses_is_a_finding(run: Callable[..., RunRecord]) -> None:
    record = run("s24", model_spec("digits_channelnorm", runtime="qnn"))
    assert record.status == "refused"
    assert {op for op, _, _ in record.refused_ops} == {"LayerNormalization"}
    assert all("last axis" in reason for _, _, reason in record.refused_ops)
    assert "LayerNorm" in record.error
    assert [attempt.error for attempt in record.attempts] == [""]


def test_a_chip_without_an_npu_is_no_finding_about_the_model(run: Callable[..., RunRecord]) -> None:
    record = run("twin", model_spec(runtime="qnn"))
    assert record.status == "failed"
    assert "has no Hexagon NPU that qnn could use" in record.error
    assert "runtime: ort" in record.error


def test_a_device_that_is_another_chip_is_not_used(
    run: Callable[..., RunRecord], virtual_lab: VirtualLab
) -> None:
    other = AdbDevice(virtual_lab.specs["s21"], virtual_lab.transport("s24"))
    record = run("s21", device=other)
    assert record.status == "failed"
    assert "says SM8350, the device says SM8650" in record.error
    assert record.outputs == ()


@pytest.mark.parametrize(
    ("model", "is_another"), [("SM8999", True), ("MT6989", True), ("SM8350-AC", False), ("lahaina", False)]
)
def test_a_part_number_nobody_knows_is_another_chip(
    virtual_lab: VirtualLab, model: str, is_another: bool
) -> None:
    device = virtual_lab.device("s21")
    if is_another:
        with pytest.raises(
            InfrastructureError, match=f"is not what the matrix says\n.*says SM8350, the device says {model}"
        ):
            device.chip({"ro.soc.model": model})
    else:
        assert device.chip({"ro.soc.model": model}) == virtual_lab.specs["s21"].soc


# Failed


def when_running(action: Callable[[], None], delay_s: float = 0.3) -> Callable[[str], None]:
    """A progress callback that does something, once, shortly after the runner was started."""
    timers: list[threading.Timer] = []

    def progress(text: str) -> None:
        if ": running " in text and not timers:
            timers.append(threading.Timer(delay_s, action))
            timers[0].start()

    return progress


@pytest.mark.usefixtures("slow_pixel")
def test_a_device_that_drops_in_mid_run_gets_a_second_attempt(
    run: Callable[..., RunRecord], virtual_lab: VirtualLab
) -> None:
    record = run("pixel", progress=when_running(partial(virtual_lab.tell, "pixel", "drop")))
    assert record.status == "ok"
    first, second = record.attempts
    assert "went away" in first.error
    assert second.error == ""


class Impatient(AdbDevice):
    """A device that is not waited for very long."""

    def reconnect(self, *, timeout_s: float = 20.0) -> None:
        super().reconnect(timeout_s=1.0)


@pytest.mark.usefixtures("slow_pixel")
def test_a_device_that_stays_away_fails_alone(run: Callable[..., RunRecord], virtual_lab: VirtualLab) -> None:
    device = Impatient(virtual_lab.specs["pixel"], virtual_lab.transport("pixel"))
    try:
        record = run(
            "pixel", device=device, progress=when_running(partial(virtual_lab.tell, "pixel", "offline"))
        )
    finally:
        virtual_lab.tell("pixel", "online")
    assert record.status == "failed"
    assert record.device.soc == "Tensor G4"
    assert "went away" in record.error
    assert [attempt.error for attempt in record.attempts] == [record.error]
    assert run("twin").status == "ok"
    back = virtual_lab.device("pixel")
    back.reconnect()
    assert set(restore_toggles(back)) == {"debug.nn.vlog", "debug.nn.perf"}


def test_a_run_beyond_its_deadline(
    run: Callable[..., RunRecord], runner_on_pixel: Callable[[str], None], virtual_lab: VirtualLab
) -> None:
    runner_on_pixel("exec sleep 54321")
    started = time.monotonic()
    record = run("pixel", timeout_s=0.5)
    assert time.monotonic() - started < 15
    assert record.status == "failed"
    assert ["no end after 0.5 s" in attempt.error for attempt in record.attempts] == [True, True]
    assert virtual_lab.device("pixel").getprop("debug.nn.vlog") == ""
    deadline = time.monotonic() + 10  # its end is on the way, on a busy machine for a while
    while b"54321" in virtual_lab.device("pixel").exec_out(["ps", "-ef"]):
        assert time.monotonic() < deadline


def test_a_runner_that_fails_says_why(
    run: Callable[..., RunRecord], runner_on_pixel: Callable[[str], None], store: SessionStore
) -> None:
    runner_on_pixel("echo partly; echo 'cannot open \"x\"' >&2; exit 3")
    record = run("pixel")
    assert record.status == "failed"
    assert 'ort on pixel exited with 3\n  why: cannot open "x"' in record.error
    assert (store.run_folder(record.id) / record.files["stdout.txt"]).read_bytes() == b"partly\n"
    assert record.outputs == ()


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (writes([OUTPUT], (40, 40)), "output logits is missing or incomplete\n  why: .*Result_2/logits.raw"),
        (
            writes([OUTPUT], (40, 40, 36)),
            r"output logits has the wrong size\n  why: 116 bytes; float32 \[3, 10\] takes 120",
        ),
        (writes([OUTPUT], (40, 40, 44)), "124 bytes"),
        (writes([OUTPUT], (0, 0, 0)), "0 bytes"),
        (writes([{**OUTPUT, "shape": [1, 5]}]), r"120 bytes; float32 \[3, 5\] takes 60"),
        (writes([{**OUTPUT, "dtype": "float64"}]), r"120 bytes; float64 \[3, 10\] takes 240"),
        (writes([{**OUTPUT, "dtype": "object"}]), "dtype 'object'"),
        (writes([{**OUTPUT, "dtype": "O8,f4"}]), "dtype 'O8,f4'"),
        (writes([{**OUTPUT, "shape": [-1, -10]}]), r"shape \[-1, -10\]"),
        (writes([{**OUTPUT, "shape": "ten"}]), "a list was expected"),
        (writes([{**OUTPUT, "file": "../../../../secret"}]), "file '../../../../secret'"),
        (writes([{**OUTPUT, "file": "$(reboot)"}]), r"file '\$\(reboot\)'"),
        (writes([{**OUTPUT, "more": 1}]), "no such field"),
        (writes([{"name": "logits"}]), "the field is missing"),
        (writes([]), "does not say which outputs there are"),
        (writes([OUTPUT, OUTPUT]), r"it names \['logits', 'logits'\], the model \['logits'\]"),
        (writes({"logits": OUTPUT}), "a JSON list was expected, found dict"),
        (writes("[" * 100_000), "not JSON"),
        (writes("nonsense"), "not JSON"),
        ('mkdir -p "$out"', "does not say which outputs there are"),
        ("true", "does not say which outputs there are"),
    ],
)
def test_a_runner_that_says_one_thing_and_does_another(
    run: Callable[..., RunRecord],
    runner_on_pixel: Callable[[str], None],
    store: SessionStore,
    script: str,
    says: str,
) -> None:
    runner_on_pixel(script)
    record = run("pixel")
    assert record.status == "failed"
    assert re.search(says, record.error), record.error
    assert record.outputs == ()
    assert not (store.root / "arrays").exists()


def test_a_short_output_is_not_tried_again_into_green(
    run: Callable[..., RunRecord], runner_on_pixel: Callable[[str], None]
) -> None:
    runner_on_pixel(writes([OUTPUT], (40, 40, 39)))
    record = run(
        "pixel", progress=lambda text: runner_on_pixel(writes([OUTPUT])) if "retrying" in text else None
    )
    assert (record.status, len(record.attempts)) == ("failed", 1)
    assert "has the wrong size" in record.error


def test_what_a_first_attempt_brought_does_not_speak_for_the_second(
    run: Callable[..., RunRecord], runner_on_pixel: Callable[[str], None], store: SessionStore
) -> None:
    placed = json.dumps([{"node": "conv", "op": "Conv", "unit": "htp", "macs": None}])

    def progress(text: str) -> None:
        if "retrying" in text:
            assert store.records() == ()  # nobody takes it for the run's last word
            runner_on_pixel(writes([OUTPUT]))

    runner_on_pixel(f"{writes('nonsense')}\necho '{placed}' > \"$out/placement.json\"")
    record = run("pixel", progress=progress)
    assert (record.status, len(record.attempts), record.placement) == ("ok", 2, ())
    assert "placement.json" not in record.files


def test_results_of_an_earlier_run_that_cannot_be_removed(
    run: Callable[..., RunRecord], runner_on_pixel: Callable[[str], None], virtual_lab: VirtualLab
) -> None:
    runner_on_pixel(f"{writes([OUTPUT])}\nexit 3")  # it leaves its results on the device
    failed = run("pixel")
    assert failed.status == "failed"
    work = virtual_lab.root("pixel") / "data/local/tmp/devicelab/runs" / failed.id
    assert (work / "out/Result_0/logits.raw").is_file()
    runner_on_pixel("true")  # writes nothing, and says that all is well
    transport = virtual_lab.transport("pixel")

    class Stubborn(AdbDevice):
        def script(self, text: str, *, timeout_s: float = 30.0) -> ShellResult:
            return super().script(text.replace(f"rm -rf {DEVICE_ROOT}/runs", "rm /"), timeout_s=timeout_s)

    record = run("pixel", device=Stubborn(virtual_lab.specs["pixel"], transport))
    assert record.status == "failed"
    assert "cannot be made anew" in record.error
    assert record.outputs == ()


def test_inputs_that_were_changed_on_the_device_are_not_used(
    run: Callable[..., RunRecord], virtual_lab: VirtualLab
) -> None:
    first = run("pixel")
    slots = virtual_lab.root("pixel") / "data/local/tmp/devicelab/slots"
    raw_files = list(slots.glob("*/files/*_0.raw"))
    assert raw_files
    for file in raw_files:
        file.write_bytes(bytes(file.stat().st_size))
    again = run("pixel")
    assert again.outputs == first.outputs
    assert again.transfers.pushed_bytes == 0


def test_what_a_runner_says_of_a_run_must_be_readable_too(
    run: Callable[..., RunRecord], runner_on_pixel: Callable[[str], None]
) -> None:
    runner_on_pixel(writes([OUTPUT]))
    assert run("pixel").status == "ok"
    for file, content in (
        ("placement.json", '[{"node": 1}]'),
        ("ops.json", '{"a": 1}'),
        ("versions.json", "[1]"),
    ):
        runner_on_pixel(f"{writes([OUTPUT])}\necho '{content}' > \"$out/{file}\"")
        record = run("pixel")
        assert record.status == "failed"
        assert file in record.error


def test_a_full_disk_of_this_host_is_not_the_devices(
    run: Callable[..., RunRecord], virtual_lab: VirtualLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: AdbTransport, remote: str, local: Path, **limits: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(local))

    monkeypatch.setattr(AdbTransport, "pull", full)
    record = run("pixel")
    assert record.status == "failed"
    assert "this host failed" in record.error
    (attempt,) = record.attempts
    assert (attempt.failure, attempt.decision.startswith("not tried again")) == ("host", True)
    assert record.recovery == ()
    slots = virtual_lab.device("pixel").shell(["ls", f"{DEVICE_ROOT}/slots"])
    assert slots.text.strip(), "what was pushed must not have been removed"


def test_bytes_that_change_on_the_way_are_not_kept(
    virtual_lab: VirtualLab, run: Callable[..., RunRecord], store: SessionStore
) -> None:
    class Flipping(AdbTransport):
        def pull(self, remote: str, local: Path, *, timeout_s: float, limit_bytes: int = 1 << 30) -> int:
            size = super().pull(remote, local, timeout_s=timeout_s, limit_bytes=limit_bytes)
            if remote.endswith(".raw"):
                content = bytearray(local.read_bytes())
                content[0] ^= 1
                local.write_bytes(content)
            return size

    server = virtual_lab.server
    cable = Flipping(host=server.host, port=server.port, serial=virtual_lab.serial("pixel"), name="pixel")
    record = run("pixel", device=AdbDevice(virtual_lab.specs["pixel"], cable))
    assert record.status == "failed"
    assert "did not arrive as the device holds it" in record.error
    assert len(record.attempts) == 2
    assert not (store.root / "arrays").exists()


def test_a_log_that_lost_the_run_is_lost_evidence(
    run: Callable[..., RunRecord], runner_on_pixel: Callable[[str], None]
) -> None:
    runner_on_pixel(f"logcat -c\n{writes([OUTPUT])}")
    record = run("pixel")
    assert record.status == "ok"
    assert [event.kind for event in record.events] == ["lost_records"]
    assert record.log_sources["logcat"] == 0


# Sessions and leases


def session_of(
    address: LabAddress, virtual_lab: VirtualLab, store: SessionStore, cache: Path, *names: str
) -> LabSession:
    devices = tuple(virtual_lab.specs[name] for name in names)
    matrix = MatrixSpec(
        path=Path("matrix.yaml"), lab=LabSpec(run_timeout_s=60), devices=devices, models=(model_spec(),)
    )
    return LabSession(
        matrix=matrix,
        devices=devices,
        store=store,
        lab=Lab(address, holder="a test"),
        cache=cache,
        progress=lambda text: None,
    )


def test_a_device_that_is_not_there_fails_and_the_others_finish(
    virtual_lab: VirtualLab, store: SessionStore, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(reconnect_s=1, restart_s=1, power_cycle_s=1, reboot_s=1)
    monkeypatch.setattr("pytest_devicelab.lab.recovery.VIRTUAL_LIMITS", limits)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free = probe.getsockname()[1]
    address = virtual_lab.address
    address = replace(address, ports={**address.ports, "twin": free})
    session = session_of(address, virtual_lab, store, cache, "twin", "pixel")
    records = session.evaluate_all(model_spec())
    assert {name: record.status for name, record in records.items()} == {"twin": "failed", "pixel": "ok"}
    assert f"127.0.0.1:{free}" in records["twin"].error
    assert records["twin"].attempts[0].error == records["twin"].error
    steps = records["twin"].recovery
    assert [(step.rung, step.helped) for step in steps] == [
        ("reconnect", False),
        ("restart_transport", False),
        ("reboot", False),
        ("quarantine", False),
    ]
    assert store.read_record(records["twin"].id) == records["twin"]
    started = time.monotonic()
    again = session.repeat(virtual_lab.specs["twin"], model_spec())
    assert time.monotonic() - started < 1.0  # once is enough to wait for it
    assert (again.status, again.attempts[0].failure) == ("failed", "quarantined")
    assert "is in quarantine for" in again.error
    assert f"first cause: {steps[0].said}"[:60] in again.error


def test_a_run_is_carried_out_once_whoever_asks(
    virtual_lab: VirtualLab, store: SessionStore, cache: Path
) -> None:
    session = session_of(virtual_lab.address, virtual_lab, store, cache, "pixel")
    spec = virtual_lab.specs["pixel"]
    records = side_by_side([partial(session.evaluate, spec, model_spec()) for _ in range(3)])
    assert records[0] == records[1] == records[2]
    again = session_of(virtual_lab.address, virtual_lab, SessionStore.open(store.root), cache, "pixel")
    assert again.evaluate(spec, model_spec()) == records[0]
    # The same bytes in another shape or dtype are other inputs.
    image = session.inputs(model_spec())["image"]
    others = ({"image": image.reshape(1, -1)}, {"image": image.view(np.int32)})
    assert (
        len({again.run(spec, model_spec(), inputs, "evaluate").id for inputs in others} | {records[0].id})
        == 3
    )


def test_a_lease_is_held_again_only_by_those_who_work_for_its_holder(virtual_lab: VirtualLab) -> None:
    spec = virtual_lab.specs["twin"]
    reasons: list[str] = []
    lab = Lab(virtual_lab.address, holder="a test", waiting=reasons.append)
    got: list[str] = []

    def take() -> None:
        with lab.lease(spec) as device:
            got.append(device.id)

    with lab.lease(spec) as outer:
        with lab.lease(spec) as inner:
            assert inner is outer
        side_by_side([take, take])
        assert got == ["twin", "twin"]
        assert reasons == []
        stranger = threading.Thread(target=take)
        stranger.start()
        stranger.join(0.5)
        assert stranger.is_alive()
        assert got == ["twin", "twin"]
    stranger.join(10)
    assert got == ["twin"] * 3
    (reason,) = reasons
    assert reason.startswith(f"{virtual_lab.serial('twin')} is held by a test (pid ")


def test_two_adb_servers_do_not_make_one_device_two(virtual_lab: VirtualLab, tmp_path: Path) -> None:
    spec = virtual_lab.specs["twin"]
    reasons: list[str] = []
    with AdbServer(tmp_path / "adb") as second:
        other = Lab(
            LabAddress(host=second.host, port=second.port, ports=virtual_lab.address.ports),
            holder="another session",
            waiting=reasons.append,
        )

        def take() -> None:
            with suppress(InfrastructureError), other.lease(spec):
                pass

        with Lab(virtual_lab.address, holder="a test").lease(spec):
            stranger = threading.Thread(target=take)
            stranger.start()
            stranger.join(0.5)
            assert stranger.is_alive()
        stranger.join(30)
    assert len(reasons) == 1


def test_a_lease_begins_by_putting_back_what_its_last_holder_left(virtual_lab: VirtualLab) -> None:
    device = virtual_lab.device("twin")
    block = toggled(device, {"debug.mine": "left behind"})
    block.__enter__()  # and never left, as by a process that is killed
    assert device.getprop("debug.mine") == "left behind"
    with Lab(virtual_lab.address, holder="a test").lease(virtual_lab.specs["twin"]) as held:
        assert held.getprop("debug.mine") == ""


def test_a_phone_is_found_by_what_it_is(virtual_lab: VirtualLab) -> None:
    phone = replace(
        virtual_lab.specs["s24"], id="any", kind="adb", soc=None, selector={"ro.soc.model": "SM8350"}
    )
    lab = Lab(virtual_lab.address, holder="a test")
    with lab.lease(phone) as device:
        assert device.identity().serial == virtual_lab.serial("s21")
        assert device.identity().soc == "SM8350"
    absent = replace(phone, id="absent", selector={"ro.soc.model": "SM9999"})
    with (
        pytest.raises(DeviceLost, match=r"absent is not attached\n  why: none of 5 attached devices has ro"),
        lab.lease(absent),
    ):
        pytest.fail("there is no such phone")
