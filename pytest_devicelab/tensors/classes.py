"""Equivalence classes: which devices computed the same bits."""

from __future__ import annotations

from collections.abc import Mapping


def equivalence_classes(hashes: Mapping[str, tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """Group devices whose outputs are bit-identical.

    Args:
        hashes: for each device one hash per compared output, all devices in the same order of outputs.

    Returns:
        The classes, largest first; classes of one size, and the devices in each, keep the order of `hashes`.

    Raises:
        ValueError: a device has no hash, or not as many as the others: comparing nothing is never equal.
    """
    lengths = {len(own) for own in hashes.values()}
    if lengths and (len(lengths) > 1 or 0 in lengths):
        raise ValueError(
            f"every device needs the same number of hashes, at least one; found {sorted(lengths)}"
        )
    members: dict[tuple[str, ...], list[str]] = {}
    for device, own in hashes.items():
        members.setdefault(own, []).append(device)
    return tuple(tuple(devices) for devices in sorted(members.values(), key=len, reverse=True))
