"""Two tensor files, or two folders of them, compared tensor by tensor in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_devicelab.audit.tensor_files.folder import open_file, tensor_files
from pytest_devicelab.audit.tensor_files.source import TensorSource, TensorSpec, unreadable
from pytest_devicelab.errors import TensorMismatch
from pytest_devicelab.tensors.accumulator import DiffAccumulator
from pytest_devicelab.tensors.diff import TensorDiff

_CHUNK_ELEMENTS = 1 << 19


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorComparison:
    """Two tensors of one name."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    diff: TensorDiff


@dataclass(frozen=True, slots=True, kw_only=True)
class NotComparable:
    """A tensor, or a file, of which nothing can be said; `what`, `why` and `fix` as in the error."""

    name: str
    what: str
    why: str
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDiff:
    """What two files or folders have in common, and what not."""

    tensors: tuple[TensorComparison, ...]
    only_in_reference: tuple[str, ...]
    only_in_observed: tuple[str, ...]
    not_comparable: tuple[NotComparable, ...]

    @property
    def comparable(self) -> bool:
        """Whether every tensor both sides have was compared, and there was one: nothing is never equal."""
        return bool(self.tensors) and not self.not_comparable

    @property
    def identical(self) -> bool:
        """Whether both sides have the same tensors and no bit differs."""
        missing = self.only_in_reference or self.only_in_observed
        return self.comparable and not missing and all(each.diff for each in self.tensors)


def diff_files(
    reference: Path, observed: Path, *, spec: TensorSpec, lsb: float | None = None, fast: bool | None = None
) -> FileDiff:
    """Compare two tensor files by the names in them, or two folders by file and name.

    Args:
        reference: a file or folder.
        observed: the same kind of thing.
        spec: of raw files that have no description beside them.
        lsb: one quantization step of float tensors; None for what the files say, if anything.
        fast: whether to use the compiled kernels; None for when they are installed and worth loading.

    Raises:
        TensorFileError: a file is unreadable as a whole.
        TensorMismatch: one is a file and the other a folder.
    """
    for path in (reference, observed):
        if not path.exists():
            raise unreadable(path, None, "it does not exist", fix="check the path", expected="a file")
    if reference.is_dir() != observed.is_dir():
        raise TensorMismatch(
            f"{reference} and {observed} cannot be compared",
            why="one is a folder and the other is not",
            fix="name two files or two folders",
        )
    if reference.is_dir():
        return _diff_folders(reference, observed, spec, lsb, fast)
    sides = (
        _named(open_file(reference, spec), reference.stem),
        _named(open_file(observed, spec), observed.stem),
    )
    if all(len(side) == 1 for side in sides) and any(
        source.name is None for side in sides for source in side.values()
    ):
        # A tensor without a name is meant for the other file's only one.
        sides = sides[0], {next(iter(sides[0])): next(iter(sides[1].values()))}
    return _diff_named(*sides, lsb, fast)


def _diff_folders(
    reference: Path, observed: Path, spec: TensorSpec, lsb: float | None, fast: bool | None
) -> FileDiff:
    files = tensor_files(reference), tensor_files(observed)
    parts: list[FileDiff] = []
    for name in files[0]:
        if name not in files[1]:
            continue
        try:
            sides = [_named(open_file(side[name], spec), name, inside=True) for side in files]
        except TensorMismatch as error:
            parts.append(_nothing(not_comparable=(_refused(name, error),)))
        else:
            parts.append(_diff_named(sides[0], sides[1], lsb, fast))
    return FileDiff(
        tensors=tuple(each for part in parts for each in part.tensors),
        only_in_reference=(
            *(name for name in files[0] if name not in files[1]),
            *(each for part in parts for each in part.only_in_reference),
        ),
        only_in_observed=(
            *(name for name in files[1] if name not in files[0]),
            *(each for part in parts for each in part.only_in_observed),
        ),
        not_comparable=tuple(each for part in parts for each in part.not_comparable),
    )


def _named(
    sources: tuple[TensorSource, ...], file: str, *, inside: bool = False
) -> Mapping[str, TensorSource]:
    """Return the tensors by name: that of the file where they have none, or, `inside` a folder, with it."""
    if inside:
        return {file if each.name is None else f"{file}:{each.name}": each for each in sources}
    return {file if each.name is None else each.name: each for each in sources}


def _diff_named(
    reference: Mapping[str, TensorSource],
    observed: Mapping[str, TensorSource],
    lsb: float | None,
    fast: bool | None,
) -> FileDiff:
    tensors: list[TensorComparison] = []
    refused: list[NotComparable] = []
    for name, source in reference.items():
        if name not in observed:
            continue
        try:
            diff = diff_sources(source, observed[name], lsb=lsb, fast=fast)
        except TensorMismatch as error:
            refused.append(_refused(name, error))
        else:
            tensors.append(
                TensorComparison(name=name, dtype=source.number.name, shape=source.shape, diff=diff)
            )
    return FileDiff(
        tensors=tuple(tensors),
        only_in_reference=tuple(name for name in reference if name not in observed),
        only_in_observed=tuple(name for name in observed if name not in reference),
        not_comparable=tuple(refused),
    )


def diff_sources(
    reference: TensorSource, observed: TensorSource, *, lsb: float | None = None, fast: bool | None = None
) -> TensorDiff:
    """Compare two tensors in files, chunk by chunk.

    Args:
        reference: the golden one.
        observed: of the same format and shape.
        lsb: one quantization step of float elements; None for the reference's own. Integers count in steps.
        fast: as in `diff_files`.

    Raises:
        TensorMismatch: format or shape differ, or there is no element.
        TensorFileError: a file ends early or is damaged.
    """
    expected, found = (f"{each.number.name} {list(each.shape)}" for each in (reference, observed))
    if expected != found:
        raise TensorMismatch(
            f"tensor {reference.name or reference.file.name} cannot be compared: expected {expected}, found {found}",
            why=f"expected {expected} as in {reference.file}, found {found} in {observed.file}",
            fix="compare the same output of the same model",
            file=str(observed.file),
            tensor=observed.name,
            expected=expected,
            found=found,
        )
    step = {"float": lsb or reference.scale, "bool": None}.get(reference.number.kind, 1.0)
    accumulator = DiffAccumulator(reference.number, reference.shape, lsb=step, fast=fast)
    whole = 2 * accumulator.granule
    elements = max(1, _CHUNK_ELEMENTS // whole) * whole
    for left, right in zip(reference.chunks(elements), observed.chunks(elements), strict=True):
        accumulator.feed(left, right)
    return accumulator.finish()


def _refused(name: str, error: TensorMismatch) -> NotComparable:
    return NotComparable(name=name, what=error.what, why=error.why, fix=error.fix)


def _nothing(*, not_comparable: tuple[NotComparable, ...]) -> FileDiff:
    return FileDiff(tensors=(), only_in_reference=(), only_in_observed=(), not_comparable=not_comparable)
