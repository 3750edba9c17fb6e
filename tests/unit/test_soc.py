from __future__ import annotations

import csv
import re
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_devicelab.errors import UserError
from pytest_devicelab.matrix.soc import (
    SIMULATED_HEXAGONS,
    Soc,
    find_soc,
    known_socs,
    soc_by_qnn_id,
    soc_from_properties,
)


def test_the_facts_of_the_six_chips_of_the_demo() -> None:
    facts = [find_soc(f"SM{part}")[0] for part in (8350, 8450, 8550, 8650, 8750, 8850)]
    assert [
        (soc.name, soc.marketing, soc.hexagon, soc.qnn_id, soc.vtcm_mb, soc.htp_fp16) for soc in facts
    ] == [
        ("SM8350", "Snapdragon 888", "V68", 30, 4, None),
        ("SM8450", "Snapdragon 8 Gen 1", "V69", 36, 8, True),
        ("SM8550", "Snapdragon 8 Gen 2", "V73", 43, 8, True),
        ("SM8650", "Snapdragon 8 Gen 3", "V75", 57, 8, True),
        ("SM8750", "Snapdragon 8 Elite", "V79", 69, 8, True),
        ("SM8850", "Snapdragon 8 Elite Gen 5", "V81", 87, 8, None),
    ]
    assert {soc.manufacturer for soc in facts} == {"QTI"}


def test_every_row_of_the_table_is_well_formed() -> None:
    socs = known_socs()
    assert len(socs) > 80
    assert len({soc.name.casefold() for soc in socs}) == len(socs)
    for soc in socs:
        assert soc.hexagon is None or re.fullmatch(r"V\d\d", soc.hexagon)
        assert soc.has_hexagon or soc.hexagon is None
        assert soc.qnn_id is None or soc.qnn_id > 0
        assert find_soc(soc.name) == (soc, None)
        assert soc.marketing is None or find_soc(soc.marketing)[0] == soc
    assert {soc.hexagon for soc in socs} >= set(SIMULATED_HEXAGONS)


def test_every_row_names_a_source_the_table_explains() -> None:
    text = (resources.files("pytest_devicelab.matrix") / "soc_table.csv").read_text("utf-8")
    explained = set(re.findall(r"\b([A-Z]+) +=", text))
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    for row in rows:
        assert row["sources"], row["name"]
        assert set(row["sources"].split("+")) <= explained, row["name"]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("sm8650", "SM8650"),
        (" SM8650 ", "SM8650"),
        ("Snapdragon 8 Gen 3", "SM8650"),
        ("snapdragon 8 gen3", "SM8650"),
        ("Qualcomm® Snapdragon™ 8 Gen 3 Mobile Platform", "SM8650"),
        ("8 Gen 3", "SM8650"),
        ("Snapdragon 8 Gen 3 for Galaxy", "SM8650"),
        ("Snapdragon 8+ Gen 1", "SM8475"),
        ("8 Gen 1", "SM8450"),
        ("Snapdragon 888", "SM8350"),
        ("Snapdragon 865", "SM8250"),
        ("Snapdragon 8s Gen 4", "SM8735"),
        ("Google Tensor G4", "Tensor G4"),
        ("Exynos 2400", "S5E9945"),
        ("MediaTek Dimensity 9300", "MT6989"),
    ],
)
def test_names_of_a_chip(name: str, part: str) -> None:
    soc, note = find_soc(name)
    assert soc.name == part
    assert note is None


def test_a_speed_grade_is_its_chip_with_a_note() -> None:
    soc, note = find_soc("SM8750-AC")
    assert soc.name == "SM8750"
    assert note == "'SM8750-AC' is a speed grade of SM8750: its facts are used"


@pytest.mark.parametrize(
    ("name", "part"),
    [("Snapdragon 8 Gen 4", "SM8750"), ("8 gen 4", "SM8750"), ("Snapdragon 8 Elite 2", "SM8850")],
)
def test_an_invented_name_is_the_chip_that_came_with_a_note(name: str, part: str) -> None:
    soc, note = find_soc(name)
    assert soc.name == part
    assert note == f"no chip was released as {name!r}: taken for {part} ({soc.marketing})"


def test_a_name_the_sources_disagree_on_is_not_guessed() -> None:
    with pytest.raises(UserError, match="may be more than one chip") as raised:
        find_soc("snapdragon 8 gen 5")
    assert [soc.name for soc in raised.value.evidence["candidates"]] == ["SM8845", "SM8850"]
    assert raised.value.fix == "say which: soc: SM8845 or soc: SM8850"
    assert find_soc("SM8845")[0].marketing is None


def test_an_unknown_chip_is_answered_with_its_neighbours() -> None:
    with pytest.raises(UserError, match="unknown soc 'SM8651'") as raised:
        find_soc("SM8651")
    assert raised.value.evidence["nearest"][0] == "SM8650"
    assert raised.value.fix.startswith("did you mean SM8650 or ")
    with pytest.raises(UserError) as raised:
        find_soc("zzzz")
    assert raised.value.fix == "give the part number, such as SM8650"


@pytest.mark.parametrize("name", ["", " ", "+", "Snapdragon", "for galaxy", "®", "SM", "-", "SM8650-"])
def test_what_is_no_name_names_no_chip(name: str) -> None:
    with pytest.raises(UserError, match="unknown soc"):
        find_soc(name)


@given(st.text(max_size=40))
def test_any_text_names_a_chip_or_is_a_user_error(name: str) -> None:
    try:
        soc, _ = find_soc(name)
    except UserError as error:
        str(error).encode()
    else:
        assert soc in known_socs()


def test_unknown_stays_unknown() -> None:
    assert find_soc("SM8735")[0].hexagon is None
    assert find_soc("SM8735")[0].has_hexagon
    both = find_soc("QCM6490")[0]
    assert (both.hexagon, both.qnn_id) == ("V68", None)
    assert "93" in (both.note or "")
    assert "35" in (both.note or "")


def test_chips_known_to_have_no_hexagon() -> None:
    without = {soc.marketing for soc in known_socs() if not soc.has_hexagon}
    assert without == {"Tensor G3", "Tensor G4", "Exynos 2400", "Dimensity 9300"}


def test_a_qnn_id_may_belong_to_several_chips_or_to_none() -> None:
    assert [soc.name for soc in soc_by_qnn_id(57)] == ["SM8650"]
    assert [soc.name for soc in soc_by_qnn_id(52)] == ["SA8255", "SA8650", "SA8775"]
    assert soc_by_qnn_id(93) == ()


def name_of(soc: Soc | None) -> str | None:
    return soc.name if soc is not None else None


@pytest.mark.parametrize(
    ("properties", "part"),
    [
        (
            {"ro.soc.model": "SM8650", "ro.soc.manufacturer": "QTI", "ro.board.platform": "pineapple"},
            "SM8650",
        ),
        ({"ro.soc.model": "sm8650-ac"}, "SM8650"),
        ({"ro.soc.model": "Tensor G4"}, "Tensor G4"),
        ({"ro.soc.model": "SM8475", "ro.board.platform": "taro"}, "SM8475"),
        ({"ro.soc.model": "", "ro.hardware.chipname": "SM8550"}, "SM8550"),
        ({"ro.board.platform": "taro"}, "SM8450"),
        ({"ro.board.platform": "kalama"}, "SM8550"),
        ({"ro.board.platform": "pineapple"}, "SM8650"),
        ({"ro.board.platform": "sun"}, "SM8750"),
        # An unknown part on a known platform is some other chip of that platform.
        ({"ro.soc.model": "SM8999", "ro.board.platform": "sun"}, None),
        ({"ro.soc.model": "SM8999", "ro.hardware.chipname": "SM8650"}, None),
        ({"ro.hardware": "qcom"}, None),
        ({"ro.board.platform": "qcom"}, None),
        ({"ro.board.platform": ""}, None),
        ({}, None),
    ],
)
def test_what_a_device_says_of_its_chip(properties: dict[str, str], part: str | None) -> None:
    assert name_of(soc_from_properties(properties)) == part


def test_a_chip_known_only_by_its_platform_says_so() -> None:
    soc = soc_from_properties({"ro.board.platform": "kalama"})
    assert soc is not None
    assert soc.note == "known only by ro.board.platform=kalama, which sibling chips may share"
