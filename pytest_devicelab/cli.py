"""The command line: `devicelab COMMAND`. Each command is a module of `pytest_devicelab.commands`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from pytest_devicelab.commands import (
    bisect,
    diff,
    doctor,
    fingerprint,
    lab,
    logs,
    matrix,
    quantize,
    repro,
    sensitivity,
    suggest,
    virtual,
)
from pytest_devicelab.errors import DevicelabError, UserError

_COMMANDS = (
    doctor,
    suggest,
    lab,
    virtual,
    matrix,
    diff,
    bisect,
    sensitivity,
    repro,
    fingerprint,
    logs,
    quantize,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0, 1 for a finding or a failure, 4 for a user's mistake, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(prog="devicelab", description="A lab of devices for quantized models.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add(commands)
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
    except UserError as error:
        _complain(error)
        return 4
    except DevicelabError as error:
        _complain(error)
        return 1
    except KeyboardInterrupt:
        # Some wait an hour for a queue: to end that is no fault of the program's.
        print("devicelab: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    return status


class _Version(argparse.Action):
    """Reads the version only when it is asked for: looking a distribution up takes time every command would pay."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"devicelab {version('pytest-devicelab')}")
        parser.exit()


def _complain(error: DevicelabError) -> None:
    from pytest_devicelab.report.phrases import visible

    # Names in a model, a log or a device's answer must not steer the terminal.
    print(f"devicelab: {visible(str(error), keep=chr(10))}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
