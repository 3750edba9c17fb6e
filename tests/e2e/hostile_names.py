"""Words that a shell, a path or a terminal would take for something else."""

from __future__ import annotations

HOSTILE = [
    "a b  c",
    "",
    "it's",
    'say "hi"',
    "; touch /tmp/devicelab-was-here",
    "$(touch /tmp/devicelab-was-here)",
    "`id`",
    "${HOME}",
    "a\nb\n\nc",
    "*",
    "~",
    "-n",
    "--",
    "\\n\\",
    "| & > < ( ) { } [ ] ! #",
    "ключ 鍵 🔑",
    "caf\udce9",  # a byte that is not UTF-8
    "\t\r\x01\x7f",
]
