from __future__ import annotations

from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_devicelab.errors import UserError
from pytest_devicelab.matrix.select import select_devices
from pytest_devicelab.matrix.soc import find_soc
from pytest_devicelab.matrix.specs import DeviceSpec, Source

HERE = Source(file="m.yaml", line=1, column=1)


def virtual(device_id: str, soc: str, *, engine: str = "htp", sdk: int = 34) -> DeviceSpec:
    return DeviceSpec(id=device_id, kind="virtual", source=HERE, soc=find_soc(soc)[0], engine=engine, sdk=sdk)


DEVICES = (
    virtual("v68", "SM8350", sdk=31),
    virtual("v75", "SM8650"),
    virtual("v79", "SM8750", sdk=35),
    virtual("open", "SM8735", engine="cpu"),
    virtual("pixel", "Tensor G4", engine="cpu"),
    DeviceSpec(id="desk", kind="adb", source=HERE, serial="R5"),
    DeviceSpec(
        id="shelf",
        kind="adb",
        source=HERE,
        soc=find_soc("SM8650")[0],
        selector=MappingProxyType({"ro.soc.model": "SM8650", "ro.build.version.sdk": "35"}),
    ),
    DeviceSpec(id="hub", kind="aihub", source=HERE, name="Samsung Galaxy S25"),
)


@pytest.mark.parametrize(
    ("expression", "ids"),
    [
        ("soc=SM8650", "v75 shelf"),
        ("soc=sm8?50", "v68 v75 v79 shelf"),
        ("soc=snapdragon 8 gen 3", "v75 shelf"),
        ("soc!=SM8650", "v68 v79 open pixel"),
        ("id=v*", "v68 v75 v79"),
        ("id=v7[59]", "v75 v79"),
        ("id!=v*", "open pixel desk shelf hub"),
        ("kind=adb", "desk shelf"),
        ("hexagon=V75", "v75 shelf"),
        ("hexagon=75", "v75 shelf"),
        ("hexagon>=v75", "v75 v79 shelf"),
        ("hexagon<=V68", "v68"),
        ("hexagon=none", "pixel"),
        ("hexagon!=none", "v68 v75 v79 shelf"),
        ("engine=cpu", "open pixel"),
        ("engine=none", "desk shelf hub"),
        ("sdk>=35", "v79 shelf"),
        ("sdk<=34", "v68 v75 open pixel"),
        ("sdk=31", "v68"),
        ("name=*galaxy*", "hub"),
        ("name!=*galaxy*", "v68 v75 v79 open pixel desk shelf"),
        (" kind = virtual , hexagon >= V73 ", "v75 v79"),
        ("KIND=Virtual,SDK>=35", "v79"),
    ],
)
def test_what_an_expression_chooses(expression: str, ids: str) -> None:
    assert " ".join(device.id for device in select_devices(DEVICES, expression)) == ids


def test_a_selection_of_nothing_says_what_there_was() -> None:
    with pytest.raises(UserError) as raised:
        select_devices(DEVICES, "soc=SM8550")
    assert str(raised.value).splitlines() == [
        "--devicelab-select 'soc=SM8550' matches none of the 8 devices",
        "  why: the matrix has:",
        "         id=v68, kind=virtual, soc=SM8350|Snapdragon 888, hexagon=V68, engine=htp, sdk=31",
        "         id=v75, kind=virtual, soc=SM8650|Snapdragon 8 Gen 3, hexagon=V75, engine=htp, sdk=34",
        "         id=v79, kind=virtual, soc=SM8750|Snapdragon 8 Elite, hexagon=V79, engine=htp, sdk=35",
        "         id=open, kind=virtual, soc=SM8735|Snapdragon 8s Gen 4, hexagon=?, engine=cpu, sdk=34",
        "         id=pixel, kind=virtual, soc=Tensor G4, hexagon=none, engine=cpu, sdk=34",
        "         id=desk, kind=adb, soc=?, hexagon=?, engine=none, sdk=?",
        "         id=shelf, kind=adb, soc=SM8650|Snapdragon 8 Gen 3, hexagon=V75, engine=none, sdk=35",
        "         id=hub, kind=aihub, soc=?, hexagon=?, engine=none, sdk=?, name=Samsung Galaxy S25",
        "  fix: choose by id, kind, soc, hexagon, engine, sdk, name; '?' is unknown here and matches nothing",
    ]


def test_an_unknown_key_is_answered_with_the_keys() -> None:
    with pytest.raises(UserError, match=r"unknown key 'sok' \(did you mean 'soc'") as raised:
        select_devices(DEVICES, "kind=adb,sok=SM8650")
    assert "id, kind, soc, hexagon, engine, sdk, name" in str(raised.value)


@pytest.mark.parametrize("expression", ["id>=v75", "sdk>=new", "hexagon<=none", "soc>=SM8650", "sdk>=3.5"])
def test_only_sdk_and_hexagon_have_an_order(expression: str) -> None:
    with pytest.raises(UserError, match="cannot compare"):
        select_devices(DEVICES, expression)


@pytest.mark.parametrize(
    "expression", ["", ",", "soc", "soc=", "=SM8650", "soc==SM8650", "sdk=>3", "id=a,", "a b=c"]
)
def test_what_cannot_be_read(expression: str) -> None:
    with pytest.raises(UserError, match="cannot read"):
        select_devices(DEVICES, expression)


@given(st.text(alphabet="idsockhexagonV7 =!<>,*?[]%9é\n", max_size=30))
def test_any_expression_chooses_devices_in_order_or_is_a_user_error(expression: str) -> None:
    try:
        chosen = select_devices(DEVICES, expression)
    except UserError:
        return
    assert chosen
    assert [device for device in DEVICES if device in chosen] == list(chosen)
