from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pytest_devicelab.report.fallback_table import FallbackCell, fallback_rows
from pytest_devicelab.report.html import render_html
from pytest_devicelab.report.session import Session
from pytest_devicelab.verdicts.verdict import Outcome
from tests.unit.session_builders import NPU, session


@pytest.fixture
def found(tmp_path: Path) -> Session:
    return session(tmp_path / "reports")


def test_a_row_an_operator_and_a_cell_a_chip(found: Session) -> None:
    (row,) = fallback_rows(found)
    assert (row.op, row.model) == ("LayerNormalization", "digits_ln_axis1")
    declared = FallbackCell(declared=1, undeclared=0, otherwise="no")
    assert len(row.cells) == len(found.devices) > len(NPU)
    by_device = dict(zip((device.id for device in found.devices), row.cells, strict=True))
    assert all(by_device[device] == declared for device in NPU)


def test_a_chip_without_the_fallback_says_what_is_known_of_it(found: Session) -> None:
    first, *rest = found.fallbacks
    fewer = dataclasses.replace(found, fallbacks=tuple(rest))

    def cell(verdict: Outcome, grade: str) -> FallbackCell:
        verdicts = tuple(
            dataclasses.replace(entry, verdict=verdict, details={**entry.details, "grade": grade})
            if (entry.check, entry.model, entry.devices) == ("placement", first.model, (first.device,))
            else entry
            for entry in fewer.verdicts
        )
        (row,) = fallback_rows(dataclasses.replace(fewer, verdicts=verdicts))
        return row.cells[[device.id for device in found.devices].index(first.device)]

    assert cell("pass", "assignment").otherwise == "no"
    assert cell("fail", "profile").otherwise == "no"
    assert cell("pass", "none").otherwise == "CPU"
    assert cell("inconclusive", "logcat").otherwise == "unknown"
    assert cell("fail", "none").otherwise == "unknown"
    unjudged = dataclasses.replace(fewer, verdicts=())
    assert {each.otherwise for each in fallback_rows(unjudged)[0].cells} == {"unknown"}


def test_undeclared_ones_are_an_alarm_on_the_page(found: Session) -> None:
    undeclared = tuple(dataclasses.replace(each, expected=False) for each in found.fallbacks)
    html = render_html(dataclasses.replace(found, fallbacks=undeclared))
    assert html.count("1 undeclared</span>") == len(NPU)
    assert "1 declared</span>" not in html
    assert render_html(found).count("1 declared</span>") == len(NPU)


def test_without_fallbacks_there_is_no_table(found: Session) -> None:
    assert fallback_rows(dataclasses.replace(found, fallbacks=())) == ()
