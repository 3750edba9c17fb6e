"""One inference of the double, in a process of its own: `python -m tests.e2e.aihub_double.compute FOLDER`.

The folder holds `job.json` (the chip), `model.bin` (a context binary) and `inputs.npz`; it gets `outputs.npz`,
`profile.json` and `device.log`, or `refused.txt`. The HTP simulator computes, as on a virtual device.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from pytest_devicelab.matrix.soc import Soc
from pytest_devicelab.virtual.engine import EngineJob, EngineRefused
from pytest_devicelab.virtual.engines.htp import run_htp


def main(folder: Path) -> int:
    soc = Soc(**json.loads((folder / "job.json").read_text("utf-8")))
    with np.load(folder / "inputs.npz") as bundle:
        arrays = dict(bundle)
    samples = len(next(iter(arrays.values())))
    work = folder / "work"
    work.mkdir()
    job = EngineJob(
        model=folder / "model.bin",
        format="context_binary",
        inputs=tuple({name: array[index] for name, array in arrays.items()} for index in range(samples)),
        soc=soc,
        work=work,
        log_level="info",
        profile=True,
    )
    try:
        result = run_htp(job)
    except EngineRefused as refusal:
        (folder / "refused.txt").write_text(str(refusal), "utf-8")
        return 0
    names = list(result.outputs[0])
    outputs: Any = {name: np.stack([each[name] for each in result.outputs]) for name in names}
    np.savez(folder / "outputs.npz", **outputs)
    rows = [[row.name, row.cycles, list(row.sources)] for row in result.ops]
    (folder / "profile.json").write_text(json.dumps(rows), "utf-8")
    log = "".join(
        f"11-21 02:00:00.{number % 1000:03d}  4242  4243 {line.priority} {line.tag}: {line.message}\n"
        for number, line in enumerate(result.log)
    )
    (folder / "device.log").write_text(log, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
