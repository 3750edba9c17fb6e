"""dmesg: the kernel's log, which is the `kernel` buffer of the device; for root only, as on a phone."""

from __future__ import annotations

import sys

from pytest_devicelab.virtual.tools.device_path import device_root, read_boot_ns, shell_uid
from pytest_devicelab.virtual.tools.logclient import LogInterrupted, encode_text, read_batches


def main(argv: list[str]) -> int:
    """Run dmesg with its command line; returns the exit status."""
    if shell_uid() != 0:
        sys.stderr.write("dmesg: klogctl: Permission denied\n")
        return 1
    if argv[1:] not in ([], ["-w"]):
        sys.stderr.write("usage: dmesg [-w]\n")
        return 1
    root = device_root()
    boot_ns = read_boot_ns(root)
    request = {"op": "read", "buffers": ["kernel"], "follow": argv[1:] == ["-w"]}
    try:
        for batch in read_batches(root, request):
            for record in batch:
                since_us = max(record.time_ns - boot_ns, 0) // 1000
                stamp = b"[%5d.%06d] " % divmod(since_us, 10**6)
                sys.stdout.buffer.write(stamp + encode_text(record.message) + b"\n")
            sys.stdout.buffer.flush()
    except (OSError, LogInterrupted) as error:
        sys.stderr.write(f"dmesg: {error}\n")
        return 1
    return 0
