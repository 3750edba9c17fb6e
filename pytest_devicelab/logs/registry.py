"""The dialects there are: those of this project, and those installed packages add."""

from __future__ import annotations

from importlib.metadata import entry_points

from pytest_devicelab.errors import UserError
from pytest_devicelab.logs.dialect import Dialect
from pytest_devicelab.logs.executorch import EXECUTORCH
from pytest_devicelab.logs.kernel import KernelDialect
from pytest_devicelab.logs.lost import LOST
from pytest_devicelab.logs.nnapi import NnapiDialect
from pytest_devicelab.logs.ort import OrtDialect
from pytest_devicelab.logs.phrases import PhrasesDialect
from pytest_devicelab.logs.qnn import QnnDialect
from pytest_devicelab.logs.tflite import TfliteDialect
from pytest_devicelab.logs.thermal import ThermalDialect

GROUP = "devicelab.log_dialects"

DIALECTS: tuple[Dialect, ...] = (
    QnnDialect(),
    OrtDialect(),
    TfliteDialect(),
    NnapiDialect(),
    EXECUTORCH,
    KernelDialect(),
    ThermalDialect(),
    PhrasesDialect(),
    LOST,
)


def find_dialects() -> tuple[Dialect, ...]:
    """Return this project's dialects and those of installed packages, by their entry points.

    Raises:
        UserError: an entry point does not load, or names no dialect.
    """
    found: list[Dialect] = list(DIALECTS)
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            dialect = entry.load()
        except Exception as error:  # whatever a stranger's module raises, say whose it is
            raise UserError(
                f"log dialect {entry.name} ({entry.value}) cannot be loaded",
                why=f"{type(error).__name__}: {error}",
                fix=f"repair or uninstall the package that declares it in {GROUP}",
            ) from error
        found.append(_checked(dialect, entry.name, entry.value, taken={known.name for known in found}))
    return tuple(found)


def _checked(dialect: Dialect, name: str, value: str, *, taken: set[str]) -> Dialect:
    wrong = ""
    if not all(hasattr(dialect, attribute) for attribute in ("name", "triggers", "reader")):
        wrong = f"{type(dialect).__name__} has not all of name, triggers and reader"
    elif dialect.name in taken:
        wrong = f"there is another dialect called {dialect.name!r}"
    elif not dialect.triggers or any(not trigger.literal for trigger in dialect.triggers):
        wrong = "it has no trigger, or an empty one, and would never be given a line"
    if wrong:
        raise UserError(
            f"log dialect {name} ({value}) cannot be used",
            why=wrong,
            fix="name an object like pytest_devicelab.logs.dialect.RuleDialect in the entry point",
        )
    return dialect
