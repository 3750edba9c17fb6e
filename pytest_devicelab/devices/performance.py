"""Android's fixed-performance mode: clocks held at a level the device can keep up, so that times can be compared.

Source: AOSP PowerManager.setFixedPerformanceModeEnabled; `cmd power`, Android 11 and newer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.devices.slots import DEVICE_ROOT
from pytest_devicelab.errors import InfrastructureError

_NOTE = f"{DEVICE_ROOT}/fixed_performance"
_SWITCH = "cmd power set-fixed-performance-mode-enabled"
# A device says with its exit status, or in words, that it has no such mode.
_ON = f"mkdir -p {DEVICE_ROOT} && : > {_NOTE} && {_SWITCH} true 2>&1 || {{ rm -f {_NOTE}; exit 1; }}"
RESTORE = f"if [ -e {_NOTE} ]; then {_SWITCH} false >/dev/null 2>&1 && rm -f {_NOTE}; fi"
"""Shell text that puts back what a former holder left on; a note on the device says that it did."""


@contextmanager
def fixed_performance(device: AdbDevice) -> Iterator[bool]:
    """Hold the device's clocks for the duration of a block.

    Yields:
        Whether the device has that mode; Android below 11 and many phones have not.

    Raises:
        InfrastructureError: the device does not answer.
    """
    done = device.script(_ON)
    held = done.exit_code == 0 and not done.text.strip()
    try:
        yield held
    finally:
        back = device.script(RESTORE)
        if back.exit_code != 0:
            raise InfrastructureError(
                f"device {device.id}: fixed-performance mode could not be switched off",
                why=back.stderr.decode("utf-8", "replace").strip() or f"exit status {back.exit_code}",
                fix=f"try `{_SWITCH} false` on the device, or restart it",
            )
