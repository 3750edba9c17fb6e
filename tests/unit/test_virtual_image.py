from __future__ import annotations

import json
import os
import shlex
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_devicelab.errors import InfrastructureError, UserError
from pytest_devicelab.matrix.soc import Soc
from pytest_devicelab.matrix.specs import DeviceSpec, Source
from pytest_devicelab.virtual import image, properties
from pytest_devicelab.virtual.tools import df, ps, vitals
from pytest_devicelab.virtual.tools.device_path import BOOT_TIME_FILE, host_path
from pytest_devicelab.virtual.tools.packages import install, installed, uninstall

SM8650 = Soc(
    name="SM8650",
    manufacturer="QTI",
    marketing="Snapdragon 8 Gen 3",
    hexagon="V75",
    qnn_id=57,
    vtcm_mb=8,
    htp_fp16=True,
    platform="pineapple",
)
TENSOR_G4 = Soc(name="Tensor G4", manufacturer="Google", has_hexagon=False)


def device(soc: Soc | None = SM8650, **changes: object) -> DeviceSpec:
    source = Source(file="device_matrix.yaml", line=1, column=1)
    settings: dict[str, object] = {"id": "s24", "kind": "virtual", "source": source, "soc": soc, **changes}
    return DeviceSpec(**settings)  # type: ignore[arg-type]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "s24"
    image.build_image(device(), folder)
    return folder


# --- the image


def test_the_image_has_the_folders_and_programs_of_a_device(root: Path) -> None:
    for folder in ("data/local/tmp", "sdcard", "system/bin", "vendor", "dev/socket"):
        assert (root / folder).is_dir()
    programs = root / "system" / "bin"
    for name in (
        "getprop",
        "setprop",
        "logcat",
        "dumpsys",
        "sha256sum",
        "df",
        "qnn-net-run",
        "ort-run",
        "sh",
    ):
        assert os.access(programs / name, os.X_OK), name


def test_nobody_else_can_look_into_a_device(root: Path) -> None:
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_the_facts_of_the_device_come_back_whole(root: Path) -> None:
    assert image.read_device(root) == image.DeviceFacts(id="s24", engine="htp", soc=SM8650, sdk=34)


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"id": "x", "soc": {"nope": 1}}'])
def test_a_damaged_image_is_named(root: Path, text: str | None) -> None:
    (root / "device.json").unlink()
    if text is not None:
        (root / "device.json").write_text(text)
    with pytest.raises(InfrastructureError, match=r"no virtual device in .*s24\n  why: device\.json: "):
        image.read_device(root)


def test_a_virtual_device_without_a_chip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^device s24: a virtual device needs a chip"):
        image.build_image(device(soc=None), tmp_path / "s24")
    assert not (tmp_path / "s24").exists()


def test_a_property_android_would_refuse_leaves_nothing_half_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'debug\.x'"):
        image.build_image(device(properties={"debug.x": "v" * 92}), tmp_path / "s24")
    assert not (tmp_path / "s24").exists()


def test_a_host_without_sha256sum_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    which = shutil.which
    monkeypatch.setattr(
        shutil, "which", lambda name, path: None if name == "sha256sum" else which(name, path=path)
    )
    with pytest.raises(InfrastructureError, match=r"(?s)no sha256sum.*fix: install coreutils"):
        image.build_image(device(), tmp_path / "s24")


def test_building_again_keeps_what_is_the_devices_own(root: Path) -> None:
    (root / "data" / "local" / "tmp" / "kept").write_text("kept")
    properties.set(root, "persist.kept", "1")
    image.build_image(device(properties={"debug.new": "1"}), root)
    assert (root / "data" / "local" / "tmp" / "kept").read_text() == "kept"
    assert properties.get(root, "persist.kept") == "1"
    assert properties.get(root, "debug.new") == "1"


def test_the_environment_holds_nothing_of_the_hosts(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAIHUB_TOKEN", "secret")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/python/lib")
    found = image.environment(root)
    assert "secret" not in found.values()
    assert "PYTHONPATH" not in found
    assert found["LD_LIBRARY_PATH"] == "/opt/python/lib"
    assert found["PATH"].split(":")[0] == str(root / "system" / "bin")
    assert found["DEVICELAB_VDEVICE"] == found["VROOT"] == str(root)
    assert (found["ANDROID_ROOT"], found["ANDROID_DATA"], found["HOME"]) == ("/system", "/data", "/")


# --- properties


def test_a_device_says_which_chip_it_has_and_that_it_is_simulated(root: Path) -> None:
    found = properties.read(root)
    expected = {
        "ro.soc.model": "SM8650",
        "ro.soc.manufacturer": "QTI",
        "ro.board.platform": "pineapple",
        "ro.hardware": "qcom",
        "ro.product.cpu.abi": "arm64-v8a",
        "ro.build.version.sdk": "34",
        "ro.build.version.release": "14",
        "ro.serialno": "s24",
        "ro.devicelab.simulated": "1",
        "sys.boot_completed": "1",
    }
    assert found | expected == found
    assert list(found) == sorted(found)


def test_what_is_unknown_of_a_chip_is_no_property(tmp_path: Path) -> None:
    image.build_image(device(soc=TENSOR_G4), tmp_path / "g4")
    found = properties.read(tmp_path / "g4")
    assert "ro.board.platform" not in found
    assert "qcom" not in found.values()
    assert "" not in found.values()


def test_the_matrix_has_the_last_word_on_properties(tmp_path: Path) -> None:
    spoofed = {"ro.soc.model": "SM8750", "debug.mine": "1"}
    image.build_image(device(properties=spoofed), tmp_path / "d")
    found = properties.read(tmp_path / "d")
    assert found | spoofed == found


@pytest.mark.parametrize(
    ("sdk", "release"), [(28, "9"), (29, "10"), (31, "12"), (32, "12"), (33, "13"), (36, "16")]
)
def test_android_releases(sdk: int, release: str) -> None:
    assert properties.android_release(sdk) == release


def test_a_read_only_property_is_set_once(root: Path) -> None:
    properties.set(root, "ro.mine", "x" * 200)
    with pytest.raises(UserError, match=r"a ro\. property is set once"):
        properties.set(root, "ro.mine", "2")
    assert properties.get(root, "ro.mine") == "x" * 200


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../x", ".a", "a.", "a..b", "a b", "ä", "a\n", "x" * 256]
)
def test_a_name_is_never_a_path(root: Path, name: str) -> None:
    with pytest.raises(UserError, match="the name is not valid"):
        properties.set(root, name, "1")
    assert properties.get(root, name, "default") == "default"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("x" * 92, "92 bytes; at most 91"),
        ("é" * 46, "92 bytes; at most 91"),
        ("a\nb", "more than one line"),
        ("a\0b", "a NUL"),
        ("\ud800", "the value is no text"),
    ],
)
def test_values_android_would_refuse(root: Path, value: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        properties.set(root, "debug.x", value)


@given(
    value=st.text(st.characters(exclude_characters="\0\n", exclude_categories=["Cs"]), max_size=91).filter(
        lambda text: len(text.encode()) <= 91
    )
)
def test_any_line_of_text_survives(tmp_path_factory: pytest.TempPathFactory, value: str) -> None:
    root = tmp_path_factory.mktemp("device")
    properties.replace_all(root, {})
    properties.set(root, "debug.x", value)
    assert properties.read(root) == {"debug.x": value}


def test_an_empty_property_gives_the_default(root: Path) -> None:
    properties.set(root, "debug.x", "")
    assert properties.get(root, "debug.x", "default") == "default"
    assert properties.read(root)["debug.x"] == ""


def test_what_is_no_property_is_not_read(root: Path) -> None:
    store = properties.store(root)
    (store / "a folder").mkdir()
    (store / "folder").mkdir()
    os.mkfifo(store / "fifo")
    assert not {"a folder", "folder", "fifo"} & set(properties.read(root))
    assert properties.get(root, "fifo") == ""
    image.boot(root)
    assert not (store / "fifo").exists()


# --- reboot


def test_a_reboot_resets_what_does_not_persist(root: Path) -> None:
    before = properties.read(root)
    (root / BOOT_TIME_FILE).write_text("1")
    for name in ("debug.nn.vlog", "sys.boot_completed", "persist.mine", "ro.late"):
        properties.set(root, name, "all")
    image.become(root, "root")
    image.boot(root)
    assert properties.read(root) == before | {"persist.mine": "all"}
    assert int((root / BOOT_TIME_FILE).read_text()) > 1


def test_a_reboot_survives_what_a_process_wrote_past_setprop(root: Path) -> None:
    store = properties.store(root)
    (store / "persist.long").write_bytes(b"x" * 500)
    (store / "persist.lines").write_bytes(b"a\nb")
    (store / "persist.bytes").write_bytes(b"\xff")
    image.boot(root)
    found = properties.read(root)
    assert "persist.long" not in found
    assert "persist.lines" not in found
    assert found["persist.bytes"] == "\udcff"


def test_adb_root_is_a_property_as_on_a_phone(root: Path) -> None:
    image.become(root, "root")
    assert properties.get(root, "service.adb.root") == "1"
    image.become(root, "shell")
    assert properties.get(root, "service.adb.root") == "0"


# --- battery and heat


def test_a_device_without_a_hexagon_has_no_npu_sensors(tmp_path: Path) -> None:
    image.build_image(device(soc=TENSOR_G4), tmp_path / "g4")
    state = vitals.read(str(tmp_path / "g4"), "thermal")
    assert vitals.NPU not in [sensor["type"] for sensor in state["temperatures"]]
    assert "cdsp" not in [item["name"] for item in state["cooling"]]


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["set", "temp", "455"], "temperature_decidegrees", 455),
        (["set", "temp", "-50"], "temperature_decidegrees", -50),
        (["set", "usb", "0"], "usb_powered", False),
        (["unplug"], "usb_powered", False),
    ],
)
def test_the_battery_can_be_set(root: Path, words: list[str], field: str, value: object) -> None:
    assert vitals.set_battery(str(root), words)
    state = vitals.read(str(root), "battery")
    assert state[field] == value
    assert state["updates_stopped"] is True
    assert vitals.set_battery(str(root), ["reset"])
    assert vitals.read(str(root), "battery") == vitals.default_battery()


@pytest.mark.parametrize("words", [["set", "temp", "hot"], ["set", "nope", "1"], ["set"], ["drain"]])
def test_a_battery_command_that_is_none_changes_nothing(root: Path, words: list[str]) -> None:
    assert not vitals.set_battery(str(root), words)
    assert vitals.read(str(root), "battery") == vitals.default_battery()


# --- programs that are pure enough to be asked directly


def test_device_paths_stay_below_the_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVICELAB_VDEVICE", str(root))
    expected: Mapping[str, str] = {
        "/data/local/tmp/x": f"{root}/data/local/tmp/x",
        "/sdcard/../sdcard/x": f"{root}/sdcard/x",
        f"{root}/data/x": f"{root}/data/x",
        "relative": "relative",
        "/proc/version": "/proc/version",
        "/data/../etc/passwd": "/data/../etc/passwd",
    }
    assert {path: host_path(path) for path in expected} == expected


def test_df_names_the_file_system_a_path_is_on(root: Path) -> None:
    assert df.mount_point(str(root), str(root / "data" / "local" / "tmp")) == "/data"
    assert df.mount_point(str(root), "/proc") == "/"
    assert [df.describe_kib(size) for size in (512, 1024, 1536, 20_480, 77 * 1024**2)] == [
        "512K",
        "1.0M",
        "1.5M",
        "20M",
        "77G",
    ]


def test_processes_have_the_names_they_have_on_the_device(root: Path) -> None:
    script = (root / "system" / "bin" / "logcat").read_text()
    command = shlex.split(script.partition("exec ")[2])
    assert ps.name_of(command, "python3") == "logcat"
    runner = ["/usr/bin/python3", "-P", "-m", "pytest_devicelab.virtual.tools.qnn_net_run", "--model"]
    assert ps.name_of(runner, "python3") == "qnn-net-run"
    assert ps.name_of(["/bin/sh", "-c", "true"], "sh") == "sh"
    assert ps.name_of([], "kworker") == "kworker"


def test_installed_packages_are_listed_and_can_go(root: Path, tmp_path: Path) -> None:
    (tmp_path / "a.apk").write_bytes(b"apk")
    with (tmp_path / "a.apk").open("rb") as stream:
        name = install(str(root), stream, 3)
    assert (name, f"/data/app/{name}.apk") in installed(str(root))
    assert (root / "data" / "app" / f"{name}.apk").read_bytes() == b"apk"
    assert uninstall(str(root), name)
    assert not uninstall(str(root), name)
    assert not uninstall(str(root), "android")
    assert not uninstall(str(root), "../../device.json")


def test_the_facts_are_readable_json(root: Path) -> None:
    assert json.loads((root / "device.json").read_text())["soc"]["hexagon"] == "V75"
