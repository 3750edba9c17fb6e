"""A Ray node that ends with whoever started it: `python -m pytest_devicelab.cluster.node` takes what `ray start` does.

A lab host that is killed would else leave its node in the cluster, with nobody to carry runs out there.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress


def main() -> None:
    """Run the node until it is told to end, or until standard input does, whose other end its lab host holds."""
    threading.Thread(target=_end_with_input, daemon=True).start()
    import ray.scripts.scripts as ray

    sys.argv[1:] = ["start", "--block", *sys.argv[1:]]
    ray.cli()


def _end_with_input() -> None:
    with suppress(OSError):
        while os.read(0, 4096):
            pass
    # Ray's own way to end a node with all its processes.
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
