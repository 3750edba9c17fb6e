"""SoC facts: which chip is meant, which Hexagon it has, what is known of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Soc:
    """One chip. None means unknown, which is never replaced by a guess.

    Attributes:
        name: the vendor's part number, as in `ro.soc.model`: `SM8650`, or `Tensor G4`.
        manufacturer: as in `ro.soc.manufacturer`: `QTI`, `Google`; None if unknown.
        marketing: the name on the box, `Snapdragon 8 Gen 3`.
        hexagon: NPU architecture, `V75`; None if unknown or no Hexagon (see `has_hexagon`).
        has_hexagon: False for chips that are known to have none.
        qnn_id: `soc_model` of the QNN SDK.
        vtcm_mb: vector tightly-coupled memory, MiB.
        htp_fp16: whether the HTP computes in fp16.
        platform: `ro.board.platform`, such as `pineapple`.
    """

    name: str
    manufacturer: str | None = None
    marketing: str | None = None
    hexagon: str | None = None
    has_hexagon: bool = True
    qnn_id: int | None = None
    vtcm_mb: int | None = None
    htp_fp16: bool | None = None
    platform: str | None = None
