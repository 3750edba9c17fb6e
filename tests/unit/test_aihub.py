from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import pytest

from pytest_devicelab.aihub.account import Account, read_account
from pytest_devicelab.aihub.ledger import JobEntry, JobLedger, Patience
from pytest_devicelab.aihub.messages import HubDevice, Layer, Profile, Submission
from pytest_devicelab.aihub.outcome import Deadline, HubOffline, HubRateLimited, whose_fault
from pytest_devicelab.aihub.outputs import read_outputs
from pytest_devicelab.aihub.profile import npu_rows, unit_events
from pytest_devicelab.aihub.quantize import quantize
from pytest_devicelab.aihub.selection import chip_of, choose, device_set, identity
from pytest_devicelab.commands.suggest import hub_entry
from pytest_devicelab.errors import (
    InfrastructureError,
    ModelError,
    OutputIncomplete,
    TransferError,
    UserError,
)
from pytest_devicelab.matrix.soc import find_soc
from pytest_devicelab.matrix.specs import DeviceSpec, Source

TOKEN = "a-secret"
HERE = Source(file="m.yaml", line=1, column=1)
REAL = Account(api_url="https://workbench.aihub.qualcomm.com", web_url="", token=TOKEN)


def hub_device(name: str = "S24", os: str = "14", hexagon: str = "v75", number: int = 57) -> HubDevice:
    attributes = ("framework:qnn", f"hexagon:{hexagon}", f"soc-model:{number}", "chipset:c")
    return HubDevice(name=name, os=os, attributes=attributes)


def spec(**fields: object) -> DeviceSpec:
    return replace(DeviceSpec(id="hub", kind="aihub", source=HERE, name="S24"), **fields)  # type: ignore[arg-type]


def write(folder: Path, url: str) -> Path:
    path = folder / "client.ini"
    path.write_text(f"[api]\napi_token = {TOKEN}%x\napi_url = {url}\nweb_url = {url}\n")
    return path


def test_an_account_shows_no_token(tmp_path: Path) -> None:
    account = read_account(write(tmp_path, "https://hub.qualcomm.com"))
    assert account.token == f"{TOKEN}%x"
    assert TOKEN not in repr(account)
    assert account.hide(f"token {TOKEN}%x.") == "token ***."
    assert account.hide_bytes(f"{TOKEN}%x".encode()) == b"***"


@pytest.mark.parametrize(
    ("url", "simulated"),
    [
        ("https://workbench.aihub.qualcomm.com", False),
        ("https://qualcomm.com.evil.example", True),
        ("https://evilqualcomm.com", True),
        ("http://127.0.0.1:1", True),
        ("https://localhost", True),
    ],
)
def test_only_qualcomms_service_passes_for_silicon(tmp_path: Path, url: str, simulated: bool) -> None:
    account = read_account(write(tmp_path, url))
    assert identity(spec(), hub_device(), None, account).simulated is simulated
    assert bool(account.simulated_because) is simulated


def test_a_device_that_says_it_is_simulated_is() -> None:
    told = replace(hub_device(), attributes=(*hub_device().attributes, "simulated:true"))
    assert identity(spec(), told, None, REAL).simulated
    assert not identity(spec(), hub_device(), None, REAL).simulated


@pytest.mark.parametrize(
    "content", ["", f"{TOKEN}\n", "[api]\napi_token =\n", f"[api]\napi_token = {TOKEN}\n"]
)
def test_settings_that_lack_something_are_not_quoted(tmp_path: Path, content: str) -> None:
    path = tmp_path / "client.ini"
    path.write_text(content)
    with pytest.raises(UserError, match="does not say how to reach") as caught:
        read_account(path)
    assert TOKEN not in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "url", ["http://hub.example", "ftp://127.0.0.1", "hub.qualcomm.com", "http://127.0.0.1.x"]
)
def test_the_token_does_not_cross_a_network_in_the_clear(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match="not an https address"):
        read_account(write(tmp_path, url))


@pytest.mark.parametrize(
    ("kind", "number", "reason", "fault"),
    [
        ("compile", 3, "", "model"),
        ("compile", 0, "Op X is not supported", "model"),
        ("compile", 0, "The job timed out", "lab"),
        ("compile", 1001, "Op X is not supported", "lab"),
        ("compile", 10_000, "", "model"),
        ("inference", 0, "it did not run", "lab"),
        ("inference", 2001, "crash", "lab"),
        ("inference", 12_001, "the device ran out of memory", "model"),
        ("compile", 13_003, "the model cannot be used here", "model"),
        ("compile", 12_000, "it exceeded its time", "lab"),
        ("compile", 12_102, "throttled by a remote service", "lab"),
        ("inference", 13_000, "invalid inference inputs", "lab"),
        ("inference", 13_051, "built for another DSP version", "lab"),
        ("compile", 21_000, "the service is too busy", "lab"),
        ("compile", 30_000, "a class of failures to come", "lab"),
        ("inference", 3, "", "model"),
    ],
)
def test_whose_fault(kind: str, number: int, reason: str, fault: str) -> None:
    assert whose_fault(kind, number, reason) == fault


def test_of_several_devices_the_first_name_and_its_newest_os() -> None:
    listed = [hub_device("Z", "15"), hub_device("A", "9"), hub_device("A", "10.1"), hub_device("A", "10")]
    assert choose(spec(name=None, chipset="c"), listed) == hub_device("A", "10.1")
    with pytest.raises(InfrastructureError, match="no such device now"):
        choose(spec(name=None, attributes=("vendor:x",)), listed)


def test_the_chip_is_what_the_hub_says_and_the_matrix_may_not_contradict() -> None:
    sm8650, sm8350 = find_soc("SM8650")[0], find_soc("SM8350")[0]
    assert chip_of(spec(), hub_device()) == sm8650
    assert chip_of(spec(soc=sm8650), hub_device()) == sm8650
    assert chip_of(spec(), HubDevice(name="S24", os="14")) is None
    assert chip_of(spec(soc=sm8650), HubDevice(name="S24", os="14")) == sm8650
    for told in (
        hub_device(),
        hub_device(number=99_999),
        HubDevice(name="a", os="", attributes=("hexagon:v75",)),
    ):
        with pytest.raises(InfrastructureError, match="is not what the matrix says"):
            chip_of(spec(soc=sm8350), told)


def test_the_sets() -> None:
    listed = [hub_device("B"), hub_device("A", "13"), hub_device("A", "14"), hub_device("C", hexagon="v68")]
    listed.append(HubDevice(name="iPhone", os="17", attributes=("hexagon:v1",)))
    assert [(each.name, each.os) for each in device_set("all", listed)] == [
        ("A", "14"),
        ("B", "14"),
        ("C", "14"),
    ]
    assert [each.name for each in device_set("canary", listed)] == ["C", "A"]


def test_an_entry_for_the_matrix_holds_whatever_the_hub_says() -> None:
    line = hub_entry(hub_device('S24 "x"\n- {id: evil}'), set())
    assert line.startswith(
        '  - {id: s24_x_id_evil, kind: aihub, name: "S24 \\"x\\"\\n- {id: evil}", os: "14"'
    )
    assert line.endswith("# c; v75")
    assert "\n" not in line


def test_a_profile_counts_the_npu_and_claims_the_rest() -> None:
    profile = Profile(
        layers=(
            Layer(name="conv", op="Conv", unit="NPU", cycles=5),
            Layer(name="timed", op="Conv", unit="NPU", time_us=7),
            Layer(name="soft", op="Softmax", unit="CPU", time_us=1),
            Layer(name="odd", op="X", unit="UNSPECIFIED", cycles=9),
        )
    )
    rows = npu_rows(profile, {"conv": "Conv"})
    assert [(row.name, row.cycles, row.sources) for row in rows] == [
        ("conv", 5, ("Conv:conv",)),
        ("timed", 0, ()),
    ]
    events = unit_events(profile)
    assert [(event.kind, event.fields["node"]) for event in events] == [
        ("op_time", "timed"),
        ("cpu_fallback", "soft"),
    ]


def one_output(name: str = "a/b") -> onnx.ModelProto:
    given = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 2])
    made = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 2])
    node = onnx.helper.make_node("Relu", ["x"], [name])
    return onnx.helper.make_model(onnx.helper.make_graph([node], "g", [given], [made]))


def dataset(path: Path, outputs: Mapping[str, list[Any]]) -> Path:
    with h5py.File(path, "w") as file:
        for number, (name, batches) in enumerate(outputs.items()):
            group = file.create_group(f"data/{number}")
            group.attrs["name"], group.attrs["batch_count"] = name, len(batches)
            for index, batch in enumerate(batches):
                group.create_dataset(f"batch_{index}", data=batch)
    return path


def test_outputs_may_come_under_a_compilers_spelling_of_their_name(tmp_path: Path) -> None:
    batches = [np.array([[1, 2]], np.float32), np.array([[3, 4]], np.float32)]
    path = tmp_path / "o.h5"
    outputs = read_outputs(dataset(path, {"a_b": batches}), one_output(), 2)
    assert outputs["a/b"].tolist() == [[1, 2], [3, 4]]
    for odd in ([*batches, batches[0]], [batches[0]], [batches[0], np.zeros((1, 3), np.float32)]):
        with pytest.raises(OutputIncomplete, match="a/b"):
            read_outputs(dataset(path, {"a_b": odd}), one_output(), 2)
    with pytest.raises(OutputIncomplete, match="is missing"):
        read_outputs(dataset(path, {"a_b": batches, "a.b": batches}), one_output(), 2)


def test_one_output_of_a_dataset_is_never_two_of_the_model(tmp_path: Path) -> None:
    two = one_output()
    two.graph.output.append(two.graph.output[0])
    two.graph.output[1].name = "a.b"
    batch = [np.zeros((1, 2), np.float32)]
    with pytest.raises(OutputIncomplete, match="a/b is missing"):
        read_outputs(dataset(tmp_path / "o.h5", {"a_b": batch, "c": batch}), two, 1)
    whole = read_outputs(dataset(tmp_path / "o.h5", {"a/b": batch, "a.b": batch}), two, 1)
    assert list(whole) == ["a/b", "a.b"]


def test_two_outputs_of_a_dataset_under_one_name_are_damage(tmp_path: Path) -> None:
    batch = [np.zeros((1, 2), np.float32)]
    path = dataset(tmp_path / "o.h5", {"a/b": batch, "x": batch})
    with h5py.File(path, "a") as file:
        file["data/1"].attrs["name"] = "a/b"
    with pytest.raises(TransferError, match="two outputs are called"):
        read_outputs(path, one_output(), 1)


def test_a_damaged_dataset_is_the_clouds_fault(tmp_path: Path) -> None:
    path = dataset(tmp_path / "o.h5", {"a_b": [np.zeros((1, 2), np.float32)]})
    whole = path.read_bytes()
    for data in (b"", b"no h5", whole[: len(whole) // 2], whole[:600]):
        path.write_bytes(data)
        with pytest.raises(TransferError, match="did not arrive whole"):
            read_outputs(path, one_output(), 1)
    with pytest.raises(TransferError, match="is no output"):
        read_outputs(dataset(path, {"a_b": [np.array([b"text"])]}), one_output(), 1)


class FakeEdge:
    """AI Hub as the ledger sees it: `answers` of submit, in order."""

    def __init__(self, *answers: str | Exception, listed: Callable[[FakeEdge], list[str]]) -> None:
        self.answers = list(answers)
        self.listed = listed
        self.submitted: list[str] = []
        self.looks = 0

    def submit(self, job: Submission, deadline: Deadline) -> str:
        self.submitted.append(job.name)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def find_jobs(self, name: str, since_s: float, deadline: Deadline) -> tuple[str, ...]:
        self.looks += 1
        return tuple(self.listed(self))


def ensure(folder: Path, edge: FakeEdge) -> str:
    ledger = JobLedger(folder, "s", folder / "uploads")
    entry = JobEntry(kind="inference", name="n", job_id="", asked_s=0.0)
    job = Submission(kind="inference", name="n", model_id="m", device=hub_device())
    wait = Patience(first_s=0.0, sleep=lambda seconds: None)
    return ledger.ensure(ledger.key("a"), entry, job, edge, Deadline.after(60), wait)  # type: ignore[arg-type]


def test_a_job_is_asked_for_once(tmp_path: Path) -> None:
    edge = FakeEdge("j1", listed=lambda _: [])
    assert [ensure(tmp_path, edge) for _ in range(3)] == ["j1"] * 3
    assert (len(edge.submitted), edge.looks) == (1, 0)


def test_a_lost_answer_is_looked_for_before_asking_again(tmp_path: Path) -> None:
    lost = HubOffline("lost")
    # It shows up in the list at the third look only.
    edge = FakeEdge(lost, listed=lambda edge: ["j7"] if edge.looks == 3 else [])
    assert ensure(tmp_path, edge) == "j7"
    assert len(edge.submitted) == 1


def test_what_never_arrived_is_asked_for_again_under_the_same_name(tmp_path: Path) -> None:
    edge = FakeEdge(HubOffline("refused"), "j2", listed=lambda _: [])
    assert ensure(tmp_path, edge) == "j2"
    assert len(edge.submitted) == 2
    assert len(set(edge.submitted)) == 1


def test_a_rate_limit_made_no_job_and_is_not_looked_for(tmp_path: Path) -> None:
    edge = FakeEdge(HubRateLimited("slow"), "j3", listed=lambda _: [])
    assert ensure(tmp_path, edge) == "j3"
    assert edge.looks == 0


def test_killed_before_the_answer(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    edge = FakeEdge(Killed(), listed=lambda _: ["j4"])  # type: ignore[arg-type]
    edge.submit = lambda job, deadline: (_ for _ in ()).throw(Killed())  # type: ignore[method-assign]
    with pytest.raises(Killed):
        ensure(tmp_path, edge)
    after = FakeEdge(listed=lambda _: ["j4"])
    assert ensure(tmp_path, after) == "j4"
    assert after.submitted == []


def test_a_job_given_up_gets_another_name(tmp_path: Path) -> None:
    edge = FakeEdge("j1", "j2", listed=lambda _: [])
    ensure(tmp_path, edge)
    ledger = JobLedger(tmp_path, "s", tmp_path / "uploads")
    ledger.give_up(ledger.key("a"))
    assert ensure(tmp_path, edge) == "j2"
    assert len(set(edge.submitted)) == 2
    entry = ledger.read(ledger.key("a"))
    assert entry is not None
    assert (entry.failed, entry.attempt) == (("j1",), 2)
    assert abs(entry.asked_s - time.time()) < 60


def test_weights_beside_a_float_model_are_not_left_behind(tmp_path: Path) -> None:
    weights = onnx.numpy_helper.from_array(np.ones(4, np.float32), "w")
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in "xy"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "w"], ["y"])], "g", values[:1], values[1:], [weights]
    )
    path = tmp_path / "float.onnx"
    onnx.save(
        onnx.helper.make_model(graph), path, save_as_external_data=True, location="w.bin", size_threshold=0
    )
    edge: Any = None  # nobody is asked
    with pytest.raises(ModelError, match="keeps weights in files of its own"):
        quantize(edge, path, {}, tmp_path / "out.onnx", cache=tmp_path, timeout_s=1, say=lambda text: None)
