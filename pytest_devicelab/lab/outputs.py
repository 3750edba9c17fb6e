"""What a run gave: output files joined and hashed on the device, and pulled unless their bytes are here already."""

from __future__ import annotations

import hashlib
import math
import re
import shlex
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.devices.slots import sha256_file
from pytest_devicelab.errors import OutputIncomplete, TransferError
from pytest_devicelab.evidence.record import TensorRecord
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.runtimes.runtime import OutputFile

PULL_PREFIX = ".pull-"
"""How names of folders begin, in that of a run, that outputs are pulled into."""


class Outputs:
    """Brings the outputs of one run home.

    Args:
        device: where they are.
        store: takes their arrays.
        folder: of the run, on this host.
        work: of the run, on the device; the runner wrote into `out` there.

    Attributes:
        spared_bytes: not pulled, because an array with these bytes was there.
    """

    def __init__(self, device: AdbDevice, store: SessionStore, folder: Path, work: str) -> None:
        self._device = device
        self._store = store
        self._folder = folder
        self._work = work
        self.spared_bytes = 0

    def collect(self, output: OutputFile, samples: int) -> TensorRecord:
        """Join an output's raw files on the device, hash them there, and pull them unless we have those bytes."""
        joined = f"{self._work}/{hashlib.sha256(output.name.encode()).hexdigest()[:16]}.raw"
        result = self._device.script(
            _join_script(f"{self._work}/out", f"{output.folder}{output.file}", samples, joined), timeout_s=120
        )
        found = re.match(r"([0-9a-f]{64}) [^\n]*\n *([0-9]+)", result.text)
        if result.exit_code != 0 or found is None:
            raise OutputIncomplete(
                f"device {self._device.id}: output {output.name} is missing or incomplete",
                why=result.stderr.decode("utf-8", "replace").strip()[:500] or "no such file after the run",
                fix=f"see {self._folder / 'stderr.txt'}",
            )
        digest, size = found[1], int(found[2])
        shape = (samples, *_without_batch(output.shape))
        expected = np.dtype(output.dtype).itemsize * math.prod(shape)
        if size != expected:
            raise OutputIncomplete(
                f"device {self._device.id}: output {output.name} has the wrong size",
                why=f"{size:,} bytes; {output.dtype} {list(shape)} takes {expected:,}",
                fix="the runner stopped early, or does not write what it says: see stderr.txt in the run's folder",
            )
        if self._store.arrays.has(digest):
            self.spared_bytes += size
        else:
            self._store.arrays.write(self._pull_array(joined, output, shape, digest, size))
        return TensorRecord(
            name=output.name, dtype=output.dtype, shape=shape, sha256=digest, quantization=output.quantization
        )

    def _pull_array(
        self, remote: str, output: OutputFile, shape: tuple[int, ...], digest: str, size: int
    ) -> npt.NDArray[np.generic]:
        # Here, where it is found again when this process does not live to remove it.
        with tempfile.TemporaryDirectory(prefix=PULL_PREFIX, dir=self._folder) as folder:
            local = Path(folder) / "output.raw"
            self._device.pull(remote, local, limit_bytes=size)
            received = sha256_file(local)
            if received != digest:
                raise TransferError(
                    f"device {self._device.id}: output {output.name} did not arrive as the device holds it",
                    why=f"{local.stat().st_size:,} bytes with sha256 {received[:16]} came, the device says {digest[:16]}",
                    fix="check the cable or the network, then rerun",
                )
            return np.fromfile(local, dtype=np.dtype(output.dtype).newbyteorder("<")).reshape(shape)


def _without_batch(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[1:] if shape and shape[0] == 1 else shape


def _join_script(out: str, file: str, samples: int, joined: str) -> str:
    """Return shell text that joins the files of every sample, in order; it says the hash and the size.

    It fails when one is missing. `xargs` splits what would be too long for one command line, and quotes nothing:
    its parts are made of letters, digits, `_` and `.` (`OutputFile`), and `{}` stands for the number.
    """
    return (
        f"cd {shlex.quote(out)} || exit 1; i=0; "
        f"while [ $i -lt {samples:d} ]; do echo {file.replace('{}', '${i}')}; i=$((i+1)); done | "
        f"xargs cat > {shlex.quote(joined)} && sha256sum {shlex.quote(joined)} && wc -c < {shlex.quote(joined)}"
    )
