from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pytest_devicelab.cluster.join import units_of
from pytest_devicelab.cluster.names import (
    beside_of,
    chip_of,
    host_of,
    is_unit,
    make_of,
    new_host_name,
    serial_of,
    unit_name,
)
from pytest_devicelab.cluster.parcel import Parcel, pack, read, unpack
from pytest_devicelab.errors import DevicelabError, InfrastructureError
from pytest_devicelab.evidence.record import RunRecord, TensorRecord
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.lab.request import hoped_identity
from pytest_devicelab.matrix.soc import find_soc
from pytest_devicelab.matrix.specs import DeviceSpec, Source
from tests.unit.verdict_builders import run_record

PLACE = Source(file="m.yaml", line=1, column=1)
SPEC = DeviceSpec(id="any", kind="cluster", source=PLACE, soc=find_soc("SM8650")[0])
BESIDE = replace(SPEC, id="left", kind="adb", serial="R5|CT")
UNIT = unit_name("rack-3f1c-9a07", BESIDE)


@pytest.fixture
def there(tmp_path: Path) -> SessionStore:
    return SessionStore.create(tmp_path / "there", "session")


@pytest.fixture
def here(tmp_path: Path) -> SessionStore:
    return SessionStore.create(tmp_path / "here", "session")


@pytest.fixture
def parcel(there: SessionStore) -> Parcel:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    output = TensorRecord(name="y", dtype="float32", shape=(2, 3), sha256=there.arrays.write(array))
    record = replace(
        run_record(),
        id="run",
        session=there.id,
        device=hoped_identity(BESIDE),
        outputs=(output,),
        files={"stdout.txt": "stdout.txt"},
    )
    (there.run_folder("run") / "stdout.txt").write_bytes(b"said")
    return pack(record, there)


def _unpack(parcel: Parcel, store: SessionStore) -> RunRecord:
    return unpack(parcel, read(parcel, run_id="run", host="rack"), SPEC, store, unit=UNIT)


def test_a_run_arrives_whole_under_the_controllers_name(parcel: Parcel, here: SessionStore) -> None:
    record = _unpack(parcel, here)
    assert here.read_record("run") == record
    assert (record.device.id, record.device.kind, record.device.serial) == (
        "any",
        "cluster",
        "unit|rack-3f1c|SM8650|adb||left|R5|CT",
    )
    assert (here.run_folder("run") / "stdout.txt").read_bytes() == b"said"
    np.testing.assert_array_equal(
        here.read_output(record.outputs[0]), np.arange(6, dtype=np.float32).reshape(2, 3)
    )


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "a/b", ".hidden", "attempt-1/../x", "", "a\nb"])
def test_no_file_leaves_the_runs_folder(parcel: Parcel, here: SessionStore, name: str) -> None:
    with pytest.raises(InfrastructureError, match="sent a file named"):
        _unpack(replace(parcel, files={name: b"x"}), here)
    assert here.read_record("run") is None


def test_outputs_are_what_they_are_called_and_all_there(parcel: Parcel, here: SessionStore) -> None:
    (sha256,) = parcel.arrays
    other = io.BytesIO()
    np.lib.format.write_array(other, np.zeros((2, 3), np.float32), allow_pickle=False)
    for arrays in ({}, {sha256: other.getvalue()}, {sha256: b"no array"}):
        with pytest.raises(DevicelabError):
            _unpack(replace(parcel, arrays=arrays), here)
        assert here.read_record("run") is None


def test_another_runs_record_is_refused(parcel: Parcel) -> None:
    with pytest.raises(InfrastructureError, match="run other was asked for"):
        read(parcel, run_id="other", host="rack")
    with pytest.raises(DevicelabError):
        read(replace(parcel, record=b"{}"), run_id="run", host="rack")


def test_names_say_what_a_controller_chooses_by() -> None:
    assert (host_of(UNIT), chip_of(UNIT), make_of(UNIT)) == (
        "rack-3f1c-9a07",
        "SM8650",
        ("adb", ""),
    )
    assert chip_of("somebody else's actor") is None
    simulated = unit_name("rack", replace(SPEC, kind="virtual", engine="htp"))
    assert make_of(UNIT) < make_of(simulated)


def test_a_unit_is_known_again_when_its_host_joins_again_with_the_same_matrix(tmp_path: Path) -> None:
    (tmp_path / "rack.yaml").write_text("schema: devicelab.matrix/1")
    first, again = (unit_name(new_host_name(tmp_path / "rack.yaml"), BESIDE) for _ in range(2))
    (tmp_path / "rack.yaml").write_text("schema: devicelab.matrix/1\n# another phone now")
    other = unit_name(new_host_name(tmp_path / "rack.yaml"), BESIDE)
    assert len({first, again, other}) == 3
    serial = serial_of(first, "R5|CT")
    assert beside_of(serial) == "R5|CT"
    assert [is_unit(name, serial) for name in (first, again, other)] == [True, True, False]
    assert serial != serial_of(first, "another phone of the same selector")
    # The port of a virtual device is another each time.
    virtual = unit_name("rack-3f1c-9a07", replace(SPEC, kind="virtual", engine="htp"))
    assert serial_of(virtual, "127.0.0.1:5555") == serial_of(virtual, "127.0.0.1:5557")
    assert beside_of(serial_of(virtual, "127.0.0.1:5555")) == ""


def test_each_unit_of_a_pool_is_a_unit_of_the_cluster() -> None:
    phones = replace(BESIDE, serials=("A", "B"))
    assert [(each.id, each.serial, each.pool) for each in units_of(phones)] == [
        ("left", "A", False),
        ("left.2", "B", False),
    ]
    virtual = replace(SPEC, kind="virtual", units=2)
    assert [(each.id, each.pool) for each in units_of(virtual)] == [("any", False), ("any.2", False)]
    chosen = replace(BESIDE, selector={"ro.product.model": "X"})
    assert units_of(chosen) == (chosen,)
