from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pytest_devicelab.report.assemble import assemble
from pytest_devicelab.report.html import evidence_href, render_html
from pytest_devicelab.report.phrases import simulation_mark
from pytest_devicelab.report.session import Session
from tests.unit.hostile_session import ATTACK, PATHS_IN, PATHS_OUT, hostile
from tests.unit.session_builders import FINISHED, REASON, STARTED, session, write_session


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def found(tmp_path: Path) -> Session:
    return session(tmp_path / "reports")


def test_it_says_what_was_lost_and_to_what_with_the_interval(found: Session) -> None:
    text = " ".join(Page(render_html(found)).text.split())
    entry = found.attribution[0]
    assert entry.line in text
    assert f"SQNR: {entry.signal.reason}." in text
    share = entry.signal.shares[0]
    assert share.loss is not None
    figures = f"{share.loss.value:.1f} dB ({share.loss.low:.1f} to {share.loss.high:.1f})"
    assert re.search(rf"V68/V69 ?s21 s22 ?simulated ?{re.escape(figures)}", text)
    assert "540 samples would have shown a share of" in text


def test_it_says_why_nothing_was_attributed(found: Session) -> None:
    html = render_html(dataclasses.replace(found, attribution=()))
    assert "Nothing was attributed: that takes a model with a float reference" in html


def test_it_has_a_matrix_of_all_classes_and_the_bytes_moved(found: Session) -> None:
    text = " ".join(Page(render_html(found)).text.split())
    # Three models part into three classes, one into four.
    assert text.count("1,873 differ, 2 LSB, 38.6 dB") == 3 * 6 + 12
    assert "1.7 MB pushed to devices, 604.8 kB pulled; 604.8 kB stayed there" in text


def test_it_needs_nothing_but_itself(found: Session) -> None:
    html = render_html(found)
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name in ("src", "style")]
    assert "url(" not in html
    assert "@import" not in html


def test_its_policy_allows_its_own_style_and_nothing_else(found: Session) -> None:
    html = render_html(found)
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    (policy,) = [
        attributes["content"]
        for attributes in Page(html).attributes("meta")
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def test_it_says_the_same_as_the_terminal(found: Session) -> None:
    text = " ".join(Page(render_html(found)).text.split())
    for words in (
        "4 models on 7 devices, 88 checks: 88 pass",
        "figures of 7 of 7 devices come from a simulator",
        "A and B part first at Conv /conv1/Conv, layer 1 of 11: 2,291 of 65,536 elements differ (3.50%)",
        "V73 V75 V79 V81",
        REASON,
        "yes: axis 1 has no INT8 kernel on HTP",
        "MatMul:/fc/MatMul + Add:/fc/Add",
        "Snapdragon 8 Elite Gen 5",
        "99.26%",
        "98.70%",
        "qairt",
        "taken for Snapdragon 8 Elite (SM8750)",
    ):
        assert words in text, words


def test_every_simulated_device_is_marked(found: Session) -> None:
    silicon = dataclasses.replace(found.devices[0], simulated=False)
    mixed = dataclasses.replace(found, devices=(silicon, *found.devices[1:]))
    rows = re.findall(r'<th scope="row">(\w+) (.*?)</th>', render_html(mixed), re.DOTALL)
    marked = {device: "simulated" in rest for device, rest in rows if device in {d.id for d in found.devices}}
    assert marked == {d.id: d.simulated for d in mixed.devices}


@pytest.mark.parametrize(
    ("devices", "mark"), [(("s22", "s23"), "simulated"), (("s21", "s22"), "partly simulated"), (("s21",), "")]
)
def test_figures_of_several_devices_say_how_many_are_simulated(
    found: Session, devices: tuple[str, ...], mark: str
) -> None:
    silicon = dataclasses.replace(found.devices[0], simulated=False)
    mixed = dataclasses.replace(found, devices=(silicon, *found.devices[1:]))
    assert simulation_mark(mixed, devices) == mark


def test_every_table_header_has_a_scope(found: Session) -> None:
    headers = Page(render_html(found)).attributes("th")
    assert len(headers) > 50
    assert {attributes.get("scope") for attributes in headers} == {"col", "row"}


def test_evidence_is_linked(found: Session) -> None:
    links = {attributes["href"] for attributes in Page(render_html(found)).attributes("a")}
    assert "runs/digits_int8.s24.evaluate/record.json" in links
    assert "session.json" in links


def test_an_empty_session_is_shown_as_one(tmp_path: Path) -> None:
    store, spec = write_session(tmp_path / "reports", models=())
    text = " ".join(Page(render_html(assemble(store, spec, STARTED, FINISHED, 0))).text.split())
    for words in ("inconclusive", "nothing was judged", "not seen", "no run", "not judged"):
        assert words in text
    assert "No placement verdict of this session names one." in text
    assert "No run left an operator profile that shows one." in text
    assert "Not compared across devices: digits_int8, digits_a16w8" in text


def test_what_is_not_green_comes_first(found: Session) -> None:
    verdicts = (
        dataclasses.replace(found.verdicts[0], verdict="inconclusive", reason="the log was lost"),
        dataclasses.replace(found.verdicts[1], verdict="fail", reason="one bit is wrong"),
        *found.verdicts[2:],
    )
    html = render_html(dataclasses.replace(found, verdicts=verdicts, outcome="fail"))
    at = [
        html.index(text)
        for text in ("Not green", "one bit is wrong", "the log was lost", "Accuracy on device")
    ]
    assert at == sorted(at)


def test_no_text_becomes_markup(found: Session) -> None:
    clean, attacked = Page(render_html(found)), Page(render_html(hostile(found)))
    assert not {"script", "img", "iframe", "base"} & {tag for tag, _ in attacked.tags}
    assert {tag for tag, _ in attacked.tags} == {tag for tag, _ in clean.tags}
    assert not [name for _, attributes in attacked.tags for name in attributes if name.startswith("on")]
    assert "{{ 7 * 191 }}" in attacked.text
    assert "1337" not in attacked.text


def test_what_does_not_print_is_shown_by_its_escape(found: Session) -> None:
    html = render_html(hostile(found))
    assert html.encode("utf-8")  # a lone surrogate would not encode
    assert "\\u202e\\x1b[2J\\x00\\ud800" in html
    assert not set("\u202e\x1b\x00\ud800") & set(html)
    assert "\ud800" in ATTACK


@pytest.mark.parametrize("path", PATHS_OUT)
def test_a_path_that_leads_out_or_would_run_is_no_link(path: str) -> None:
    assert evidence_href(path) is None


@pytest.mark.parametrize("path", PATHS_IN)
def test_an_odd_name_inside_is_quoted(path: str) -> None:
    href = evidence_href(path)
    assert href is not None
    assert not set(href) & set("?#: ")
    assert "%2e" not in href.replace("%252e", "")
