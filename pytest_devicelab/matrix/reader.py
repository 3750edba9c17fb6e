"""From the bytes of a matrix file to YAML nodes, with bounds on what a file may ask of us."""

from __future__ import annotations

from pathlib import Path

import yaml
from yaml.composer import ComposerError
from yaml.reader import ReaderError

from pytest_devicelab.errors import MatrixError
from pytest_devicelab.matrix.issues import Issues
from pytest_devicelab.matrix.specs import Source
from pytest_devicelab.matrix.suggest import did_you_mean

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32


class _BoundedLoader(yaml.SafeLoader):
    """Composes nodes and stops at a depth no matrix has, long before Python's own recursion limit."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise ComposerError(None, None, f"nested more than {MAX_DEPTH} deep", mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def read_document(path: Path, issues: Issues) -> yaml.Node:
    """Return the root node of the one YAML document in a file.

    Raises:
        MatrixError: there is no such file, it cannot be read, or it is not one YAML document in UTF-8.
    """
    text = _decode(_read(path), issues)
    try:
        loader = _BoundedLoader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except ReaderError as error:
        issues.add(
            _place(issues.file, text[: error.position]),
            f"character U+{error.character:04X} cannot be in YAML",
        )
    except yaml.MarkedYAMLError as error:
        issues.add(issues.at(error.problem_mark or error.context_mark), _explain(error))
    except (ValueError, OverflowError, yaml.YAMLError) as error:
        # PyYAML converts escapes and version numbers without looking: "\UFFFFFFFF", `%YAML 1.<5000 digits>`.
        issues.add(issues.at(None), f"not valid YAML: {str(error)[:200]}")
    else:
        if node is not None:
            return node
        issues.add(issues.at(None), "the matrix is empty: start it with `schema: devicelab.matrix/1`")
    issues.check()
    raise AssertionError("unreachable: an issue was noted")


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise _unreadable(path, "it is a directory", "name the file in it, such as device_matrix.yaml")
        if not path.exists():
            raise _unreadable(
                path, f"there is no such file{_similar(path)}", "check its name, or where you are"
            )
        if not path.is_file():
            raise _unreadable(path, "it is not a regular file", "write the matrix to a file")
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        raise _unreadable(path, reason, "make it readable for this user") from error
    if len(data) > MAX_BYTES:
        raise _unreadable(
            path, f"it is larger than {MAX_BYTES // 1024} KiB", "is this the right file? A matrix is small"
        )
    return data


def _similar(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    return did_you_mean(path.name, (file.name for file in path.parent.glob("*.y*ml")))


def _unreadable(path: Path, why: str, fix: str) -> MatrixError:
    place = Source(file=str(path), line=1, column=1)
    return MatrixError(f"device matrix {path} cannot be read", why=why, fix=fix, issues=((place, why),))


def _decode(data: bytes, issues: Issues) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig", "replace")
        issues.add(
            _place(issues.file, before),
            f"byte 0x{data[error.start]:02x} is not UTF-8: save the file as UTF-8",
        )
        issues.check()
        raise


def _place(file: str, before: str) -> Source:
    """Return the place right after the text `before`."""
    lines = before.split("\n")
    return Source(file=file, line=len(lines), column=len(lines[-1]) + 1)


def _explain(error: yaml.MarkedYAMLError) -> str:
    problem = (error.problem or "it cannot be parsed").replace("\n", " ")[:200]
    context = f" {error.context[:100]}" if error.context else ""
    hints = {
        "\\t": "indent with spaces, not tabs",
        "mapping values are not allowed": "indent it like its neighbours, or quote a value that holds ': '",
        "found undefined alias": "define it before, with &name",
        "a single document": "a matrix is one document: remove the second '---'",
        "nested more than": "no part of a matrix is nested like this",
    }
    said = problem + context
    hint = next((f": {fix}" for sign, fix in hints.items() if sign in said), "")
    return f"not valid YAML: {problem}{context}{hint}"
