"""When pytest began on a session and when it ended: once, and once more each time the session was resumed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pytest_devicelab.evidence import codec
from pytest_devicelab.evidence.atomic import whole_file

SCHEMA = "devicelab.start/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start of pytest on a session.

    Attributes:
        number: 1 for the first; the `attempt` of the verdicts given in it.
        started: UTC, ISO 8601; so is `ended`, None while it goes on.
        interrupted: whether it never came to its end: `ended` is then the last sign of life in the folder.
    """

    number: int
    started: str
    ended: str | None = None
    interrupted: bool = False


def begin_start(root: Path, now: datetime) -> Start:
    """Note in a session's folder that pytest begins; of starts that never ended, note when they were last alive.

    The caller holds the session.

    Raises:
        InfrastructureError: a note is damaged, or cannot be written.
    """
    before = read_starts(root)
    for start in before:
        if start.ended is None:
            _write(root, replace(start, ended=_last_sign(root), interrupted=True))
    begun = Start(number=len(before) + 1, started=_utc(now))
    _write(root, begun)
    return begun


def end_start(root: Path, number: int, now: datetime) -> None:
    """Note in a session's folder that pytest came to its end."""
    start = next(start for start in read_starts(root) if start.number == number)
    _write(root, replace(start, ended=_utc(now)))


def read_starts(root: Path) -> tuple[Start, ...]:
    """Return the starts of a session, the first one first.

    Raises:
        InfrastructureError: a note is damaged, missing, or of another version.
    """
    paths = sorted((root / "starts").glob("[!.]*.json"))
    starts = tuple(_read(path) for path in paths)
    for number, (path, start) in enumerate(zip(paths, starts, strict=True), start=1):
        if start.number != number:
            raise codec.damaged(
                str(path), f"start {number} was expected, found {start.number}", field="number"
            )
    return starts


def _read(path: Path) -> Start:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise codec.damaged(str(path), f"it cannot be read: {error}") from None
    return codec.decode(Start, codec.parse(raw, file=str(path), schema=SCHEMA), file=str(path))


def _write(root: Path, start: Start) -> None:
    with whole_file(root / "starts" / f"{start.number:06d}.json") as file:
        file.write(codec.dump({"schema": SCHEMA, **codec.encode(start)}))


def _last_sign(root: Path) -> str:
    """Return when anything in the folder last changed. Locks are left out: to look at them may touch them."""
    times = [path.lstat().st_mtime for path in _signs(root)]
    return _utc(datetime.fromtimestamp(max(times), UTC))


def _signs(root: Path) -> Iterator[Path]:
    yield from (path for name in ("starts", "verdicts", "arrays") for path in (root / name).glob("*"))
    yield from (root / "runs").glob("*/*")
    yield from root.glob("progress.log")


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
