from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pytest_devicelab.commands.suggest import entry, trouble

TOLD = {
    "ro.product.model": "SM-S921B",
    "ro.soc.model": "SM8650",
    "ro.hardware.chipname": "",
    "ro.board.platform": "pineapple",
    "ro.build.version.sdk": "34",
    "ro.devicelab.simulated": "",
}


def test_a_phone_becomes_a_line_of_the_matrix() -> None:
    line = entry("1234567890", TOLD, set())
    assert yaml.safe_load(line) == [
        {"id": "sm_s921b", "kind": "adb", "serial": "1234567890", "soc": "SM8650"}
    ]
    assert line.endswith("# SM-S921B; sdk 34")


def test_two_of_a_kind_get_two_ids() -> None:
    taken: set[str] = set()
    lines = [entry(serial, TOLD, taken) for serial in ("a", "b", "c")]
    ids = [yaml.safe_load(line)[0]["id"] for line in lines]
    assert ids == ["sm_s921b", "sm_s921b_2", "sm_s921b_3"]


def test_a_chip_nobody_knows_is_left_out_and_named() -> None:
    line = entry("a", TOLD | {"ro.soc.model": "SM9999"}, set())
    assert "soc" not in yaml.safe_load(line)[0]
    assert "its chip 'SM9999' is not in our table" in line
    assert "it does not say its chip" in entry("a", dict.fromkeys(TOLD, ""), set())


@pytest.mark.parametrize(
    "evil", ["x\ndevices: []", "}, {id: evil", "# \u2028- {id: evil}", "\x1b[2J", '"', "é" * 300]
)
def test_whatever_a_device_says_stays_in_its_place(evil: str) -> None:
    line = entry(evil, {name: evil for name in TOLD}, set())
    (device,) = yaml.safe_load(line)
    assert device["serial"] == evil
    assert set(device) <= {"id", "kind", "serial", "soc"}
    assert len(line.splitlines()) == 1
    assert all(row.lstrip().startswith("#") for row in trouble(evil, evil).splitlines())


@pytest.mark.parametrize(
    ("state", "fix"),
    [
        ("unauthorized", "accept the prompt"),
        ("offline", "reconnect"),
        ("no permissions (user in plugdev group; are your udev rules wrong?)", "udev"),
        ("something new", "adb devices -l"),
    ],
)
def test_a_device_in_trouble_is_a_comment_with_its_fix(state: str, fix: str, tmp_path: Path) -> None:
    said = trouble("R5CT", state)
    assert "R5CT" in said
    assert fix in said
    assert yaml.safe_load(said) is None
