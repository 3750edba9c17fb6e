from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pytest_devicelab

PACKAGE = Path(pytest_devicelab.__file__).parent
NAME = PACKAGE.name

# Imports point down only: a layer may use those after it.
LAYERS = (
    *("report", "release", "audit", "verdicts", "aihub", "cluster", "lab", "runtimes"),
    *("virtual", "devices", "logs", "tensors", "evidence", "matrix", "errors"),
)
# The modules that know pytest, and the command line: they stand above all layers.
PYTEST_EDGE = frozenset({"plugin", "parametrize", "fixtures", "hookspecs", "suite", "xdist", "state"})
EDGE = PYTEST_EDGE | {"progress", "durations", "cli", "commands"}
# Imported on first use only: each is slow to import, or need not be installed.
ON_FIRST_USE = frozenset(
    {
        "pandas",
        "jinja2",
        "qai_hub",
        "onnxruntime",
        "onnxruntime_qnn",
        "ai_edge_litert",
        "executorch",
        "ray",
        "pyarrow",
        "sklearn",
        "torch",
    }
)
# What `logs` and `tensors` could reach a file, a process or a network with.
DOES_IO = frozenset(
    {
        *(
            "asyncio",
            "glob",
            "http",
            "logging",
            "os",
            "pathlib",
            "requests",
            "shutil",
            "signal",
            "socket",
        ),
        *("subprocess", "sys", "tempfile", "threading", "urllib"),
    }
)


def modules() -> Iterator[tuple[tuple[str, ...], ast.Module]]:
    """Every module: its path below the package, and its source as a tree."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield parts, ast.parse(path.read_text("utf-8"), str(path))


def imported(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Every import below a node: the dotted name, and its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join((NAME, *package[: len(package) - node.level + 1])) if node.level else ""
            name = ".".join(part for part in (base, node.module or "") if part)
            # `from pytest_devicelab import lab` names the layer only in what it imports.
            yield from ((f"{name}.{alias.name}", node.lineno) for alias in node.names)


def at_import(tree: ast.Module) -> Iterator[ast.stmt]:
    """Every statement that is carried out when the module is imported."""
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        statement = pending.pop()
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            pending += statement.orelse
            continue
        yield statement
        pending += [child for child in ast.iter_child_nodes(statement) if isinstance(child, ast.stmt)]


def layer_of(dotted: str) -> str | None:
    first, *rest = dotted.split(".")
    return rest[0] if first == NAME and rest else None


def test_imports_point_down_only() -> None:
    wrong = []
    for parts, tree in modules():
        if parts[0] not in LAYERS:
            continue
        allowed = LAYERS[LAYERS.index(parts[0]) :]
        wrong += [
            f"{'/'.join(parts)}.py:{line} imports {name}"
            for name, line in imported(tree, parts[:-1])
            if (layer := layer_of(name)) is not None and layer not in allowed
        ]
    assert wrong == []


def test_every_module_has_a_place() -> None:
    assert {parts[0] for parts, _ in modules()} - set(LAYERS) - EDGE == {"__init__"}


def test_only_the_edge_knows_pytest() -> None:
    wrong = [
        f"{'/'.join(parts)}.py:{line} imports {name}"
        for parts, tree in modules()
        if parts[0] not in PYTEST_EDGE
        for name, line in imported(tree, parts[:-1])
        if name.split(".")[0] in {"pytest", "_pytest", "pluggy", "xdist"}
    ]
    assert wrong == []


def test_nothing_reaches_into_pytest() -> None:
    wrong = [
        f"{'/'.join(parts)}.py:{line}"
        for parts, tree in modules()
        for name, line in imported(tree, parts[:-1])
        if name.startswith("_pytest")
    ]
    assert wrong == []


def test_what_is_slow_or_optional_is_imported_on_first_use() -> None:
    wrong = [
        f"{'/'.join(parts)}.py:{line} imports {name}"
        for parts, tree in modules()
        for statement in at_import(tree)
        if isinstance(statement, ast.Import | ast.ImportFrom)
        for name, line in imported(statement, parts[:-1])
        if name.split(".")[0] in ON_FIRST_USE
    ]
    assert wrong == []


@pytest.mark.parametrize("layer", ["logs", "tensors"])
def test_a_pure_layer_does_no_io(layer: str) -> None:
    wrong = []
    for parts, tree in modules():
        if parts[0] != layer:
            continue
        wrong += [
            f"{'/'.join(parts)}.py:{line} imports {name}"
            for name, line in imported(tree, parts[:-1])
            if name.split(".")[0] in DOES_IO
        ]
        wrong += [
            f"{'/'.join(parts)}.py:{node.lineno} calls {ast.unparse(node.func)}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and ast.unparse(node.func) in {"open", "io.open", "print", "input", "__import__", "exec", "eval"}
        ]
    assert wrong == []


def test_a_plugin_that_is_not_used_imports_none_of_its_layers() -> None:
    code = (
        "import sys, pytest_devicelab.plugin; "
        f"print(sorted(n for n in sys.modules if n.startswith('{NAME}.') or n in ('numpy', 'yaml', 'onnx', 'adbutils')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    layers = {name.split(".")[1] for name in ast.literal_eval(done.stdout) if "." in name}
    assert layers <= EDGE | {"errors"}
    assert not {"numpy", "yaml", "onnx", "adbutils"} & set(ast.literal_eval(done.stdout))


def test_these_checks_see_what_they_look_for() -> None:
    source = (
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "from .. import lab\n"
        "from pytest_devicelab import report\n"
        "import pytest_devicelab.audit.taps as taps\n"
        "if TYPE_CHECKING:\n    import pandas\n"
        "try:\n    import jinja2\nexcept ImportError:\n    pass\n"
        "class Late:\n    import torch\n"
        "def first_use() -> None:\n    import ray\n"
    )
    tree = ast.parse(source)
    layers = {layer_of(name) for name, _ in imported(tree, ("virtual", "tools"))}
    assert {"virtual", "report", "audit"} <= layers
    early = {name for statement in at_import(tree) for name, _ in imported(statement, ())}
    assert {"jinja2", "torch"} <= early
    assert not {"pandas", "ray"} & early
