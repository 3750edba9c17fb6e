"""Models whose names were chosen by an enemy: of the file, its inputs and its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

FIXTURES = Path(__file__).parents[2] / "fixtures"
FILE_NAMES = (
    "a b';$(touch pwned)`touch pwned`\n\"\\&|>pwned ü",
    "-rf ..;${IFS}touch${IFS}pwned\t\r\x07\x1b]0;pwned\x07",
    "\u202egnp.\u2066e\u0301*?[a]~#!{a,b}%n\u200d" + "é" * 60,
)
INPUT = "../$(touch${IFS}pwned);`id>pwned`'\"&|>pwned"
OUTPUT = "/../../../-e\n$(touch pwned);`touch pwned`'\"\x1b[2J\u202e é"


def rename_onnx(source: Path, target: Path, *, given: str = INPUT, taken: str = OUTPUT) -> Path:
    """Write an ONNX model of one input and one output under other names for both."""
    model = onnx.load(source)
    names = {model.graph.input[0].name: given, model.graph.output[0].name: taken}
    for value in (*model.graph.input, *model.graph.output):
        value.name = names.get(value.name, value.name)
    for node in model.graph.node:
        node.name = f"{node.name};$(touch pwned)\n"
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    model.graph.name = f"{taken}.graph"
    onnx.save(model, target)
    return target


def rename_bytes(source: Path, target: Path, names: Mapping[bytes, bytes]) -> Path:
    """Write a copy of a file in which each name is replaced by another one as long."""
    content = source.read_bytes()
    for old, new in names.items():
        assert len(old) == len(new)
        assert old in content
        content = content.replace(old, new)
    target.write_bytes(content)
    return target
