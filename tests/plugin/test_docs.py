"""The documentation: its code runs, its links resolve, and no option or command is missing in it.

A fenced block says in its first line what it is: `python` runs as it stands, `python test` is a test module of a
project, `python file=PATH` shows that file whole, `yaml matrix` is the matrix of the page's project, and other YAML
that names our schema must be a matrix that can be read.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from pytest_devicelab.cli import main
from pytest_devicelab.matrix.decode import load_matrix
from tests.plugin.projects import FIXTURES, Project

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("changelog.d/README.md")])
_FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: `python test` has the language `python` and the mark `test`."""

    page: Path
    language: str
    mark: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)} {self.text[:30]!r}"


def blocks(language: str, *marks: str) -> list[Block]:
    """Return the blocks of all pages in a language; with marks, only those that have one of them."""
    found = (
        Block(page=page, language=match[1], mark=match[2].strip(), text=match[3])
        for page in PAGES
        for match in _FENCE.finditer(page.read_text(encoding="utf-8"))
    )
    return [block for block in found if block.language == language and (not marks or block.mark in marks)]


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links() -> list[tuple[Path, str]]:
    """Return page and target of each link that leads to no other site."""
    found = ((page, target) for page in PAGES for target in _LINK.findall(prose(page)))
    return [(page, target) for page, target in dict.fromkeys(found) if not re.match(r"[a-z]+:", target)]


def test_there_is_something_to_test() -> None:
    assert len(PAGES) >= 20
    assert len(blocks("python", "test")) >= 4
    assert len(links()) >= 60


@pytest.mark.parametrize(("page", "target"), links(), ids=lambda value: str(value).removeprefix(f"{ROOT}/"))
def test_a_link_resolves(page: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    there = (page.parent / path).resolve() if path else page
    assert there.exists()
    assert there.is_relative_to(ROOT)
    if anchor:
        assert anchor in anchors(there)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_page_can_be_found(page: Path) -> None:
    if page.parent != ROOT and page.name != "README.md":
        assert page in {(source.parent / target.partition("#")[0]).resolve() for source, target in links()}


@pytest.mark.parametrize(
    "block", [block for block in blocks("python") if block.mark in ("", "layers")], ids=str
)
def test_python_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block.text, str(block.page), "exec"), {"__name__": "docs"})  # our own pages


@pytest.mark.parametrize(
    "block", [block for block in blocks("python") if block.mark.startswith("file=")], ids=str
)
def test_a_shown_file_is_the_file(block: Block) -> None:
    assert block.text == (ROOT / block.mark.removeprefix("file=")).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "block", [block for block in blocks("yaml") if block.mark not in ("runtime", "kind")], ids=str
)
def test_yaml_can_be_read(block: Block, tmp_path: Path) -> None:
    (tmp_path / "fixtures").symlink_to(FIXTURES)
    whole = "schema: devicelab.matrix/1\n"
    usual = {
        "devices": "devices:\n- {id: s24, kind: virtual, soc: SM8650}\n",
        "models": "models:\n- {id: m, path: fixtures/digits_cnn/int8.onnx}\n",
    }
    if whole in block.text:
        text = block.text
    elif block.mark == "devices":
        text = f"{whole}{usual['models']}devices:\n{block.text}"
    elif block.mark == "lab":
        text = f"{whole}{usual['devices']}{usual['models']}{block.text}"
    else:
        assert isinstance(yaml.safe_load(block.text), dict)
        return
    (tmp_path / "m.yaml").write_text(text, encoding="utf-8")
    assert load_matrix(tmp_path / "m.yaml").devices


def write_project(project: Project, page: Path) -> None:
    (matrix,) = (
        block for block in blocks("yaml", "matrix", "engine", "runtime", "kind") if block.page == page
    )
    (project.path / "m.yaml").write_text(matrix.text, encoding="utf-8")
    (project.path / "fixtures").symlink_to(FIXTURES)


def test_the_smallest_matrix_is_green(project: Project) -> None:
    write_project(project, ROOT / "docs/reference/device-matrix.md")
    result = project.run()
    result.assert_outcomes(passed=3)
    assert project.session()["outcome"] == "pass"


def test_the_tests_of_the_how_to_pass(project: Project) -> None:
    page = ROOT / "docs/how-to/write-your-own-tests.md"
    write_project(project, page)
    modules = [block.text for block in blocks("python", "test") if block.page == page]
    for number, text in enumerate(modules):
        (project.path / f"test_{number}.py").write_text(text, encoding="utf-8")
    result = project.run("-k", "not devicelab", "-W", "error")
    devices = 2
    result.assert_outcomes(passed=devices * 3 + 1 + 2, deselected=7)


def test_the_engine_of_the_how_to_gives_a_class_of_its_own(project: Project) -> None:
    write_project(project, ROOT / "docs/how-to/add-a-numerics-engine.md")
    result = project.run()
    result.assert_outcomes(passed=7)
    (comparison,) = project.session()["comparisons"]
    assert comparison["classes"] == [["rounding"], ["truncating"]]
    assert comparison["first_divergence"]["op"] == "DequantizeLinear"


def install(project: Project, monkeypatch: pytest.MonkeyPatch, group: str, entry: str) -> None:
    """Make the examples importable as an installed package with one entry point."""
    folder = project.path / "installed"
    (folder / "examples-1.dist-info").mkdir(parents=True)
    (folder / "examples-1.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: examples\nVersion: 1\n"
    )
    (folder / "examples-1.dist-info/entry_points.txt").write_text(f"[{group}]\n{entry}\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_the_runtime_of_the_how_to_runs(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    write_project(project, ROOT / "docs/how-to/add-a-runtime.md")
    refused = project.run()
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines(["*'ort_cpu' is not one of qnn, ort, litert, executorch*"])
    install(project, monkeypatch, "devicelab.runtimes", "ort_cpu = docs.examples.ort_on_cpu:OrtOnCpu")
    project.run().assert_outcomes(passed=3)
    record = project.record("s24")
    assert (record["runtime"], record["backend"]) == ("ort_cpu", "cpu")
    assert {row["unit"] for row in record["placement"]} == {"cpu"}


def test_the_kind_of_device_of_the_how_to_runs(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    write_project(project, ROOT / "docs/how-to/add-a-device-kind.md")
    refused = project.run()
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines(["*'host' is not one of virtual, adb, aihub*"])
    install(project, monkeypatch, "devicelab.executors", "host = docs.examples.host_kind:HostExecutor")
    project.run().assert_outcomes(passed=7)
    (comparison,) = project.session()["comparisons"]
    assert comparison["classes"] == [["bench", "tensor"]]


def test_every_option_of_pytest_is_documented() -> None:
    """In a process of its own: the options this pytest was started with are not those of a user."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--help"], capture_output=True, text=True, check=True
    )
    ours = set(re.findall(r"--devicelab-[a-z-]+|--devices\b", done.stdout))
    settings = set(re.findall(r"\bdevicelab_[a-z_]+(?= \()", done.stdout))
    assert len(ours) >= 4
    assert settings
    page = prose(ROOT / "docs/reference/pytest-options.md")
    assert {name for name in ours | settings if f"`{name}" not in page} == set()
    every = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert set(re.findall(r"--devicelab-[a-z]+(?:-[a-z]+)*", every)) <= ours


def commands(capsys: pytest.CaptureFixture[str], *path: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield each command without commands of its own, with its help."""
    with pytest.raises(SystemExit):
        main([*path, "--help"])
    said = capsys.readouterr().out
    inner = re.findall(r"^    ([a-z][a-z-]*)\b", said, re.MULTILINE) if "positional" in said else []
    inner = [name for name in inner if "COMMAND" in said or "ACTION" in said]
    for name in inner:
        yield from commands(capsys, *path, name)
    if not inner:
        yield path, said


def test_every_command_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    page = ROOT / "docs/reference/cli.md"
    sections = re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = dict(commands(capsys))
    assert ("matrix",) in found
    assert ("virtual", "up") in found
    for path, said in found.items():
        section = next((text for text in sections if text.startswith(f"devicelab {' '.join(path)}\n")), "")
        options = set(re.findall(r"--[a-z][a-z-]+", said)) - {"--help"}
        assert {option for option in options if option not in section} == set(), path
        assert section, f"devicelab {' '.join(path)} has no section in {page.name}"
    known = {f"devicelab {' '.join(path)}" for path in found}
    assert {text.partition("\n")[0] for text in sections[1:]} == known


def test_no_page_knows_the_machine_it_was_written_on() -> None:
    strange = re.compile("|".join(re.escape(f"{folder}/") for folder in (ROOT, Path.home())))
    assert [page for page in PAGES if strange.search(page.read_text(encoding="utf-8"))] == []
