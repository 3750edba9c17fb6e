"""Whether compiled kernels take over from numpy: where numba is installed, and the tensors are worth loading it."""

from __future__ import annotations

from types import ModuleType

# Below this many elements numpy is done before the kernels are loaded.
_WORTH_FROM = 1 << 22


def load_fast() -> ModuleType | None:
    """Return the module of compiled kernels, or None where numba is not installed."""
    try:
        from pytest_devicelab.tensors import fast
    except ImportError:
        return None
    return fast


def load_fast_for(elements: int) -> ModuleType | None:
    """Return the kernels if they are installed, and that many elements are worth loading them."""
    return load_fast() if elements >= _WORTH_FROM else None
