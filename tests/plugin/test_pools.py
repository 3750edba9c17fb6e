"""`units`: one entry of the matrix that stands for several equal devices."""

from __future__ import annotations

import json

import pytest

from tests.plugin.projects import Project, cpu


def test_both_units_of_a_pool_are_used_at_once(project: Project) -> None:
    project.write({**cpu("pool"), "units": 2})
    project.pytester.makepyfile(
        """
        import time
        from pathlib import Path

        import pytest

        @pytest.mark.parametrize("me", [0, 1])
        def test_meeting(device, me):
            here = Path(__file__).parent
            (here / f"serial{me}.part").write_text(device.serial)
            (here / f"serial{me}.part").rename(here / f"serial{me}")
            other, deadline = here / f"serial{1 - me}", time.monotonic() + 30
            while not other.exists():
                assert time.monotonic() < deadline, "the other unit was not used meanwhile"
                time.sleep(0.02)
            assert other.read_text() != device.serial
        """
    )

    result = project.run("-n", "2", "-k", "meeting or determinism")

    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=3)
    serials = {(project.path / f"serial{number}").read_text() for number in (0, 1)}
    records = (json.loads((project.folder / run["record"]).read_bytes()) for run in project.session()["runs"])
    runs = {record["purpose"]: record["device"] for record in records}
    assert runs.keys() == {"evaluate", "repeat"}
    assert runs["evaluate"]["id"] == "pool"
    assert runs["evaluate"]["serial"] in serials
    # Another unit would show nothing about this one.
    assert runs["repeat"]["serial"] == runs["evaluate"]["serial"]
