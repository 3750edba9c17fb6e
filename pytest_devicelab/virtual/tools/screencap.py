"""screencap: a picture of the screen a virtual device has not got, all black, as a real PNG."""

# Programs on the device start without pathlib, which alone takes some milliseconds.
# ruff: noqa: PTH123

from __future__ import annotations

import struct
import sys
import zlib

from pytest_devicelab.virtual.tools.device_path import host_path

# As `wm size` says.
WIDTH, HEIGHT = 1080, 2400


def encode_black_png(width: int, height: int) -> bytes:
    """Return a black one-bit greyscale PNG of that size in pixels. Source: PNG specification, W3C."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = bytes((1 + (width + 7) // 8) * height)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def main(argv: list[str]) -> int:
    """Run screencap with its command line; returns the exit status."""
    words = [word for word in argv[1:] if word != "-p"]
    if len(words) > 1 or any(word.startswith("-") for word in words):
        sys.stderr.write("usage: screencap [-p] [FILENAME]\n")
        return 1
    picture = encode_black_png(WIDTH, HEIGHT)
    if not words:
        sys.stdout.buffer.write(picture)
        return 0
    try:
        with open(host_path(words[0]), "wb") as file:
            file.write(picture)
    except OSError as error:
        sys.stderr.write(f"Error opening file: {words[0]} ({error.strerror})\n")
        return 1
    return 0
