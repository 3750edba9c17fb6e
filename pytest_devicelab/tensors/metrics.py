"""Signal metrics of two tensors, and what they mean for a classifier."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from pytest_devicelab.tensors.formats import codes_of, distances_of, format_of

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float64]


def distances(reference: Array, observed: Array) -> Floats:
    """Return how far apart the values are, element by element.

    Args:
        reference: any shape, bool, integer or float.
        observed: the same shape and dtype.

    Returns:
        `|observed - reference|` as float64 `[elements]`, integers subtracted without wrapping. Two NaNs are
        at distance 0; when only one value is NaN or infinite, the distance is inf.
    """
    return distances_of(codes_of(reference), codes_of(observed), format_of(reference.dtype))


def sqnr_db(reference: Array, observed: Array) -> float | None:
    """Say how far the signal in `reference` stands above the noise in `observed`.

    Args:
        reference: the signal, any shape, bool, integer or float.
        observed: the same shape.

    Returns:
        `20 log10(|reference| / |observed - reference|)` in dB; None when no value differs (there is no
        noise), -inf when there is noise but no signal, or when only one of two values is finite.
    """
    noise = distances(reference, observed)
    if not np.any(noise):
        return None
    if not np.all(np.isfinite(noise)):
        return -math.inf
    left = _wide(reference)
    signal = np.where(np.isfinite(left), left, 0.0)
    return 20.0 * (_log10_norm(signal) - _log10_norm(noise)) if np.any(signal) else -math.inf


def cosine_similarity(reference: Array, observed: Array) -> float | None:
    """Say whether two tensors point the same way: 1.0 the same, 0.0 unrelated, -1.0 opposite.

    Returns:
        The cosine of the angle between them as flat vectors; None when it has none: a tensor of zeros, or
        one that is not finite.
    """
    left, right = _wide(reference), _wide(observed)
    if not (np.all(np.isfinite(left)) and np.all(np.isfinite(right))):
        return None
    scales = (float(np.abs(left).max(initial=0.0)), float(np.abs(right).max(initial=0.0)))
    if 0.0 in scales:
        return None
    left, right = left / scales[0], right / scales[1]
    cosine = float(left @ right) / (_norm(left) * _norm(right))
    return min(1.0, max(-1.0, cosine))


def top_k(logits: Array, k: int) -> npt.NDArray[np.intp]:
    """Return the `k` largest classes of each sample, best first; of equal logits the lower index first.

    Args:
        logits: `[N, classes]`; NaN ranks last.
        k: from 1 to the number of classes.

    Returns:
        Class indices, `[N, k]`.

    Raises:
        ValueError: `logits` is not two-dimensional, or `k` is out of range.
    """
    if logits.ndim != 2 or not 1 <= k <= logits.shape[1]:
        raise ValueError(f"top-{k} needs logits of shape [N, classes >= {k}], not {list(logits.shape)}")
    wide = logits.astype(np.float64)
    return np.argsort(-wide, axis=1, kind="stable")[:, :k]


def top_k_agreement(reference: Array, observed: Array, k: int) -> float:
    """Return the share of samples whose `k` largest classes are the same set in both, `[N, classes]` each."""
    left, right = np.sort(top_k(reference, k), axis=1), np.sort(top_k(observed, k), axis=1)
    return float(np.mean(np.all(left == right, axis=1)))


def top1_flips(reference: Array, observed: Array) -> int:
    """Count the samples whose largest class is another one, `[N, classes]` each."""
    return int(np.count_nonzero(top_k(reference, 1) != top_k(observed, 1)))


def top1_accuracy(logits: Array, labels: npt.NDArray[np.integer]) -> float:
    """Return the share of samples `[N, classes]` whose largest class is their label `[N]`."""
    return float(np.mean(top_k(logits, 1)[:, 0] == labels))


def is_classification(array: Array) -> bool:
    """Say whether an output has the shape of class scores, `[N, classes]` with more than one class."""
    return array.ndim == 2 and array.shape[1] > 1


def _wide(array: Array) -> Floats:
    """Return the values as float64 `[elements]`, so that no integer wraps when they are subtracted."""
    return array.astype(np.float64).reshape(-1)


def _norm(values: Floats) -> float:
    """Return the Euclidean norm of values between -1 and 1."""
    return math.sqrt(float(np.sum(values**2)))


def _log10_norm(values: Floats) -> float:
    """Return the logarithm of the Euclidean norm, which may itself be too large or too small for a float64."""
    largest = float(np.abs(values).max())
    return math.log10(largest) + math.log10(_norm(values / largest))
