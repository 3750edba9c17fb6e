"""A tree laid out like Qualcomm's SDK, whose runner writes down how it was called and then lets the device's own run."""

from __future__ import annotations

import struct
from pathlib import Path

TRANSCRIPT = "/data/local/tmp/stub-transcript"
AARCH64, HEXAGON, X86_64 = 183, 164, 62

# The phone's runner leaves its profile in the vendor's own format, never as a table.
_RUNNER = f"""#!/bin/sh
folder=$(dirname "$0")
{{
    echo "program $0"
    for word in "$@"; do echo "word $word"; done
    echo "LD_LIBRARY_PATH $LD_LIBRARY_PATH"
    echo "ADSP_LIBRARY_PATH $ADSP_LIBRARY_PATH"
    for file in "$folder"/*; do echo "file $(basename "$file") $(sha256sum < "$file")"; done
    cat "$folder/backend.json" "$folder/htp.json"
}} > {TRANSCRIPT}
unset LD_LIBRARY_PATH ADSP_LIBRARY_PATH
qnn-net-run "$@" || exit $?
for word in "$@"; do case $word in --output_dir=*) out=${{word#*=}} ;; esac; done
mv "$out/qnn-profiling-data_0.csv" "$out/qnn-profiling-data_0.log"
"""
# `--input_log A --output B`: as the real one, it writes of versions first, calls every event of a stage by the stage, and
# has the runner's own time before those of the backend.
_VIEWER = r"""#!/bin/sh
[ "$1" = --input_log ] && [ "$3" = --output ] || exit 2
awk -F, '
    NR == 1 {
        print "qnn-profile-viewer, a stub"
        print "Log file version: 1, 2"
        print ""
        print "Msg Timestamp, Message, Time, Unit of Measurement, Timing Source, Event Level, Event Identifier"
        next
    }
    { held[++count] = $3 "," $4 "," $5 "," $6 "," $7; if ($2 != "INIT" && $2 != "EXECUTE") next }
    {
        print $1 "," $2 "," $3 + 100 ",US,NETRUN,ROOT," ($2 == "EXECUTE" ? "Graph 0: stub" : "")
        for (number = 1; number <= count; number++) print $1 "," $2 "," held[number]
        count = 0
    }
' "$2" > "$4"
"""


def elf(machine: int, content: bytes = b"") -> bytes:
    """The first bytes of a 64-bit little-endian ELF file for a machine, and something behind them."""
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    return ident + struct.pack("<HHI", 3, machine, 1) + bytes(40) + content


def build_sdk(root: Path, *, version: str = "2.99.0.271120", hexagons: tuple[str, ...] = ("75",)) -> Path:
    """Make the tree and return it."""
    libraries = ("libQnnHtp.so", "libQnnSystem.so", "libQnnHtpNetRunExtensions.so")
    stubs = tuple(f"libQnnHtpV{arch}Stub.so" for arch in hexagons)
    files = {f"lib/aarch64-android/{name}": elf(AARCH64, name.encode()) for name in (*libraries, *stubs)}
    for arch in hexagons:
        files[f"lib/hexagon-v{arch}/unsigned/libQnnHtpV{arch}Skel.so"] = elf(HEXAGON, arch.encode())
    files["bin/aarch64-android/qnn-net-run"] = _RUNNER.encode()
    files["bin/x86_64-linux-clang/qnn-profile-viewer"] = _VIEWER.encode()
    files["sdk.yaml"] = f"product: QAIRT\nversion: {version}\n".encode()
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / "bin/x86_64-linux-clang/qnn-profile-viewer").chmod(0o755)
    return root
