"""Start one of the small programs of a virtual device."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from importlib import import_module


def launch(program: str, module: str) -> None:
    """Run a program's `main(argv) -> exit status` and exit with it.

    A closed pipe or an interrupt ends it silently, as it ends a C program.

    Args:
        program: the name it was called by, its `argv[0]`.
        module: the module of this package that holds `main`.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    main: Callable[[list[str]], int] = import_module(f"{__package__}.{module}").main
    sys.exit(main([program, *sys.argv[1:]]))
