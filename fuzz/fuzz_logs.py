"""Coverage-guided fuzzing of the log reader; see docs/reference/log-events.md. Not part of CI.

    pip install atheris hyperscan
    python fuzz/fuzz_logs.py -max_total_time=300 -max_len=4096 -timeout=5 fuzz/corpus tests/unit/logs

A crash is an exception, a wrong count, or an event that does not quote its line; a hang is a timeout.
"""

from __future__ import annotations

import io
import sys

import atheris

with atheris.instrument_imports(include=["pytest_devicelab.logs"]):
    from pytest_devicelab.logs.candidates import PlainFinder, make_finder, make_selector
    from pytest_devicelab.logs.compression import open_compressed
    from pytest_devicelab.logs.registry import DIALECTS
    from pytest_devicelab.logs.scanner import LogScanner
    from pytest_devicelab.logs.survey import Survey

_LITERALS = [trigger.literal for dialect in DIALECTS for trigger in dialect.triggers]
_FAST, _PURE = make_finder(_LITERALS), PlainFinder(_LITERALS)


def read_one(data: bytes) -> None:
    """Read one input every way there is, and compare."""
    packed = open_compressed(io.BytesIO(data), data[:4])
    if packed is not None:
        view = memoryview(bytearray(4096))
        for _ in range(64):
            if not packed.readinto(view):
                break
        return
    scanners = [
        LogScanner(source="fuzz", dialects=DIALECTS, selector=make_selector(DIALECTS, finder), survey=survey)
        for finder, survey in ((_FAST, Survey()), (_PURE, None))
    ]
    events, others = ([*scanner.scan(io.BytesIO(data).readinto)] for scanner in scanners)
    scanner = scanners[0]
    if events != others or scanner.lines != scanners[1].lines:
        raise AssertionError("two ways to find lines found different ones")
    lines = data.split(b"\n")
    for event in events:
        line = data[event.offset :].split(b"\n", 1)[0] if scanner.format != "binary" else b""
        if line and (event.line > len(lines) or line != lines[event.line - 1]):
            raise AssertionError(f"{event} does not quote its line")


def main() -> None:
    """Run until told to stop."""
    atheris.Setup(sys.argv, read_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
