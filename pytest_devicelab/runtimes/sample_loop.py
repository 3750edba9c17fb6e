"""Shell text for runners that are started anew for each sample and take its files by their place."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from pytest_devicelab.runtimes.runtime import Job

_BARE = "sed 's/[^ ]*:=//g'"


def each_sample(job: Job, once: Sequence[str], then: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the command that carries steps out for each line of the input list.

    Args:
        job: says where the list is and where results go.
        once: shell text a step, for one sample: `$1`, `$2`, ... are its files in the order of the list, `$n` is its
            number from 0, `$out` the output folder. The first that fails ends it all with its exit status.
        then: steps when all samples are through.
    """
    steps = [
        # Names of files are no patterns.
        "set -ef",
        f"out={shlex.quote(job.output_dir)}",
        'mkdir -p "$out"',
        f'{_BARE} {shlex.quote(job.input_list)} > "$out/input_list.bare"',
        "n=0",
        "while read -r files; do",
        "set -- $files",
        *once,
        # What a runner says of the first sample is what it would say of all.
        "exec > /dev/null",
        "n=$((n+1))",
        'done < "$out/input_list.bare"',
        *then,
    ]
    return ("sh", "-c", "\n".join(steps), job.program)


def first_sample(job: Job, before: Sequence[str], runner: str) -> tuple[str, ...]:
    """Return the command that becomes a runner with the files of the first sample, which are `$1`, `$2`, ...

    Args:
        job: says where the list is and where results go.
        before: steps before that; `$out` is the output folder.
        runner: its command line, shell text.
    """
    steps = [
        "set -ef",
        f"out={shlex.quote(job.output_dir)}",
        'mkdir -p "$out"',
        *before,
        f"read -r files < {shlex.quote(job.input_list)}",
        f"set -- $(printf '%s\\n' \"$files\" | {_BARE})",
        f"exec {runner}",
    ]
    return ("sh", "-c", "\n".join(steps), job.program)
