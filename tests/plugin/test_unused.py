"""The plugin is installed, and a session does not use it: that costs next to nothing, and leaves nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "numpy",
    "onnx",
    "onnxruntime",
    "jinja2",
    "yaml",
    "adbutils",
    "filelock",
    "pytest_devicelab.evidence",
)


def test_nothing_heavy_is_imported(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_mine(tmp_path): pass")
    before = set(pytester.path.iterdir())
    # Other plugins of this environment may import what they like.
    script = (
        "import sys, pytest; "
        "status = pytest.main(['-p', 'pytest_devicelab.plugin', '-p', 'no:cacheprovider', '-q']); "
        f"print('heavy:', [name for name in {HEAVY} if name in sys.modules], int(status))"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", script],
        env={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PATH": "/usr/bin:/bin"},
        cwd=pytester.path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.endswith("heavy: [] 0\n"), done.stdout + done.stderr
    assert set(pytester.path.iterdir()) == before


def test_nothing_of_it_is_shown(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_mine(): pass")
    result = pytester.runpytest_inprocess("-v")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("devicelab:*")
    result.stdout.no_fnmatch_line("=* devicelab *=")
