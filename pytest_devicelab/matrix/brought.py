"""What installed packages bring as entry points: loaded and looked at here, so that a broken one is named.

They are typed Protocols found by name and not pytest's hooks: commands, lab hosts and runners on virtual devices need
them too, and no pytest runs there.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points

from pytest_devicelab.errors import DevicelabError, UserError


def load_brought(group: str, name: str) -> Callable[..., object] | None:
    """Return the callable an installed package brings under a name; None where no package does.

    Raises:
        UserError: it does not load or cannot be called, or two packages bring the same name.
    """
    entries = {entry.value: entry for entry in entry_points(group=group, name=name)}
    if not entries:
        return None
    if len(entries) > 1:
        raise _unusable(group, name, f"it is brought more than once: {' and '.join(sorted(entries))}")
    ((value, entry),) = entries.items()
    found = calling(entry.load, group, name)
    if not callable(found):
        raise _unusable(group, name, f"{value} is of type {type(found).__name__}, which cannot be called")
    return found


def calling(make: Callable[[], object], group: str, name: str) -> object:
    """Return what a package's code returns.

    Raises:
        UserError: whatever it raises becomes one, so that the user learns whose it is; errors of ours stay as they are.
    """
    try:
        return make()
    except DevicelabError:
        raise
    except Exception as error:
        raise _unusable(group, name, f"{type(error).__name__}: {error}"[:500]) from error


def require_members(found: object, protocol: type, group: str, name: str) -> None:
    """Require all that a Protocol names.

    Raises:
        UserError: something is missing.
    """
    named = {*getattr(protocol, "__annotations__", {}), *vars(protocol)}
    missing = sorted(each for each in named if not each.startswith("_") and not hasattr(found, each))
    if missing:
        raise _unusable(group, name, f"{type(found).__name__} lacks {', '.join(missing)}")


def _unusable(group: str, name: str, why: str) -> UserError:
    return UserError(
        f"{name!r}, an entry point of {group!r}, cannot be used",
        why=why,
        fix="repair or remove the package that brings it",
    )
