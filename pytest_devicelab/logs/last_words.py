"""What a runner that failed said of it: the lines that say why, without the chatter around them."""

from __future__ import annotations

import re

from pytest_devicelab.errors import visible

_READ_BYTES = 1 << 16
_SHOWN_CHARACTERS = 2000
# What a terminal obeys instead of showing: colours, titles, links. A string that never ends, or is longer than any that
# means something, is left to be shown. Source: ECMA-48, 5.4 (control sequences) and 5.6 (control strings).
_OBEYED = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]{0,1000}(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]{0,4}[0-~]"
)
# Lines below the level of an error, as the runtimes mark them: ONNX Runtime's `[W:onnxruntime:...]`, QNN's ` <W> `,
# glog's `W1121 06:52:58`, LiteRT's `INFO: `, ExecuTorch's `I 00:00:00.000001 executorch:`.
_CHATTER = re.compile(
    r"\[[VIW]:[^\]]*\]|(?:^|\s)<[VDIW]>\s|^[VIW]\d{4} \d\d:\d\d|^(?:VERBOSE|DEBUG|INFO|WARNING): "
    r"|^[DI] \d\d:\d\d:\d\d\.\d+ executorch:"
)


def last_words(stderr: bytes, stdout: bytes) -> str:
    """Return what says why a program failed, from what it printed; empty where it printed nothing.

    Errors count before chatter, and standard error before standard output. Where all is chatter, that is all there is.

    Args:
        stderr: what it wrote to standard error, in any encoding; a device may have written anything.
        stdout: to standard output.
    """
    spoken = [_lines(stderr), _lines(stdout)]
    telling = [[line for line in lines if not _CHATTER.search(line)] for lines in spoken]
    chosen = next((lines for lines in (*telling, *spoken) if lines), [])
    return "\n".join(chosen)[-_SHOWN_CHARACTERS:]


def _lines(data: bytes) -> list[str]:
    text = plain(data[-_READ_BYTES:].decode("utf-8", "replace"))
    return [line.rstrip() for line in text.split("\n") if line.strip()]


def plain(text: str) -> str:
    """Return text without colours and whatever else a terminal obeys; other control characters become escapes.

    Newlines and tabs stay.
    """
    return visible(_OBEYED.sub("", text.replace("\r\n", "\n")), keep="\n\t")
