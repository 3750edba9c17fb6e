from __future__ import annotations

from pathlib import Path

import pytest

from pytest_devicelab.errors import TransferError
from pytest_devicelab.runtimes.qnn import QnnRuntime
from pytest_devicelab.runtimes.runtime import Leftovers, Prepared

COLUMNS = b"Message,Time,Unit of Measurement,Event Identifier\n"


@pytest.mark.parametrize(
    "profile",
    [
        b"some,other\n1,2\n",
        COLUMNS + b"NODE,many,CYCLES,conv:OpId_1 (cycles)\n",
        COLUMNS + b"NODE,1,CYCLES\n",
        COLUMNS + b'NODE,"' + b"1" * 200_000 + b'",CYCLES,conv\n',
    ],
    ids=["other columns", "no number", "a column short", "a huge field"],
)
def test_a_profile_that_cannot_be_read_is_the_labs_failure(tmp_path: Path, profile: bytes) -> None:
    prepared = Prepared(file=tmp_path / "context.bin", outputs=(), options={})
    assert QnnRuntime().read_leftovers(prepared, tmp_path) == Leftovers()
    (tmp_path / "qnn-profiling-data_0.csv").write_bytes(profile)
    with pytest.raises(TransferError, match="not an op profile"):
        QnnRuntime().read_leftovers(prepared, tmp_path)
