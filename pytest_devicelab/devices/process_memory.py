"""Peak memory of a program on a device: its /proc files, looked at again and again while it runs.

Source: Linux proc(5): VmHWM of /proc/PID/status is the largest resident set so far; Pss of /proc/PID/smaps_rollup
(Linux 4.14) is the resident set now, pages shared with others divided among them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from pytest_devicelab.evidence.measurements import Figure, absent

LOOK_EVERY_S = 0.05
# 4 TiB: more memory no phone has.
_MOST_KIB = 1 << 32
_LOOK = "devicelab look"
_EXIT = "devicelab exit"
_CHILD = "devicelab child"
_KIB = r":[ \t]+(\d{1,20}) kB\s*$"


def sampling_script(command: Sequence[str], *, cwd: str, environment: Mapping[str, str]) -> str:
    """Return shell text that runs a program and prints its memory until it ends.

    A child bears the shell's name until it has become the program: such a look shows the shell and says so. A child
    that has ended is a zombie until the shell asks for its status, so its state is looked at, too.
    """
    exports = "".join(f"export {name}={shlex.quote(value)} && " for name, value in environment.items())
    return (
        f"cd {shlex.quote(cwd)} || exit 1\n"
        f"( {exports}exec {shlex.join(command)} ) </dev/null >/dev/null 2>&1 &\n"
        "runner=$!\n"
        "grep Name: /proc/$$/status\n"
        "while state=$(grep State: /proc/$runner/status 2>/dev/null); do\n"
        '    case "$state" in *Z*) break ;; esac\n'
        f"    echo {_LOOK}\n"
        "    grep -e Name: -e VmHWM: /proc/$runner/status 2>/dev/null\n"
        "    grep -e ^Pss: /proc/$runner/smaps_rollup 2>/dev/null\n"
        f'    grep -qs "^PPid:[[:space:]]*$runner\\$" /proc/[0-9]*/status && echo {_CHILD}\n'
        f"    sleep {LOOK_EVERY_S}\n"
        "done\n"
        f"wait $runner; echo {_EXIT} $?\n"
    )


def read_memory(text: str) -> tuple[Figure, Figure]:
    """Return peak resident memory and peak proportional share, KiB, from what the script printed.

    Args:
        text: as it came; a device may print anything.
    """
    head, *looks = text.split(_LOOK + "\n")
    ended = re.search(rf"^{_EXIT} (\d{{1,3}})\s*$", text, re.MULTILINE | re.ASCII)
    if ended is None or int(ended[1]) != 0:
        how = f"with exit status {ended[1]}" if ended else "unseen"
        why = f"the runner ended {how} while its memory was looked at"
        return absent(why), absent(why)
    shell = _name(head)
    seen = [look for look in looks if _name(look) not in ("", shell)]
    if any(_CHILD in look for look in seen):
        why = "the runner started processes of its own: memory of a wrapper is not the model's; let it end in `exec`"
        return absent(why), absent(why)
    every = f"one each {LOOK_EVERY_S * 1000:g} ms"
    return (
        _largest("VmHWM", seen, f"VmHWM of /proc/PID/status, {len(seen)} looks, {every}"),
        _largest("Pss", seen, f"largest Pss of /proc/PID/smaps_rollup, {len(seen)} looks, {every}"),
    )


def _largest(field: str, looks: Sequence[str], source: str) -> Figure:
    if not looks:
        return absent("the runner ended before anybody looked at its memory")
    pattern = re.compile(rf"^{field}{_KIB}", re.MULTILINE | re.ASCII)
    found = [int(match[1]) for look in looks for match in pattern.finditer(look)]
    if bad := [value for value in found if not 0 < value < _MOST_KIB]:
        return absent(f"{source}: {bad[0]} kB is no size of a process")
    if not found:
        return absent(f"the device does not show {field} of its processes")
    return Figure(value=float(max(found)), source=source)


def _name(look: str) -> str:
    found = re.search(r"^Name:[ \t]+(\S.{0,63})$", look, re.MULTILINE)
    return found[1].strip() if found else ""
