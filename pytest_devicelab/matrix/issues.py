"""The mistakes found in one file, collected so that all of them are told at once."""

from __future__ import annotations

import yaml

from pytest_devicelab.errors import MatrixError
from pytest_devicelab.matrix.specs import Source

MAX_VISITS = 100_000
MAX_ISSUES = 500
MAX_SHOWN_ISSUES = 50


class Issues:
    """Every mistake found so far in one file, with its place."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._found: dict[tuple[Source, str], None] = {}
        self._visits = 0

    def at(self, mark: yaml.Mark | None) -> Source:
        """Return a place in this file; its first character when the mark is unknown."""
        return Source(
            file=self.file, line=mark.line + 1 if mark else 1, column=mark.column + 1 if mark else 1
        )

    def add(self, source: Source, message: str) -> None:
        """Note a mistake; the same one at the same place counts once, however many aliases lead there.

        Raises:
            MatrixError: there are so many that this is hardly a matrix.
        """
        self._found.setdefault((source, message))
        if len(self._found) >= MAX_ISSUES:
            self.check()

    def visit(self, node: yaml.Node) -> None:
        """Count one more key or item, and give up on a file whose aliases multiply without end."""
        self._visits += 1
        if self._visits > MAX_VISITS:
            message = f"more than {MAX_VISITS:,} values, each alias counted: no matrix is this large"
            self.add(self.at(node.start_mark), message)
            self.check()

    def check(self) -> None:
        """Raise a `MatrixError` with everything found, in the order of the file, if anything was."""
        if not self._found:
            return
        found = tuple(sorted(self._found, key=lambda issue: (issue[0].line, issue[0].column)))
        lines = [f"{source}: {message}" for source, message in found[:MAX_SHOWN_ISSUES]]
        if len(found) > MAX_SHOWN_ISSUES:
            lines.append(f"and {len(found) - MAX_SHOWN_ISSUES} more")
        raise MatrixError(
            f"device matrix {self.file}: {len(found)} mistake{'s' * (len(found) > 1)}",
            why="\n".join(lines),
            fix="correct the places above; docs/reference/device-matrix.md lists every key",
            issues=found,
        )
