"""Where a path on the device lies on the host, and the guard that keeps it there."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path, PurePosixPath

# The folders a device has of its own. All else that its shell sees (/bin, /usr, /tmp, ...) is the host's.
DEVICE_FOLDERS = ("data", "sdcard", "system", "vendor")

_MAX_LINKS = 40  # as the Linux kernel

# A device path at the start of a shell word, or after what may come before a path inside of one.
_DEVICE_PATH = re.compile(rf"(?<![^\s'\"=:,;|&()<>`{{\[!])/(?=(?:{'|'.join(DEVICE_FOLDERS)})(?![\w.-]))")


def resolve(root: Path, path: str, *, follow: bool = True) -> Path:
    """Return where on the host a device path lies, reading links as the device would.

    `/` is `root`, `..` stops there, and an absolute link starts there again; so the answer never lies
    outside of `root`. The last component need not exist.

    Args:
        root: the device's root folder on the host, without links in its own path.
        path: path on the device; a relative one counts from `/`.
        follow: whether a link in the last component is followed.

    Raises:
        OSError: the path goes through something that is no folder, through too many links, or is malformed.
    """
    if "\0" in path:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    pending = list(reversed(PurePosixPath("/", path).parts[1:]))
    here, links = root, 0
    while pending:
        name = pending.pop()
        if name == "..":
            here = here.parent if here != root else root
            continue
        candidate = here / name
        if not candidate.is_symlink() or (not pending and not follow):
            if pending and candidate.exists() and not candidate.is_dir():
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            here = candidate
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = PurePosixPath(candidate.readlink())
        if target.is_absolute():
            # Without a mount namespace the device's own shell makes links to host paths inside of root.
            target = target.relative_to(root) if target.is_relative_to(root) else target.relative_to("/")
            here = root
        pending.extend(reversed(target.parts))
    return here


def resolve_writable(root: Path, path: str, *, follow: bool = True) -> Path:
    """Return where on the host a device path lies that is about to be written; as `resolve`.

    Raises:
        OSError: EROFS outside of the device's own folders, for an Android device's root is read-only.
    """
    where = resolve(root, path, follow=follow)
    parts = where.relative_to(root).parts
    if not parts or parts[0] not in DEVICE_FOLDERS:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    return where


def rewrite_command(root: Path, command: str) -> str:
    """Return shell text in which absolute paths to the device's own folders point into `root`.

    This is what stands for the mount namespace where there is none: text is all it can see, so a path put
    together at run time (`/$X`) and one inside of a script file stay as they are; `$VROOT` is for those.
    `root` must need no quoting.
    """
    prefix = str(root)

    def replace(match: re.Match[str]) -> str:
        return "/" if command.startswith(prefix + "/", match.start()) else prefix + "/"

    return _DEVICE_PATH.sub(replace, command)
