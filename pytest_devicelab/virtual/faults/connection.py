"""Faults of the way to a device: what goes wrong with cables, hubs, USB stacks and adb daemons."""

from __future__ import annotations

import signal
from collections.abc import Mapping

from pytest_devicelab.virtual.faults.fault import Subject
from pytest_devicelab.virtual.faults.link import Cut
from pytest_devicelab.virtual.processes import signal_all


class Drop:
    """The connection breaks when `at_byte` more bytes have gone over it, as when a cable slips.

    On a phone: `adb shell` ends with status 255 and no message, a push with "failed to read copy response",
    and the device is back in a second. Once.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._cut = Cut(left_bytes=int(values["at_byte"]), kind="drop")

    def begin(self, device: Subject) -> None:
        """Begin to count."""
        device.link.cut = self._cut

    def struck(self, device: Subject) -> bool:
        """Say whether the byte has gone by."""
        del device
        return self._cut.left_bytes <= 0

    def end(self, device: Subject) -> None:
        """Count no more."""
        device.link.cut = None


class Stall:
    """After `at_byte` more bytes one connection goes silent and stays open, as with a hung USB endpoint.

    On a phone: the command blocks for ever, and so does every other one, while `adb devices` goes on to say
    `device`; after `adb reconnect` (over TCP also `adb connect`) it works again. Once.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._cut = Cut(left_bytes=int(values["at_byte"]), kind="stall")

    def begin(self, device: Subject) -> None:
        """Begin to count."""
        device.link.cut = self._cut

    def struck(self, device: Subject) -> bool:
        """Say whether the byte has gone by."""
        del device
        return self._cut.left_bytes <= 0

    def end(self, device: Subject) -> None:
        """Cut the connection that stalled; what was under way on it is lost."""
        device.link.cut = None
        for valve in tuple(device.link.valves):
            valve.revive()


class Freeze:
    """The whole device stops: its adb daemon and every process, as when a kernel hangs.

    On a phone: the screen stands still, every adb command blocks, `adb devices` says `device`. When it thaws,
    everything goes on where it was.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        del values

    def begin(self, device: Subject) -> None:
        """Stop the processes and the link."""
        device.link.frozen = True
        device.link.changed()
        signal_all([device.root], signal.SIGSTOP)

    def end(self, device: Subject) -> None:
        """Let them go on."""
        signal_all([device.root], signal.SIGCONT)
        device.link.frozen = False
        device.link.changed()


class SlowLink:
    """Every connection carries `bytes_per_s` in each direction, as over a bad hub or a crowded Wi-Fi.

    On a phone: everything works, and a push of a large model runs into the deadline.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._bytes_per_s = int(values["bytes_per_s"])

    def begin(self, device: Subject) -> None:
        """Slow down."""
        device.link.bytes_per_s = self._bytes_per_s
        device.link.changed()

    def end(self, device: Subject) -> None:
        """Be as fast as ever."""
        device.link.bytes_per_s = None
        device.link.changed()


class Offline:
    """The device is switched off, or its adb daemon is dead.

    On a phone: `adb: device offline` or `device not found`, and nothing brings it back but a hand or a timer.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        del values

    def begin(self, device: Subject) -> None:
        """Stop listening, and cut every connection."""
        device.later(device.offline())

    def end(self, device: Subject) -> None:
        """Listen again."""
        device.later(device.online())


class Unauthorized:
    """The device has forgotten the host's key and asks on its screen whether to trust it; nobody answers.

    On a phone: `adb devices` says `unauthorized`, commands say "device unauthorized". When it ends, somebody
    has tapped "Allow".
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        del values

    def begin(self, device: Subject) -> None:
        """Revoke the key: connections end, and new ones are asked for one."""
        device.link.authorized = False
        device.later(device.drop())

    def end(self, device: Subject) -> None:
        """Accept the key."""
        device.link.authorized = True
        # The host that waits has no reason to ask again: it makes a new connection when its old one ends.
        device.later(device.drop())


class Reboot:
    """The device restarts and is away for `down_s`, as after a kernel panic or a watchdog.

    On a phone: whatever ran is gone, so are the log and the properties that do not persist; files stay. Once.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._down_s = float(values["down_s"])

    def begin(self, device: Subject) -> None:
        """Restart."""
        device.later(device.reboot(down_s=self._down_s))

    def end(self, device: Subject) -> None:
        """Nothing: it is back by itself."""
