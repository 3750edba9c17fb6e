"""Names of tensors that a runner has to write down: those it cannot are refused before anything is started.

A model's author chooses them, so they may hold anything that protobuf or flatbuffers call a string.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from pytest_devicelab.errors import ModelError
from pytest_devicelab.virtual.tools.raw_files import file_name

_LONGEST_FILE = 255
"""Bytes of a file's name on Android. Source: Linux, NAME_MAX."""


def require_listable(path: Path, names: Iterable[str], separators: Sequence[str]) -> None:
    """Require that inputs can be told apart in an input list: a line a sample of `name:=file`, blanks between them.

    Args:
        path: the model, for the message.
        names: of its inputs.
        separators: text that a name must not hold, for it would end there.

    Raises:
        ModelError: a name is empty, does not print, holds a blank or a separator, or begins as a line of outputs does.
    """
    odd = [
        name
        for name in names
        if not name
        or not name.isprintable()
        or any(char.isspace() for char in name)
        or any(separator in name for separator in separators)
        # A first line that begins so names outputs.
        or name[0] in "#%"
    ]
    if odd:
        raise ModelError(
            f"{path}: input names {[name[:80] for name in odd[:10]]} cannot be written into an input list",
            why=f"a list separates entries by blanks and {' '.join(f'`{each}`' for each in separators)}, "
            "its first line may begin with # or %, and it is text",
            fix="rename the inputs of the model",
        )


def file_problem(outputs: Sequence[str]) -> str:
    """Say why qnn-net-run cannot write each output into a file of its own; empty where it can.

    It names files after tensors, so two names that differ only in what no file of its has would share one, and the last
    to be written would pass for both.
    """
    if cut := [name for name in outputs if "\0" in name]:
        return f"the compiler ends the name of output {cut[0][:80]!r} at its first NUL character"
    # Which of the two it is depends on the dtype the compiler chooses.
    files = {name: {file_name(name), file_name(name, native=True)} for name in outputs}
    taken = Counter(file for name in outputs for file in files[name])
    shared = [name for name in outputs if any(taken[file] > 1 for file in files[name])]
    if shared:
        named = [name[:80] for name in shared[:10]]
        return f"outputs {named} would share a file, for what is no letter or digit becomes _"
    long = [name for name in outputs if len(file_name(name, native=True)) > _LONGEST_FILE]
    return f"no file can have the name of output {long[0][:80]!r}…: {len(long[0])} characters" if long else ""
