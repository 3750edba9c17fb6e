"""The report in a real browser: nothing in it runs, nothing leaves it, and people can read it."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from pytest_devicelab.report.html import render_html
from pytest_devicelab.report.session import Session
from tests.unit.hostile_session import hostile
from tests.unit.session_builders import session

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]

# Text whose colour stands out from what lies behind it by less than WCAG 2.2 asks for (4.5 to 1).
LOW_CONTRAST = """() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const [r, g, b, alpha = 1] = rgb(getComputedStyle(at).backgroundColor);
      if (alpha > 0) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const owns = e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  return [...document.body.querySelectorAll('*')].filter(owns).filter(e => {
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    return (a + .05) / (b + .05) < 4.5;
  }).map(e => e.outerHTML.slice(0, 120));
}"""


def _missing(reason: str) -> None:
    """Skip on a developer's machine; on CI a test that cannot run is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next((path for name in names if (path := shutil.which(name))), None)
    if executable is None:
        _missing("no Chromium found: `apt-get install chromium`")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _missing("playwright is not installed: `pip install pytest-devicelab[test]`")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def found(tmp_path: Path) -> Session:
    return session(tmp_path / "reports")


@contextmanager
def opened(
    browser: Browser,
    html: str,
    folder: Path,
    *,
    width: int = 1200,
    scheme: Literal["light", "dark"] = "light",
    scripts: bool = True,
) -> Iterator[tuple[Page, list[str]]]:
    """Open a page from disk; yields it with a list of every request, dialog, error and console line."""
    heard: list[str] = []
    path = folder / "report.html"
    path.write_text(html, encoding="utf-8")
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=scripts
    )
    page = context.new_page()
    page.on("request", lambda request: heard.append(f"request {request.url}"))
    page.on("console", lambda message: heard.append(f"console {message.text}"))
    page.on("pageerror", lambda error: heard.append(f"error {error}"))

    def dismissed(dialog: Any) -> None:
        heard.append(f"dialog {dialog.message}")
        dialog.dismiss()

    page.on("dialog", dismissed)
    page.goto(path.as_uri(), wait_until="load")
    assert heard.pop(0) == f"request {path.as_uri()}"
    yield page, heard
    context.close()


def test_nothing_a_device_wrote_runs_or_loads(browser: Browser, found: Session, tmp_path: Path) -> None:
    with opened(browser, render_html(hostile(found)), tmp_path) as (page, heard):
        for summary in page.locator("summary").all():
            summary.click()
        page.wait_for_timeout(200)
        assert page.evaluate("window.pwned") is None
        assert page.url == (tmp_path / "report.html").as_uri()
        assert page.evaluate("document.querySelectorAll('script, img, iframe, base, form').length") == 0
        assert "window.pwned='script'" in page.inner_text("body"), "the attack is shown as the text it is"
        assert heard == []


def test_no_link_leaves_the_session_folder(browser: Browser, found: Session, tmp_path: Path) -> None:
    with opened(browser, render_html(hostile(found)), tmp_path) as (page, _):
        # As the browser resolves them, which is what counts.
        links = set(page.evaluate("[...document.links].map(link => link.href)"))
        assert len(links) > 3
        assert [link for link in links if not link.startswith(f"{tmp_path.as_uri()}/")] == []


def test_every_link_leads_to_evidence_that_is_there(browser: Browser, tmp_path: Path) -> None:
    found = session(tmp_path / "reports")
    folder = tmp_path / "reports" / found.id
    (folder / "session.json").write_text("{}")
    with opened(browser, render_html(found), folder) as (page, _):
        paths = {
            link.removeprefix("file://") for link in page.evaluate("[...document.links].map(l => l.href)")
        }
    assert len(paths) == 29
    assert [path for path in paths if not Path(path).is_file()] == []


@pytest.mark.parametrize("policy", [True, False])
def test_a_script_that_got_through_would_still_not_run(
    browser: Browser, found: Session, tmp_path: Path, policy: bool
) -> None:
    # The browser speaks of requests that its policy then stops, so a server says which ones arrive.
    arrived: list[str] = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            arrived.append(self.path)
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        image = f"<img src='http://127.0.0.1:{server.server_port}/x.png' onerror='window.pwned.push(2)'>"
        attack = f"<script>window.pwned = [1]</script>{image}"
        html = render_html(found).replace("<main>", f"<main>{attack}", 1)
        if not policy:  # the control: without the policy the same page is lost
            html = re.sub(r"<meta http-equiv.*?>", "", html)
        with opened(browser, html, tmp_path) as (page, heard):
            page.wait_for_timeout(300)
            pwned = page.evaluate("window.pwned")
        server.shutdown()
    assert (pwned, arrived) == ((None, []) if policy else ([1, 2], ["/x.png"]))
    assert ("Content Security Policy" in " ".join(heard)) is policy


def test_it_works_without_javascript(browser: Browser, found: Session, tmp_path: Path) -> None:
    with opened(browser, render_html(found), tmp_path, scripts=False) as (page, heard):
        record = page.get_by_role("link", name="runs/digits_int8.s24.evaluate/record.json").first
        assert not record.is_visible()
        page.get_by_text("28 runs").click()
        assert page.get_by_role("region", name="All runs").is_visible()
        assert heard == []


@pytest.mark.parametrize("width", [320, 390, 768, 1200])
def test_the_page_never_scrolls_sideways(
    browser: Browser, found: Session, tmp_path: Path, width: int
) -> None:
    with opened(browser, render_html(found), tmp_path, width=width) as (page, _):
        page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true })")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_its_text_can_be_read_in_light_and_dark(
    browser: Browser, found: Session, tmp_path: Path, scheme: Literal["light", "dark"]
) -> None:
    first, second, third, *others = found.verdicts
    turned = (first, replace(second, verdict="fail"), replace(third, verdict="inconclusive"), *others)
    html = render_html(replace(found, verdicts=turned))
    with opened(browser, html, tmp_path, scheme=scheme) as (page, _):
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") is (scheme == "light")
        assert page.evaluate(LOW_CONTRAST) == []
