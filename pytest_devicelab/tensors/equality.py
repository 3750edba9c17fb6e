"""Whether two tensors are the same bits, and in how many elements they are not, at the speed of memory."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from pytest_devicelab.tensors.formats import Codes

# Long enough for the processor to fetch ahead, short enough for the mask to stay in its second-level cache.
_BLOCK_BYTES = 1 << 20


def count_different(reference: Codes, observed: Codes, *, fast: ModuleType | None = None) -> int:
    """Return in how many elements at least one bit differs.

    Args:
        reference: codes `[elements]`, as `codes_of` gives them.
        observed: as many, of the same dtype.
        fast: the compiled kernels, as `load_fast_for` gives them; None for numpy's way.
    """
    if fast is not None:
        return int(fast.fast_different(reference, observed))
    block = _BLOCK_BYTES // reference.itemsize
    mask = np.empty(min(block, reference.size), np.bool_)
    different = 0
    for start in range(0, reference.size, block):
        left, right = reference[start : start + block], observed[start : start + block]
        changed = np.not_equal(left, right, out=mask[: left.size])
        different += int(np.count_nonzero(changed))
    return different
