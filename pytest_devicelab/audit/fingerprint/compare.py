"""Lay two fingerprints side by side, and find the known chips one is nearest to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from pytest_devicelab.audit.fingerprint.fingerprint import Answer, Fingerprint, from_json

_SILENT = ("not_on_npu", "unstable")


@dataclass(frozen=True, slots=True, kw_only=True)
class FingerprintDiff:
    """Two fingerprints, probe by probe. Answers are (reference, observed).

    Attributes:
        equal: probes with the same bits, or that neither chip takes.
        different: probes with other bits, or that only one chip takes.
        not_compared: name -> why it says nothing, although one of them answered.
        silent: probes that neither answers in a way that counts: not on the NPU, or other bits each time.
    """

    reference: Fingerprint
    observed: Fingerprint
    equal: tuple[str, ...]
    different: tuple[tuple[Answer, Answer], ...]
    not_compared: Mapping[str, str]
    silent: tuple[str, ...]

    @property
    def compared(self) -> int:
        """How many probes were compared."""
        return len(self.equal) + len(self.different)

    def sentence(self) -> str:
        """Say it in one sentence."""
        kinds = tuple(
            "simulator" if one.device.simulated else "silicon" for one in (self.observed, self.reference)
        )
        who = [one.device.hexagon or one.device.id for one in (self.observed, self.reference)]
        told = (
            f"{who[0]} {kinds[0]} equals {who[1]} {kinds[1]} on {len(self.equal)} of {self.compared} probes"
        )
        if self.different:
            told += f"; {len(self.different)} differ"
        if left := len(self.not_compared) + len(self.silent):
            told += f"; {left} could not be compared"
        return told

    @property
    def same(self) -> bool | None:
        """Whether they are the same; None when too little was compared to say so."""
        if self.different:
            return False
        return True if self.equal and not self.not_compared else None


def compare(reference: Fingerprint, observed: Fingerprint) -> FingerprintDiff:
    """Compare two fingerprints by the bits of their outputs; answers in words play no part."""
    known = {answer.name: answer for answer in reference.probes}
    found = {answer.name: answer for answer in observed.probes}
    equal, different, not_compared, silent = [], [], {}, []
    for name in dict.fromkeys((*known, *found)):
        if name not in known or name not in found:
            not_compared[name] = "only one of them was asked"
        elif known[name].status == found[name].status and known[name].status in _SILENT:
            silent.append(name)
        elif reason := _incomparable(known[name], found[name]):
            not_compared[name] = reason
        elif _outcome(known[name]) == _outcome(found[name]):
            equal.append(name)
        else:
            different.append((known[name], found[name]))
    return FingerprintDiff(
        reference=reference,
        observed=observed,
        equal=tuple(equal),
        different=tuple(different),
        not_compared=not_compared,
        silent=tuple(silent),
    )


def _incomparable(reference: Answer, observed: Answer) -> str:
    if reference.asked != observed.asked:
        return "they were asked by different versions of the probe"
    if "not_on_npu" in (reference.status, observed.status):
        return "on one of them it did not run on the NPU"
    return ""


def _outcome(answer: Answer) -> str:
    """Return what is compared: the bits, or that there are none to rely on."""
    return answer.status if answer.status in ("refused", "unstable") else answer.sha256


@cache
def known_fingerprints() -> tuple[Fingerprint, ...]:
    """Return the fingerprints this package carries: one of each Hexagon, from Qualcomm's HTP simulator."""
    folder = resources.files("pytest_devicelab.audit") / "data"
    files = sorted(
        (entry for entry in folder.iterdir() if entry.name.startswith("fingerprint_")), key=lambda f: f.name
    )
    return tuple(from_json(file.read_bytes(), file=file.name) for file in files)


def nearest(observed: Fingerprint, known: Iterable[Fingerprint]) -> tuple[FingerprintDiff, ...]:
    """Return the comparisons with the known chips that part least from this one, several when they tie.

    Empty when nothing could be compared with any of them.
    """
    diffs = [diff for diff in (compare(reference, observed) for reference in known) if diff.compared]
    if not diffs:
        return ()
    shares = [len(diff.different) / diff.compared for diff in diffs]
    return tuple(diff for diff, share in zip(diffs, shares, strict=True) if share == min(shares))
