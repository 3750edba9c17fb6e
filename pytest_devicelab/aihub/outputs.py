"""The output dataset of an inference job, as arrays: held to what the model declares, for a cloud can send anything."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pytest_devicelab.errors import OutputIncomplete, TransferError
from pytest_devicelab.runtimes.inputs import Arrays
from pytest_devicelab.virtual.onnx_model import signature

if TYPE_CHECKING:
    import onnx


def read_outputs(path: Path, model: onnx.ModelProto, samples: int) -> Arrays:
    """Return every output of the model, `[N, ...]` in the dtype it declares.

    A compiler may have replaced what is no letter or digit in a name by `_`; such a name is taken where it is unique.

    Raises:
        TransferError: the file is damaged.
        OutputIncomplete: an output or a sample is missing, or has another shape or dtype.
    """
    batches = dict(_read(path, samples))
    outputs: dict[str, npt.NDArray[np.generic]] = {}
    declared = [tensor.name for tensor in signature(model)[1]]
    for tensor in signature(model)[1]:
        key = tensor.name if tensor.name in batches else _by_plain_name(batches, tensor.name, declared)
        # Taken out: what is one output of the model is not another one, too.
        found = batches.pop(key, None)
        if found is None:
            raise _wrong(tensor.name, "is missing", f"the dataset holds {sorted(batches)[:10]}")
        if len(found) != samples:
            raise _wrong(tensor.name, "is incomplete", f"{len(found)} of {samples} samples came")
        shape = tensor.shape[1:] if tensor.shape and tensor.shape[0] == 1 else tensor.shape
        odd = [each for each in found if each.dtype != tensor.dtype or each.size != math.prod(tensor.shape)]
        if odd:
            expected = f"{tensor.dtype} {list(tensor.shape)} was expected"
            raise _wrong(tensor.name, "is something else", f"{odd[0].dtype} {list(odd[0].shape)}; {expected}")
        outputs[tensor.name] = np.stack([each.reshape(shape) for each in found])
    return outputs


def _wrong(name: str, what: str, why: str) -> OutputIncomplete:
    return OutputIncomplete(
        f"AI Hub: output {name} {what}",
        why=why,
        fix="see the job's page; the model that ran is not the one that was sent, or it broke off",
    )


def _by_plain_name(batches: Mapping[str, list[Any]], name: str, declared: list[str]) -> str:
    """Return the one name in the dataset that this output's may have become; empty where that is not sure."""
    plain = re.sub(r"\W", "_", name)
    named = [key for key in batches if key not in declared and re.sub(r"\W", "_", key) == plain]
    rivals = [other for other in declared if re.sub(r"\W", "_", other) == plain]
    return named[0] if len(named) == len(rivals) == 1 else ""


def _read(path: Path, samples: int) -> Mapping[str, list[npt.NDArray[np.generic]]]:
    """Read `data/<i>/batch_<k>`, at most one more than the samples that were sent.

    Source: qai_hub.util.dataset_entries_converters.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            found = {}
            for group in file["data"].values():
                count = int(group.attrs["batch_count"])
                names = [f"batch_{index}" for index in range(min(count, samples + 1))]
                if (name := str(group.attrs["name"])) in found:
                    raise ValueError(f"two outputs are called {name[:80]!r}")
                found[name] = [_array(group[name]) for name in names]
            return found
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise TransferError(
            "AI Hub: the outputs did not arrive whole",
            why=f"{type(error).__name__}: {error}"[:300],
            fix="ask for the run again: the job is not run anew",
        ) from None


def _array(dataset: Any) -> npt.NDArray[np.generic]:
    if dataset.dtype.kind not in "biuf" or dataset.size > 1 << 30:
        raise ValueError(f"a dataset of {dataset.dtype} {dataset.shape} is no output")
    array: npt.NDArray[np.generic] = dataset[()]
    return np.asarray(array)
