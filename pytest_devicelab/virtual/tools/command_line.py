"""The command line that the runners of our own, `ort-run` and `litert-run`, have in common."""

from __future__ import annotations

import argparse
from typing import NoReturn

from pytest_devicelab.virtual.runtime_log import LEVELS
from pytest_devicelab.virtual.tools.raw_files import RunnerError


class RunnerParser(argparse.ArgumentParser):
    """Parser of a runner's command line; what is wrong with one is a `RunnerError`.

    Args:
        program: its name.
        description: what it does.
    """

    def __init__(self, program: str, description: str) -> None:
        super().__init__(prog=program, allow_abbrev=False, description=description)
        self.add_argument("--model", required=True, metavar="FILE", help="the model")
        self.add_argument("--input_list", required=True, metavar="FILE", help="a line of files a sample")
        self.add_argument("--output_dir", required=True, metavar="DIR", help="where the results go")
        self.add_argument("--log_level", choices=LEVELS, default="warn", help="what goes to logcat")
        self.add_argument("--repeat", type=_count, default=1, metavar="N", help="run the input list N times")
        self.add_argument(
            "--timing",
            action="store_true",
            help="write how long each inference took; results of the first round only",
        )

    def error(self, message: str) -> NoReturn:
        """Raise the `RunnerError` of a command line that cannot be understood."""
        raise RunnerError(f"{message}\n{self.format_usage()}")


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("it takes a number of at least 1")
    return number
