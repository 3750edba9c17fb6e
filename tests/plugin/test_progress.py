"""Progress: long work says on the terminal what it is at, also while pytest captures, unless it is to be quiet."""

from __future__ import annotations

import pytest

from tests.plugin.projects import Project, npu

# One line every three seconds is for people; a test does not wait for it.
OFTEN = """
from functools import partial

from pytest_devicelab import progress

progress.ProgressPrinter = partial(progress.ProgressPrinter, interval_s=0.05)
"""


@pytest.mark.parametrize("quiet", [False, True])
def test_progress_lines(project: Project, quiet: bool) -> None:
    project.write(npu("phone", "slow"))
    project.pytester.makeconftest(OFTEN)

    result = project.run("-k", "placement", *(["-q"] if quiet else []))

    assert result.ret == pytest.ExitCode.OK
    if quiet:
        result.stderr.no_fnmatch_line("*phone*")
    else:
        result.stderr.fnmatch_lines(["*[[]*s] device=phone model=tiny evaluate: running 12 samples*"])
