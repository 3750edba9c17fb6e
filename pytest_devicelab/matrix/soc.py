"""SoC facts: which chip is meant, which Hexagon it has, what is known of it."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from types import MappingProxyType

from pytest_devicelab.errors import UserError
from pytest_devicelab.matrix.suggest import nearest, show

SIMULATED_HEXAGONS = ("V68", "V69", "V73", "V75", "V79", "V81")
"""Hexagon versions Qualcomm's HTP simulator computes for. Source: tried with onnxruntime-qnn 2.7."""

# The part number before the suffix that names a speed grade, as in SM8650-AC.
_SPEED_GRADE = re.compile(r"(?P<part>[A-Z]{2,4}\d{4}[A-Z]?)-[A-Z0-9]{1,3}", re.IGNORECASE)
_NOT_IN_A_NAME = re.compile(r"[^a-z0-9]+")
_FILLER = re.compile(
    r"qualcomm|snapdragon|google|samsung|mediatek|\bfor galaxy\b|mobile platform|\(?(tm|r)\)|[™®]"
)

# Names that were expected but never given to a chip, with the chip that came instead.
_INVENTED: Mapping[str, str] = MappingProxyType(
    {
        "Snapdragon 8 Gen 4": "SM8750",
        "Snapdragon 8 Elite Gen 2": "SM8850",
        "Snapdragon 8 Elite 2": "SM8850",
    }
)
# Names the public tables give to different chips.
_AMBIGUOUS: Mapping[str, tuple[tuple[str, str], ...]] = MappingProxyType(
    {
        "Snapdragon 8 Gen 5": (
            ("SM8845", "so named in an ExecuTorch issue"),
            ("SM8850", "so named in LiteRT's README; AI Hub calls it Snapdragon 8 Elite Gen 5"),
        ),
    }
)


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
        note: what a reader of these facts should know, such as sources that contradict each other.
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
    note: str | None = None


@cache
def known_socs() -> tuple[Soc, ...]:
    """Return every chip of the packaged table, in its order.

    Source: `soc_table.csv` names its sources in its first lines.
    """
    text = resources.files("pytest_devicelab.matrix").joinpath("soc_table.csv").read_text("utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return tuple(_soc_of_row(row) for row in csv.DictReader(lines))


def _soc_of_row(row: Mapping[str, str]) -> Soc:
    def number(key: str) -> int | None:
        return int(row[key]) if row[key] else None

    return Soc(
        name=row["name"],
        manufacturer=row["manufacturer"] or None,
        marketing=row["marketing"] or None,
        hexagon=row["hexagon"] or None,
        has_hexagon=row["has_hexagon"] == "yes",
        qnn_id=number("qnn_id"),
        vtcm_mb=number("vtcm_mb"),
        htp_fp16={"yes": True, "no": False, "": None}[row["htp_fp16"]],
        platform=row["platform"] or None,
        note=row["note"] or None,
    )


def find_soc(name: str) -> tuple[Soc, str | None]:
    """Return the chip a person means, and a remark when the name is not one of its own.

    Args:
        name: part number (`SM8650`, `sm8650-ac`), name on the box (`Snapdragon 8 Gen 3`, `8 Gen 3`), or
            a name people use for a chip that was released under another (`Snapdragon 8 Gen 4`).

    Raises:
        UserError: no chip has that name (`evidence["nearest"]`), or the sources give it to more than
            one (`evidence["candidates"]`): which is meant is then for the user to say.
    """
    soc = _by_part_number(name)
    if soc is not None:
        graded = name.strip().casefold() != soc.name.casefold()
        return soc, f"{show(name)} is a speed grade of {soc.name}: its facts are used" if graded else None
    wanted = _comparable(name)
    for called, candidates in _AMBIGUOUS.items():
        if wanted == _comparable(called):
            raise _ambiguity(name, candidates)
    for soc in known_socs():
        if soc.marketing is not None and wanted == _comparable(soc.marketing):
            return soc, None
    for called, part in _INVENTED.items():
        if wanted == _comparable(called):
            soc = _require(part)
            return soc, f"no chip was released as {show(name)}: taken for {soc.name} ({soc.marketing})"
    names = [name for soc in known_socs() for name in (soc.name, soc.marketing) if name]
    close = nearest(name, names)
    raise UserError(
        f"unknown soc {show(name)}",
        why="nothing is known of a chip of that name",
        fix=f"did you mean {' or '.join(close)}?" if close else "give the part number, such as SM8650",
        nearest=close,
    )


def soc_by_qnn_id(qnn_id: int) -> tuple[Soc, ...]:
    """Return the chips that have this id (`soc_model`) in the QNN SDK; several may share one."""
    return tuple(soc for soc in known_socs() if soc.qnn_id == qnn_id)


def soc_from_properties(properties: Mapping[str, str]) -> Soc | None:
    """Return the chip a device says it has, or None when it does not say, or says one nothing is known of.

    `ro.soc.model` decides where it is set, then `ro.hardware.chipname`, then `ro.board.platform`; a stronger
    property that names an unknown chip is not overruled by a weaker one. `ro.hardware=qcom` says nothing.

    Args:
        properties: Android properties by name; they can be odd or spoofed.
    """
    for key in ("ro.soc.model", "ro.hardware.chipname"):
        value = properties.get(key, "").strip()
        if value:
            return _by_part_number(value)
    platform = properties.get("ro.board.platform", "").strip().casefold()
    for soc in known_socs():
        if soc.platform is not None and soc.platform == platform:
            return replace(
                soc, note=f"known only by ro.board.platform={platform}, which sibling chips may share"
            )
    return None


def _by_part_number(name: str) -> Soc | None:
    wanted = name.strip()
    grade = _SPEED_GRADE.fullmatch(wanted)
    part = (grade["part"] if grade else wanted).casefold()
    return next((soc for soc in known_socs() if soc.name.casefold() == part), None)


def _require(part: str) -> Soc:
    return next(soc for soc in known_socs() if soc.name == part)


def _comparable(name: str) -> str:
    """Return a name as it is compared: no case, spaces, brands; `8+ Gen 1` stays apart from `8 Gen 1`."""
    plain = _FILLER.sub(" ", name.casefold()).replace("+", "plus")
    return _NOT_IN_A_NAME.sub("", plain)


def _ambiguity(name: str, candidates: tuple[tuple[str, str], ...]) -> UserError:
    return UserError(
        f"soc {show(name)} may be more than one chip",
        why="; ".join(f"{part}: {source}" for part, source in candidates),
        fix="say which: " + " or ".join(f"soc: {part}" for part, _ in candidates),
        candidates=tuple(_require(part) for part, _ in candidates),
    )
