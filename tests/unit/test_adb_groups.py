"""Groups of devices behind adb servers of their own: what the matrix refuses, and what makes a device one device."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_devicelab.errors import MatrixError
from pytest_devicelab.matrix.decode import load_matrix
from pytest_devicelab.matrix.servers import device_name, server_for
from pytest_devicelab.matrix.specs import AdbServerSpec, LabSpec, MatrixSpec

RACK = AdbServerSpec(host="10.0.0.5", port=5037)


def load(folder: Path, *devices: str) -> MatrixSpec:
    (folder / "cnn.onnx").touch()
    path = folder / "matrix.yaml"
    lines = [
        "schema: devicelab.matrix/1",
        "lab: {groups: {rack_b: {adb: {host: 10.0.0.5}}, desk: {adb: {host: 127.0.0.1, port: 5038}}}}",
        "devices:",
        *(f"- {device}" for device in devices),
        "models: [{id: cnn, path: cnn.onnx}]",
    ]
    path.write_text("\n".join(lines) + "\n")
    return load_matrix(path)


@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("{id: a, kind: adb, serial: R5C, group: rack_c}", "rack_c.*rack_b"),
        ("{id: a, kind: virtual, soc: SM8650, group: rack_b}", "another host"),
        ("{id: a, kind: aihub, name: Galaxy, group: rack_b}", "this one is aihub"),
    ],
)
def test_a_group_that_cannot_reach_a_device_is_a_mistake(tmp_path: Path, device: str, says: str) -> None:
    with pytest.raises(MatrixError, match=says):
        load(tmp_path, device)


def test_one_serial_is_one_phone_whichever_server_reaches_it(tmp_path: Path) -> None:
    with pytest.raises(MatrixError, match="duplicate serial"):
        load(tmp_path, "{id: a, kind: adb, serial: R5C}", "{id: b, kind: adb, serial: R5C, group: rack_b}")
    assert device_name("R5C", "10.0.0.5") == device_name("R5C", "127.0.0.1")


@pytest.mark.parametrize("serial", ["emulator-5554", "127.0.0.1:40001", "localhost:5555", "[::1]:5555"])
def test_what_a_host_names_for_itself_is_another_device_elsewhere(tmp_path: Path, serial: str) -> None:
    assert device_name(serial, "10.0.0.5") != device_name(serial, "127.0.0.1")
    assert device_name(serial, "localhost") == device_name(serial, "127.0.0.1") == serial
    if not serial.startswith("["):
        here = f"{{id: a, kind: adb, serial: '{serial}'}}"
        load(tmp_path, here, f"{{id: b, kind: adb, serial: '{serial}', group: rack_b}}")


def test_a_virtual_device_is_never_behind_another_hosts_server() -> None:
    lab = LabSpec(adb=RACK, groups={"desk": AdbServerSpec(host="::1", port=5038)})
    assert server_for(lab, None, virtual=True) is None
    assert server_for(lab, None, virtual=False) == RACK
    assert server_for(lab, "desk", virtual=True) == AdbServerSpec(host="::1", port=5038)
