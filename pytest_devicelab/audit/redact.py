"""Take out of a log what is about the machine it was written on, and not about what was run."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Folders of a device, which say nothing about whose it is.
_DEVICE_ROOTS = (b"/data/local/tmp", b"/vendor", b"/system", b"/dev", b"/proc", b"/sys", b"/apex")
_PATH = re.compile(rb"(?<![\w./<>-])(?:/[\w.+@~,=-]+){2,}/?")


def redact(log: bytes, private: Sequence[str]) -> bytes:
    """Return a log without the folders and names of the host.

    Args:
        log: as it was written.
        private: words that must not appear, such as a phone's serial number.

    Returns:
        The log with every absolute path that is not the device's cut down to `<path>/` and its last part, and with
        `<redacted>` for each private word.
    """
    for word in filter(None, private):
        log = log.replace(word.encode(), b"<redacted>")
    return _PATH.sub(lambda found: _short(found[0]), log)


def _short(path: bytes) -> bytes:
    if path.startswith(_DEVICE_ROOTS):
        return path
    return b"<path>/" + path.rstrip(b"/").rpartition(b"/")[2]
