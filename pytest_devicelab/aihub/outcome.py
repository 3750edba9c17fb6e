"""What can go wrong with a cloud, as typed errors; none of them says anything about the model."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from pytest_devicelab.aihub.account import Account
from pytest_devicelab.errors import DeadlineExceeded, InfrastructureError

_TEXT = 500
_QUOTA_WORDS = ("quota", "limit exceeded", "limit reached", "too many jobs", "credits")
# Source: JobFailureType of qai_hub's public_api_pb2: 3 is "Unsupported, but valid request", 1000 to 9999 are "Possible
# Hub issues", 10000 to 19000 "Expected errors (bogus inputs, etc.)", 20000 to 29000 "Transient errors".
_UNSUPPORTED, _UNCLASSIFIED, _EXPECTED = 3, (0, 1, 2), range(10_000, 20_000)
# Expected by AI Hub, and still none of the model's doing: the job's time was over; the cloud throttled (12100 to 12199);
# inputs or arguments, which are ours; made for another QNN or DSP version, which says who built it.
_EXPECTED_OF_THE_LAB = frozenset({12_000, *range(12_100, 12_200), 13_000, 13_001, *range(13_050, 13_100)})
_HUB_WORDS = (
    *("timed out", "timeout", "internal error", "internal failure", "try again", "cancel"),
    *("unavailable", "device was lost", "worker"),
)

Fault = Literal["model", "lab"]


class HubOffline(InfrastructureError):
    """AI Hub does not answer, or broke off; whatever was asked may have been done all the same."""


class HubUnauthorized(InfrastructureError):
    """AI Hub does not take the token."""


class HubRateLimited(InfrastructureError):
    """AI Hub asks for patience: nothing was done."""


class HubQuota(InfrastructureError):
    """The account may not make this job."""


class HubRefused(InfrastructureError):
    """AI Hub answered with an error, or with something that makes no sense."""


class HubJobFailed(InfrastructureError):
    """A job ended as failed, and not because of the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """The end of our patience, on the monotonic clock."""

    at_s: float
    whole_s: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Begin to count now."""
        return cls(at_s=time.monotonic() + seconds, whole_s=seconds)

    @property
    def left_s(self) -> float:
        """Seconds left, at least 0."""
        return max(0.0, self.at_s - time.monotonic())

    def require(self, what: str) -> None:
        """Raise `DeadlineExceeded` when no time is left."""
        if self.left_s == 0:
            raise DeadlineExceeded(
                f"AI Hub: {what} is not done after {self.whole_s:g} s",
                why="the deadline is ours: `timeout_s` of the device in the matrix",
                fix="a job that was submitted goes on: resume the session to pick it up, or raise timeout_s",
            )


def translate(error: BaseException, what: str, account: Account) -> InfrastructureError:
    """Return what an error of the client or of HTTP means, in words without the token."""
    from qai_hub.public_rest_api import APIException
    from requests.exceptions import HTTPError, RequestException, RetryError

    if isinstance(error, InfrastructureError):
        return error
    said = " ".join(account.hide(str(error)).split())[:_TEXT] or type(error).__name__
    what = f"AI Hub: {what} failed"
    status = error.status_code if isinstance(error, APIException) else None
    if status == 401:
        return HubUnauthorized(
            what,
            why="AI Hub does not accept the API token",
            fix="write a current token to the client's ini file; an entry of ~/.netrc for this host overrides it",
        )
    if status == 429 or (isinstance(error, RetryError) and "429" in said):
        return HubRateLimited(what, why=said, fix="wait, or run fewer jobs at once")
    if status == 402 or (
        (status == 403 or isinstance(error, ValueError))
        and any(word in said.casefold() for word in _QUOTA_WORDS)
    ):
        return HubQuota(what, why=said, fix="wait for running jobs to end, or ask Qualcomm for more")
    if (isinstance(error, RequestException) and not isinstance(error, HTTPError)) or (status or 0) >= 500:
        return HubOffline(what, why=said, fix="check the network, the proxy and AI Hub's status page")
    return HubRefused(what, why=f"{type(error).__name__}: {said}", fix="see what AI Hub says about it")


def whose_fault(kind: str, failure_type: int, reason: str) -> Fault:
    """Say whether a failed job is a finding about the model, or about the lab.

    Args:
        kind: `compile`, `quantize` or `inference`.
        failure_type: as the service classified it; 0 to 2 are no classification, one nobody knows yet blames no model.
        reason: its text.
    """
    if failure_type == _UNSUPPORTED or failure_type in _EXPECTED:
        return "lab" if failure_type in _EXPECTED_OF_THE_LAB else "model"
    if failure_type not in _UNCLASSIFIED or kind == "inference":
        return "lab"
    return "lab" if any(word in reason.casefold() for word in _HUB_WORDS) else "model"
