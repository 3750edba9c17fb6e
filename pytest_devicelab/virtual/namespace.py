"""Absolute /data, /sdcard, /system and /vendor paths for the processes of a virtual device.

Where the kernel allows it, each device has a mount namespace: the host's top-level folders, with the device's
own four in place of the host's. A holder process keeps it alive, and every command enters it. Where it is
forbidden (many containers), the text of commands is rewritten instead; `paths.rewrite_command` says what that
cannot do.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_devicelab.errors import InfrastructureError
from pytest_devicelab.virtual.paths import DEVICE_FOLDERS, rewrite_command

_SHELL = "/bin/sh"
_START_TIMEOUT_S = 20.0

_log = logging.getLogger(__name__)

# $1: the device's root folder. $2: an empty folder to build the new root on; unbindable, or else the
# host folder that holds it would be bound into itself. At the end the old root is gone and the new one is
# read-only like Android's; then the holder waits for its standard input to close, as it does when we die.
_BUILD = r"""
set -e
mount -t tmpfs -o mode=755 devicelab "$2"
mount --make-unbindable "$2"
for entry in /*; do
    case " $3 " in *" ${entry#/} "*) continue ;; esac
    if [ -L "$entry" ]; then
        cp -P "$entry" "$2$entry"
    elif [ -d "$entry" ]; then
        mkdir "$2$entry"
        mount --rbind "$entry" "$2$entry"
    fi
done
for name in $3; do
    mkdir "$2/$name"
    mount --bind "$1/$name" "$2/$name"
done
cd "$2"
pivot_root . .
umount -l .
cd /
mount -o remount,bind,ro /
echo ready
exec cat >/dev/null
"""


@dataclass(frozen=True, slots=True)
class Rewriting:
    """Commands run on the host as it is, with device paths in their text rewritten.

    Raises:
        InfrastructureError: the root folder's name would need quoting inside of a command.
    """

    root: Path

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w./+-]+", str(self.root), re.ASCII):
            raise InfrastructureError(
                f"virtual device at {self.root}: its folder cannot be put into shell commands",
                why="this host forbids mount namespaces, so paths in commands are rewritten, unquoted",
                fix="use a folder whose path has only letters, digits and ./+_-",
            )

    @property
    def visible_root(self) -> str:
        """The path of the device's `/` as its processes must write it."""
        return str(self.root)

    def argv(self, command: str) -> tuple[str, ...]:
        """Return the program that runs a shell command; an interactive shell for an empty one."""
        return (_SHELL, "-c", rewrite_command(self.root, command)) if command else (_SHELL,)

    async def close(self) -> None:
        """Nothing to undo."""


@dataclass(frozen=True, slots=True)
class MountNamespace:
    """Commands run in a mount namespace of the device, kept alive by the process `holder`."""

    holder: asyncio.subprocess.Process
    enter: tuple[str, ...]

    @property
    def visible_root(self) -> str:
        """The path of the device's `/` as its processes must write it: `/` is its own, so nothing."""
        return ""

    def argv(self, command: str) -> tuple[str, ...]:
        """Return the program that runs a shell command; an interactive shell for an empty one."""
        return (*self.enter, _SHELL, "-c", command) if command else (*self.enter, _SHELL)

    async def close(self) -> None:
        """Let the namespace go; processes still inside keep their view of it."""
        assert self.holder.stdin is not None
        self.holder.stdin.close()
        await self.holder.wait()


View = Rewriting | MountNamespace


async def open_view(root: Path, *, namespace: bool | None) -> View:
    """Return how the processes of the device in `root` see their absolute paths.

    Args:
        root: the device's root folder, absolute and without links; its four folders exist.
        namespace: True insists on a mount namespace, False does without, None takes one where it is allowed.

    Raises:
        InfrastructureError: a namespace was insisted on and is not to be had, or `root` cannot be used.
    """
    if namespace is False:
        return Rewriting(root)
    try:
        return await _open_namespace(root)
    except InfrastructureError as error:
        if namespace:
            raise
        _log.warning("no mount namespace at %s, device paths in commands are rewritten: %s", root, error.why)
        return Rewriting(root)


async def _open_namespace(root: Path) -> MountNamespace:
    for needed in (root, Path(sys.prefix), Path(sys.base_prefix), Path(__file__).resolve()):
        if needed.parts[1] in DEVICE_FOLDERS:
            raise _forbidden(root, f"{needed} would be hidden by the device's own /{needed.parts[1]}")
    reasons = []
    # Root needs no user namespace, and containers that grant CAP_SYS_ADMIN may still forbid those.
    as_root, as_user = (
        (("--mount",), ("--mount",)),
        (
            ("--mount", "--user", "--map-root-user"),
            ("--mount", "--user", "--preserve-credentials"),
        ),
    )
    for unshare_options, enter_options in (as_root, as_user) if os.geteuid() == 0 else (as_user,):
        try:
            holder = await _start_holder(root, unshare_options)
        except InfrastructureError as error:
            reasons.append(error.why)
            continue
        nsenter = shutil.which("nsenter") or "nsenter"
        return MountNamespace(holder, (nsenter, "--target", str(holder.pid), *enter_options, "--"))
    raise _forbidden(root, "\n".join(reasons))


async def _start_holder(root: Path, unshare_options: Sequence[str]) -> asyncio.subprocess.Process:
    mount_point = root / ".namespace"
    mount_point.mkdir(exist_ok=True)
    script = (
        _SHELL,
        "-c",
        _BUILD,
        "devicelab-namespace",
        str(root),
        str(mount_point),
        " ".join(DEVICE_FOLDERS),
    )
    try:
        holder = await asyncio.create_subprocess_exec(
            "unshare",
            *unshare_options,
            *script,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise _forbidden(root, f"unshare: {error.strerror}") from error
    assert holder.stdout is not None
    assert holder.stderr is not None
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            if await holder.stdout.readline() == b"ready\n":
                return holder
            said = await holder.stderr.read()
    except TimeoutError:
        said = f"nothing after {_START_TIMEOUT_S} s".encode()
        holder.kill()
    await holder.wait()
    raise _forbidden(root, f"unshare {' '.join(unshare_options)}: {said.decode(errors='replace').strip()}")


def _forbidden(root: Path, why: str) -> InfrastructureError:
    return InfrastructureError(
        f"virtual device at {root}: no mount namespace",
        why=why,
        fix="allow `unshare --mount` (CAP_SYS_ADMIN) or user namespaces, or do without a namespace",
    )
