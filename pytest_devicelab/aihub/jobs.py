"""Wait for a job to end, within our deadline: the client's own wait knows none, and raises nothing when a job fails."""

from __future__ import annotations

from collections.abc import Callable

from pytest_devicelab.aihub.edge import HubEdge
from pytest_devicelab.aihub.ledger import Patience, patiently
from pytest_devicelab.aihub.messages import HubJob, JobKind
from pytest_devicelab.aihub.outcome import Deadline


def await_job(
    kind: JobKind, job_id: str, edge: HubEdge, deadline: Deadline, wait: Patience, say: Callable[[str], None]
) -> HubJob:
    """Return a job that is done or failed; each new state is said.

    Raises:
        InfrastructureError: AI Hub cannot be asked, or the deadline is over.
    """
    pause_s, told = wait.first_s, ""
    while True:
        job = patiently(lambda: edge.job(job_id, deadline), deadline, wait)
        if job.state != told:
            say(f"{kind} job {job_id} is {job.state}")
            told = job.state
        if job.state in ("done", "failed"):
            if job.queue_s is not None:
                say(f"{kind} job {job_id} queued {job.queue_s:g} s")
            return job
        wait.sleep(min(pause_s, deadline.left_s))
        deadline.require(f"{kind} job {job_id}, which is {job.state},")
        pause_s = min(1.5 * pause_s, wait.most_s)
