"""A cursor over YAML nodes: reads one value, or notes what is wrong with it and goes on.

Nodes instead of loaded values, because a node still knows its line, its column, whether it was quoted, and
the spelling YAML would have turned into something else (`no` into false, `010` into 8).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import yaml

from pytest_devicelab.matrix.issues import Issues
from pytest_devicelab.matrix.specs import Source
from pytest_devicelab.matrix.suggest import SHOWN_CHARACTERS, did_you_mean, show

MAX_MERGE_DEPTH = 16

_TAG = "tag:yaml.org,2002:"
_TEXT = _TAG + "str"
# What YAML 1.1 takes an unquoted spelling for.
_READ_AS = {
    _TEXT: "a number",
    _TAG + "int": "a number",
    _TAG + "float": "a number",
    _TAG + "bool": "a boolean",
    _TAG + "timestamp": "a date",
    _TAG + "null": "nothing",
    _TAG + "value": "a special word",
    _TAG + "merge": "a special word",
}
# `1e5` is text to PyYAML.
_NUMBERS = {_TAG + "int", _TAG + "float", _TEXT}
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"-?((0|[1-9][0-9]{0,17})(\.[0-9]{0,30})?|\.[0-9]{1,30})([eE][-+]?[0-9]{1,3})?")
# Text to PyYAML, which reads YAML 1.1, but a number to readers of YAML 1.2.
_NUMBER_ELSEWHERE = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|0o[0-7]+")

Word = TypeVar("Word", bound=str)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """One value of the document, or the absence of one.

    Every reading method returns None (or nothing) when the value is absent, silently, and when it is
    wrong, after noting the mistake; so a decoder reads on and reports all mistakes at once.

    Attributes:
        path: how messages call it: `devices[0].soc`.
        node: None for a key that was not written.
        source: its place, or that of the mapping it is absent from.
    """

    path: str
    node: yaml.Node | None
    source: Source
    issues: Issues

    @property
    def present(self) -> bool:
        """Whether the matrix has this value at all."""
        return self.node is not None

    def fail(self, message: str) -> None:
        """Note a mistake about this value."""
        self.issues.add(self.source, f"{self.path or 'the matrix'}: {message}")

    def fields(self, *, required: Sequence[str] = (), optional: Sequence[str] = ()) -> dict[str, Cursor]:
        """Return a cursor for each key a mapping may have; notes unknown, duplicate and missing keys."""
        known = (*required, *optional)
        pairs = self._pairs()
        for key, (key_node, _) in (pairs or {}).items():
            if key not in known and not (self.path == "" and key.startswith("x-")):
                message = f"unknown key {show(key)} in {self.path or 'the matrix'}{did_you_mean(key, known)}"
                place = self.issues.at(key_node.start_mark)
                self.issues.add(place, f"{message}; the keys here are {', '.join(known)}")
        if pairs is not None:
            for key in required:
                if key not in pairs:
                    self.fail(f"has no {key!r}: add it")
        return {key: self._child(key, pairs[key][1] if pairs and key in pairs else None) for key in known}

    def entries(self) -> dict[str, Cursor]:
        """Return a cursor for each key of a mapping whose keys are the user's own."""
        return {key: self._child(key, value) for key, (_, value) in (self._pairs() or {}).items()}

    def items(self) -> tuple[Cursor, ...]:
        """Return a cursor for each item of a list."""
        if self.node is None:
            return ()
        if not isinstance(self.node, yaml.SequenceNode):
            self.fail(f"must be a list, is {_kind(self.node)}")
            return ()
        found = []
        for index, node in enumerate(self.node.value):
            self.issues.visit(node)
            place = self.issues.at(node.start_mark)
            found.append(Cursor(path=f"{self.path}[{index}]", node=node, source=place, issues=self.issues))
        return tuple(found)

    def text(self, pattern: re.Pattern[str] | None = None, rule: str = "") -> str | None:
        """Return text on one line that YAML reads as text.

        Args:
            pattern: what the whole text must match.
            rule: the pattern in words, for the message.
        """
        node = self._scalar()
        if node is None:
            return None
        if node.tag != _TEXT or (node.style is None and _NUMBER_ELSEWHERE.fullmatch(node.value)):
            self.fail(_quote_it(node))
            return None
        value: str = " ".join(node.value.split()) if node.style in {"|", ">"} else node.value
        if not value.strip():
            self.fail("is empty")
        elif not value.isprintable():
            self.fail(f"{show(value)} has a line break or a control character")
        elif pattern is not None and not pattern.fullmatch(value):
            self.fail(f"{show(value)} {rule}")
        else:
            return value
        return None

    def word(self, choices: Iterable[Word]) -> Word | None:
        """Return one of a few words, also where YAML reads that very word as a boolean (`off`)."""
        spelled: dict[str, Word] = {choice: choice for choice in choices}
        node = self.node
        if isinstance(node, yaml.ScalarNode) and node.tag == _TAG + "bool":
            value: str | None = str(node.value).lower()
            if value not in spelled:
                self.fail(f"{show(node.value)} is not one of {', '.join(spelled)}")
                return None
        else:
            value = self.scalar()
        if value is None:
            return None
        if value not in spelled:
            self.fail(f"{show(value)} is not one of {', '.join(spelled)}{did_you_mean(value, spelled)}")
        return spelled.get(value)

    def integer(self, low: int, high: int) -> int | None:
        """Return a whole number in plain decimal, from `low` to `high`."""
        spelling = self._number_spelling(_INTEGER, "a whole number")
        if spelling is None:
            return None
        value = int(spelling)
        if not low <= value <= high:
            self.fail(f"{spelling} is out of range: {low} to {high}")
            return None
        return value

    def number(self, low: float, high: float) -> float | None:
        """Return a finite number, from `low` to `high`."""
        spelling = self._number_spelling(_NUMBER, "a number")
        if spelling is None:
            return None
        value = float(spelling)
        if not (math.isfinite(value) and low <= value <= high):
            self.fail(f"{spelling} is out of range: {low:g} to {high:g}")
            return None
        return value

    def scalar(self) -> str | None:
        """Return text, or a number as it is spelled: the value of an option or an Android property."""
        node = self._scalar()
        if node is not None and node.style is None and node.tag in _NUMBERS and _NUMBER.fullmatch(node.value):
            return str(node.value)
        return self.text()

    def _number_spelling(self, pattern: re.Pattern[str], kind: str) -> str | None:
        node = self._scalar()
        if node is None:
            return None
        if node.style is None and node.tag in _NUMBERS and pattern.fullmatch(node.value):
            return str(node.value)
        hint = ": remove the quotes" if node.style is not None and pattern.fullmatch(node.value) else ""
        self.fail(f"{show(node.value)} is not {kind} in plain decimal{hint}")
        return None

    def _scalar(self) -> yaml.ScalarNode | None:
        if self.node is None:
            return None
        if not isinstance(self.node, yaml.ScalarNode):
            self.fail(f"must be a single value, is {_kind(self.node)}")
        elif self.node.tag == _TAG + "null":
            self.fail("has no value: give one, or remove the key")
        else:
            return self.node
        return None

    def _child(self, key: str, node: yaml.Node | None) -> Cursor:
        name = key if key.isprintable() and len(key) <= SHOWN_CHARACTERS else show(key)
        path = f"{self.path}.{name}" if self.path else name
        place = self.issues.at(node.start_mark) if node is not None else self.source
        return Cursor(path=path, node=node, source=place, issues=self.issues)

    def _pairs(self) -> dict[str, tuple[yaml.Node, yaml.Node]] | None:
        if self.node is None:
            return None
        if not isinstance(self.node, yaml.MappingNode):
            self.fail(f"must be a mapping (key: value), is {_kind(self.node)}")
            return None
        return self._flatten(self.node, depth=0)

    def _flatten(self, mapping: yaml.MappingNode, *, depth: int) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Return key -> (key node, value node), with what `<<` merges in; a mapping's own keys win."""
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in mapping.value:
            self.issues.visit(key)
            place = self.issues.at(key.start_mark)
            if key.tag == _TAG + "merge":
                for source in self._merge_sources(value, depth=depth):
                    for name, pair in self._flatten(source, depth=depth + 1).items():
                        merged.setdefault(name, pair)
            elif not isinstance(key, yaml.ScalarNode):
                self.issues.add(place, f"a key must be text, is {_kind(key)}")
            elif key.tag != _TEXT:
                self.issues.add(place, f"key {_quote_it(key)}")
            elif key.value in own:
                first = self.issues.at(own[key.value][0].start_mark)
                message = f"duplicate key {show(key.value)}: first written in line {first.line}; keep one"
                self.issues.add(place, message)
            else:
                own[key.value] = (key, value)
        return {**merged, **own}

    def _merge_sources(self, value: yaml.Node, *, depth: int) -> tuple[yaml.MappingNode, ...]:
        sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
        for source in sources:
            self.issues.visit(source)
        place = self.issues.at(value.start_mark)
        if depth >= MAX_MERGE_DEPTH:
            self.issues.add(place, f"'<<' merges a mapping into itself, or more than {MAX_MERGE_DEPTH} deep")
            return ()
        if not all(isinstance(source, yaml.MappingNode) for source in sources):
            self.issues.add(place, "'<<' takes a mapping or a list of mappings, such as `<<: *defaults`")
        return tuple(source for source in sources if isinstance(source, yaml.MappingNode))


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    return "a list" if isinstance(node, yaml.SequenceNode) else f"{show(node.value)}"


def _quote_it(node: yaml.ScalarNode) -> str:
    shown = show(node.value)
    if node.tag not in _READ_AS:
        return f"{shown} has the tag {show(node.tag)}: remove it"
    reader = "some YAML readers" if node.tag == _TEXT else "YAML"
    return f'{shown} is {_READ_AS[node.tag]} to {reader}: quote it: "{shown[1:-1]}"'
