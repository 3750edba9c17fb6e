"""The plugin pytest loads: options, the session's life from matrix to report, and what an outcome looks like.

Nothing but pytest and the standard library is imported here at the top: a plugin that is installed but not
used must cost a start of pytest next to nothing.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_devicelab import fixtures, parametrize
from pytest_devicelab.errors import (
    DevicelabError,
    Flaky,
    Inconclusive,
    InfrastructureError,
    UserError,
    VerdictFailed,
)
from pytest_devicelab.state import STATE, State

if TYPE_CHECKING:
    from pytest_devicelab.state import State

SUITE = Path(__file__).with_name("suite.py")
_INCONCLUSIVE, _FLAKY = "inconclusive", "flaky"
_SHOWN = {_INCONCLUSIVE: ("I", {"yellow": True}), _FLAKY: ("~", {"purple": True})}


class _SuiteModule(pytest.Module):
    """The standard suite. What the user's own tests are called (`python_functions`) must not make it vanish.

    Attributes:
        needless: functions that would look at nothing.
    """

    needless: tuple[str, ...] = ()

    def funcnamefilter(self, name: str) -> bool:
        """Say whether a function is one of the suite's tests."""
        return name.startswith("test_") and name not in self.needless


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add our options and ini settings."""
    group = parser.getgroup("devicelab", "run models on a matrix of devices")
    group.addoption(
        "--devices", metavar="MATRIX.yaml", help="device matrix: run the standard suite on its devices"
    )
    group.addoption(
        "--devicelab-select",
        metavar="EXPR",
        help="only the devices for which EXPR holds, such as 'soc=SM8650' or 'hexagon>=V73,kind=virtual'",
    )
    group.addoption(
        "--devicelab-reports", metavar="DIR", help="folder for sessions (default: reports in the rootdir)"
    )
    group.addoption(
        "--devicelab-resume",
        metavar="SESSION",
        help="go on with a session that was interrupted, or whose lab failed: its folder, its id, or `latest`; with `=`",
    )
    group.addoption(
        "--devicelab-suite",
        choices=("on", "off"),
        default="on",
        help="whether the standard suite runs for the models of the matrix (default: on)",
    )
    parser.addini("devicelab_reports", "folder for sessions, relative to the rootdir", default="reports")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Read the matrix; with one, every mistake a user can make is found before anything starts."""
    config.pluginmanager.register(fixtures, "devicelab-fixtures")
    config.pluginmanager.register(parametrize, "devicelab-parametrize")
    if config.getoption("devices") is None:
        for option, does in (("select", "chooses from a matrix"), ("resume", "goes on with a matrix")):
            if config.getoption(f"devicelab_{option}") is not None:
                raise pytest.UsageError(f"--devicelab-{option} {does}: give one with --devices=MATRIX.yaml")
        return
    from pytest_devicelab.state import State

    try:
        config.stash[STATE] = State.from_config(config)
    except UserError as error:
        raise _usage_error(error) from None
    if config.pluginmanager.hasplugin("xdist"):
        from pytest_devicelab.xdist import XdistHooks

        config.pluginmanager.register(XdistHooks(config.stash[STATE].durations()), "devicelab-xdist")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Bring the lab up, before xdist starts workers that need its address."""
    state = session.config.stash.get(STATE, None)
    if state is None or session.config.option.collectonly:
        return
    try:
        state.start()
    except DevicelabError as error:
        state.close()
        raise _usage_error(error) from None


def _usage_error(error: DevicelabError) -> pytest.UsageError:
    from pytest_devicelab.report.phrases import visible

    # Names in a model or a matrix must not steer the terminal.
    return pytest.UsageError(visible(str(error), keep="\n"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add the standard suite to whatever was collected, so that -k, -m and sharding apply to it too."""
    state = config.stash.get(STATE, None)
    if state is None or config.getoption("devicelab_suite") == "off":
        return
    from pytest_devicelab import suite

    module = _SuiteModule.from_parent(session, path=SUITE, name="devicelab", nodeid="devicelab")
    module.obj = suite
    module.needless = _needless(state)
    items.extend(session.genitems(module))


def _needless(state: State) -> tuple[str, ...]:
    """Name the tests of the suite that have nothing to look at, and would be inconclusive or skipped every time."""
    matrix = state.matrix
    return (
        *(("test_agreement",) if len(state.devices) < 2 else ()),  # one device has nothing to agree with
        *(("test_network",) if not matrix.networks else ()),
        *(("test_measurements",) if not matrix.measured else ()),
    )


def pytest_runtestloop(session: pytest.Session) -> None:
    """Have the suite's first runs under way when its first test asks for one."""
    state = session.config.stash.get(STATE, None)
    if state is not None and not session.config.option.collectonly and not session.testsfailed:
        state.prefetch(session.items)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say in plain words what a verdict found, and keep `inconclusive` apart from `failed`."""
    report = yield
    error = call.excinfo.value if call.excinfo is not None else None
    if isinstance(error, Inconclusive | Flaky | InfrastructureError | UserError):
        # An xfail mark expects a finding, and this is none.
        vars(report).pop("wasxfail", None)
        report.outcome = "failed"
    if isinstance(error, Inconclusive | Flaky | InfrastructureError):
        # Plain data on the report survives the way from a worker. JUnit tells <error> from <failure> by the
        # phase alone, and a call that could not come to a verdict is an error.
        vars(report)["devicelab"] = _FLAKY if isinstance(error, Flaky) else _INCONCLUSIVE
        if report.when == "call":
            report.when = "setup"
    if isinstance(error, Inconclusive | Flaky | InfrastructureError | VerdictFailed | UserError):
        from pytest_devicelab.report.phrases import visible

        # What, why and fix say it all: no traceback. What a device said in there must not steer the terminal.
        report.longrepr = visible(str(error), keep="\n")
    return report


def pytest_report_teststatus(
    report: pytest.CollectReport | pytest.TestReport,
) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
    """Show an inconclusive or flaky test as such, not as an error of the test's code."""
    word = getattr(report, "devicelab", None)
    if word not in _SHOWN:
        return None
    letter, colour = _SHOWN[word]
    return word, letter, (word.upper(), colour)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say which matrix is used and how many devices were selected."""
    state = config.stash.get(STATE, None)
    return state.header() if state is not None else []


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Bring the lab down and write the report, when xdist's workers are done with both."""
    state = session.config.stash.get(STATE, None)
    if state is not None and not state.finish(exitstatus) and not session.exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print flaky and inconclusive tests with their reasons, then the one-screen summary."""
    state = config.stash.get(STATE, None)
    for word, (_, colour) in _SHOWN.items():
        for report in terminalreporter.getreports(word):
            terminalreporter.write_sep("_", f"{word.upper()} {report.nodeid}", **colour)
            if config.option.tbstyle != "no":
                terminalreporter.write_line(str(report.longrepr))
    if state is not None:
        state.summarize(terminalreporter)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Bring the lab down also when the session never came to its end."""
    state: State | None = config.stash.get(STATE, None)
    if state is not None:
        state.close()
