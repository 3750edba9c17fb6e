"""Every error this project raises on purpose: what happened, why, and how to fix it."""

from __future__ import annotations

from typing import Any


def visible(text: str, *, keep: str = "") -> str:
    r"""Replace what does not print by its escape, so that no device can steer a terminal or a reader's eye.

    Control characters, terminal escapes, direction marks and lone surrogates become `\x1b`, `\u202e`.

    Args:
        text: from a device, a log or a model.
        keep: unprintable characters to leave as they are, such as a newline.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


class DevicelabError(Exception):
    """Base of all errors raised on purpose.

    Args:
        what: one line: the thing that failed, with the device, model or file it concerns.
        why: the cause as observed, with the figures that show it.
        fix: what the reader can do about it.
        **evidence: the values behind the message, kept as `error.evidence`.
    """

    def __init__(self, what: str, *, why: str = "", fix: str = "", **evidence: Any) -> None:
        # What a device, a model or the cloud said may be quoted in any of them, and errors are written to records.
        self.what, self.why, self.fix = (visible(text, keep="\n\t") for text in (what, why, fix))
        self.evidence = evidence
        super().__init__(self.render())

    @property
    def brief(self) -> str:
        """What happened and why, for a message about what came of it."""
        return f"{self.what}: {self.why}" if self.why else self.what

    def render(self) -> str:
        """Return the message as `what`, then indented `why:` and `fix:` lines where known."""
        lines = [self.what]
        for label, text in (("why", self.why), ("fix", self.fix)):
            if text:
                lines.append(f"  {label}: " + text.replace("\n", "\n       "))
        return "\n".join(lines)


class UserError(DevicelabError):
    """The user's input is wrong: a matrix, a selection, a missing package. Exit status 4."""


class MatrixError(UserError):
    """The device matrix cannot be used; lists every mistake as `file:line:col`."""


class ModelError(UserError):
    """A model, or the inputs and labels beside it, cannot be used."""


class CompileRefused(DevicelabError):
    """The model does not compile for a chip: a finding about the model, not a fault of the lab.

    `evidence["ops"]` lists the refused operators as `{"op", "node", "reason"}`.
    """


class InfrastructureError(DevicelabError):
    """The lab failed, not the model: a lost device, a full disk, a dead adb. Makes a run inconclusive."""


class DeviceBusy(InfrastructureError):
    """Somebody else held a device for longer than we would wait."""


class DeviceLost(InfrastructureError):
    """The device cannot be reached, or went away while in use."""


class AdbServerLost(DeviceLost):
    """No adb server answers where the lab's is: all of its devices are out of reach for the moment."""


class DeviceAbsent(DeviceLost):
    """No adb server lists the device: it is not plugged in, which says nothing against it."""


class Quarantined(DeviceLost):
    """The device is kept out for a while, because it could not be recovered; `why` quotes the first cause."""


class LeaseLost(InfrastructureError):
    """The device is not ours any more: an operator released it, or we were stopped and somebody else took it."""


class DeadlineExceeded(InfrastructureError):
    """A call to a device took longer than the deadline we set for it."""


class TransferError(InfrastructureError):
    """A push or pull did not arrive whole."""


class SessionEnded(InfrastructureError):
    """The session ended while a run elsewhere was waited for: it leaves no record, and a resumed session asks again."""


class Unfit(InfrastructureError):
    """The device is too hot, too empty or too full to be used: it answers, and neither a reset nor a retry helps."""


class Throttled(InfrastructureError):
    """Heat slowed the device down during a run, which therefore does not count."""


class HostFailed(InfrastructureError):
    """This host cannot keep what a run leaves: a disk is full, or a folder cannot be written to. No device's fault."""


class OutputIncomplete(TransferError):
    """The runner ended well and its output is missing or has the wrong size: never tried again into green."""


class TensorMismatch(DevicelabError):
    """Two tensors cannot be compared: shape or dtype differ, or there is nothing to compare."""


class TensorFileError(TensorMismatch):
    """A tensor file cannot be compared: it is damaged, cut off, holds no numbers, or nobody says what it holds.

    `evidence` has `file`, `tensor`, `expected` and `found`.
    """


class VerdictFailed(DevicelabError, AssertionError):
    """A verdict of `fail`: the evidence shows that the model does not do what it must. JUnit `<failure>`."""


class Flaky(DevicelabError):
    """A verdict of `flaky`: it came out differently when it was tried again. Never green; JUnit `<error>`."""


class Inconclusive(DevicelabError):
    """A verdict of `inconclusive`: the evidence is missing or does not count. Never green; JUnit `<error>`."""
