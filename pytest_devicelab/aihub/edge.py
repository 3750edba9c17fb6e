"""The one module that talks to AI Hub, through the REST layer of the qai_hub client.

Every call runs in a thread of its own: the client retries and waits for longer than we do, so a call is given up
when its time is over; and its frames, whose locals hold the Authorization header, end in that thread. What comes
out is a value, or an error made anew: no traceback of a test can show a header, not even with `--showlocals`.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from pytest_devicelab.aihub.account import Account
from pytest_devicelab.aihub.messages import HubDevice, HubJob, Layer, Profile, Submission, read_job
from pytest_devicelab.aihub.outcome import Deadline, HubRefused, translate
from pytest_devicelab.errors import InfrastructureError, UserError
from pytest_devicelab.runtimes.inputs import Arrays

T = TypeVar("T")

_CALL_S = 60.0
_PAGE = 50
_MAX_LOG_BYTES = 64 << 20


def require_client() -> None:
    """Raise UserError when qai_hub is not installed."""
    try:
        import qai_hub.public_rest_api  # noqa: F401  (the first use; whether it is there is the question)
    except ImportError as error:
        raise UserError(
            "devices of kind aihub need the qai_hub client, which is not installed",
            why=str(error),
            fix="pip install 'pytest-devicelab[aihub]'",
        ) from None


class HubEdge:
    """Calls to AI Hub, each within a deadline.

    Raises:
        InfrastructureError: every method does, with one of the types of `outcome`.
    """

    def __init__(self, account: Account) -> None:
        require_client()
        self.account = account

    def check(self, deadline: Deadline) -> None:
        """Ask who we are: says at once whether AI Hub is there and takes the token."""

        def ask() -> None:
            from qai_hub import api_utils, public_api_pb2
            from qai_hub.util.session import create_session

            config = self._config()
            url = api_utils.api_url(config, "users", "auth", "user")
            # Without the client's retries, which take 46 s to notice that nobody is there.
            response = create_session(internal_retries=False).get(url, headers=api_utils.auth_header(config))
            api_utils.response_as_protobuf(response, public_api_pb2.User)

        self._call("asking whether the token is accepted", deadline, ask)

    def devices(
        self, name: str, os: str, attributes: tuple[str, ...], deadline: Deadline
    ) -> tuple[HubDevice, ...]:
        """Return every device that has this name, os (a version or interval) and attributes; empty is any."""

        def ask() -> tuple[HubDevice, ...]:
            from qai_hub import public_rest_api

            hide = self.account.hide

            listed = public_rest_api.get_device_list(self._config(), name, os, list(attributes))
            return tuple(
                HubDevice(
                    name=hide(each.name), os=hide(each.os), attributes=tuple(map(hide, each.attributes))
                )
                for each in listed.devices
            )

        return self._call("listing devices", deadline, ask)

    def upload_model(self, path: Path, name: str, deadline: Deadline) -> str:
        """Upload an .onnx file or a .bin context binary; returns its id."""

        def send() -> str:
            from qai_hub import public_api_pb2, public_rest_api

            kinds = {
                ".onnx": public_api_pb2.MODEL_TYPE_ONNX,
                ".bin": public_api_pb2.MODEL_TYPE_QNN_CONTEXT_BINARY,
            }
            made = public_rest_api.create_and_upload_model(
                self._config(), str(path), kinds[path.suffix], name=name, verbose=False
            )
            return _uploaded(made)

        return self._call(f"uploading {name}", deadline, send, whole=True)

    def has_model(self, model_id: str, deadline: Deadline) -> bool:
        """Say whether a model that was uploaded is still there."""

        def ask() -> bool:
            from qai_hub import public_rest_api

            return bool(public_rest_api.get_model(self._config(), model_id).model_id == model_id)

        return self._exists("looking for an uploaded model", deadline, ask)

    def upload_dataset(self, inputs: Arrays, name: str, deadline: Deadline) -> str:
        """Upload inputs `[N, ...]` as N samples `[1, ...]`; returns the dataset's id."""

        def send() -> str:
            import h5py
            from qai_hub import public_rest_api
            from qai_hub.util.dataset_entries_converters import dataset_entries_to_h5

            with TemporaryDirectory(prefix="dl-hub-") as folder:
                path = Path(folder) / "inputs.h5"
                with h5py.File(path, "w") as file:
                    samples = {
                        key: [array[index : index + 1] for index in range(len(array))]
                        for key, array in inputs.items()
                    }
                    dataset_entries_to_h5(samples, file)
                return _uploaded(
                    public_rest_api.create_and_upload_dataset(self._config(), str(path), name, verbose=False)
                )

        return self._call(f"uploading {name}", deadline, send, whole=True)

    def has_dataset(self, dataset_id: str, deadline: Deadline) -> bool:
        """Say whether a dataset is still there; AI Hub drops them after some weeks."""

        def ask() -> bool:
            import time

            from qai_hub import public_rest_api

            found = public_rest_api.get_dataset(self._config(), dataset_id)
            expires = found.expiration_time.seconds if found.HasField("expiration_time") else None
            return bool(found.dataset_id == dataset_id) and (
                expires is None or expires > time.time() + 86_400
            )

        return self._exists("looking for uploaded inputs", deadline, ask)

    def submit(self, job: Submission, deadline: Deadline) -> str:
        """Ask once for a job; returns its id.

        The client's own submit repeats a request whose answer was lost, and so makes, and charges, two jobs. Here
        a lost answer is `HubOffline`, and the caller looks for the job by its name before it asks again.
        """

        def ask() -> str:
            from qai_hub import api_utils, public_api_pb2
            from qai_hub.util.session import create_session

            config = self._config()
            response = create_session(internal_retries=False).post(
                api_utils.api_url(config, "jobs"),
                data=job.message().SerializeToString(),
                headers=api_utils.auth_header(config),
                params={} if job.kind == "inference" else {"seed_target_model": "true"},
            )
            made = api_utils.response_as_protobuf(response, public_api_pb2.CreateUpdateResponse)
            if not made.id:
                raise ValueError(made.status or "AI Hub returned no job id")
            return str(made.id)

        return self._call(f"submitting {job.name}", deadline, ask)

    def find_jobs(self, name: str, since_s: float, deadline: Deadline) -> tuple[str, ...]:
        """Return the ids of jobs of exactly that name, oldest first; not of those made before `since_s`, POSIX time."""

        def ask() -> tuple[str, ...]:
            from qai_hub import public_rest_api

            found: list[str] = []
            for offset in range(0, 100 * _PAGE, _PAGE):
                # Of any kind: an inference job that also profiles may be listed as either, and names are our own.
                page = public_rest_api.get_job_summary_list(
                    self._config(), offset=offset, limit=_PAGE
                ).job_summaries
                kinds = [(each, each.WhichOneof("job")) for each in page]
                summaries = [getattr(each, kind) for each, kind in kinds if kind is not None]
                found += [each.job_id for each in summaries if each.name == name]
                made_s = [each.creation_time.seconds for each in summaries]
                if len(page) < _PAGE or min(made_s, default=since_s) < since_s:
                    break
            return tuple(reversed(found))  # AI Hub lists the newest first

        return self._call(f"looking for job {name}", deadline, ask)

    def job(self, job_id: str, deadline: Deadline) -> HubJob:
        """Return the state of a job."""

        def ask() -> HubJob:
            from qai_hub import public_rest_api

            return read_job(public_rest_api.get_job(self._config(), job_id), self.account.hide)

        return self._call(f"asking after job {job_id}", deadline, ask)

    def outputs(self, job_id: str, target: Path, deadline: Deadline) -> bool:
        """Download the output dataset of an inference job; False when the job names none."""

        def ask() -> bool:
            from qai_hub import public_rest_api

            config = self._config()
            dataset = public_rest_api.get_job_results(config, job_id).inference_job_result.output_dataset_id
            if not dataset:
                return False
            with TemporaryDirectory(prefix="dl-hub-", dir=target.parent) as folder:
                # The client appends the suffix that the service names: the file is whatever it left there.
                public_rest_api.download_dataset(
                    config, dataset, str(Path(folder) / "outputs"), verbose=False
                )
                (found,) = Path(folder).iterdir()
                found.replace(target)
            return True

        return self._call(f"downloading the outputs of job {job_id}", deadline, ask, whole=True)

    def profile(self, job_id: str, deadline: Deadline) -> Profile | None:
        """Return the profile of an inference job, or None when it has none."""

        def ask() -> Profile | None:
            from qai_hub import public_api_pb2, public_rest_api

            result = public_rest_api.get_job_results(self._config(), job_id).inference_job_result
            if not result.HasField("detail"):
                return None
            units, hide = (
                {number: name for name, number in public_api_pb2.ComputeUnit.items()},
                self.account.hide,
            )
            layers = tuple(
                Layer(
                    name=hide(each.name),
                    op=hide(each.layer_type_name),
                    # A unit that this client does not know yet is evidence of none it knows.
                    unit=units.get(each.compute_unit, "UNSPECIFIED").removeprefix("COMPUTE_UNIT_"),
                    cycles=each.execution_cycles if each.HasField("execution_cycles") else None,
                    time_us=each.execution_time if each.HasField("execution_time") else None,
                )
                for each in result.detail.layer_details
            )
            detail = result.detail
            return Profile(
                layers=layers,
                versions={hide(tool.name): hide(tool.version) for tool in detail.tool_versions},
                inference_us=detail.execution_time,
                times_us=tuple(detail.all_execution_times),
                # 0 is what the message has where nothing was said.
                load_us=detail.cold_load_time or None,
                peak_bytes=detail.execution_memory.peak.upper or None,
            )

        return self._call(f"reading the profile of job {job_id}", deadline, ask)

    def log(self, job_id: str, artifact: int, deadline: Deadline) -> bytes:
        """Return the logs of one kind that a job left, one after another, without the token."""

        def ask() -> bytes:
            from qai_hub import api_utils, public_rest_api

            listed = public_rest_api.download_job_artifacts_info(self._config(), job_id, artifact)
            parts = []
            with TemporaryDirectory(prefix="dl-hub-") as folder:
                for number, each in enumerate(listed.artifacts):
                    # Under a name of ours: theirs may lead out of the folder.
                    path = Path(folder) / f"{number}.log"
                    api_utils.download_file(each.url, "part.log", str(path), verbose=False)
                    with path.open("rb") as file:
                        parts.append(file.read(_MAX_LOG_BYTES))
            return self.account.hide_bytes(b"".join(parts))

        return self._call(f"downloading the logs of job {job_id}", deadline, ask, whole=True)

    def download_model(self, model_id: str, target: Path, deadline: Deadline) -> None:
        """Download a model that a job made."""

        def ask() -> None:
            from qai_hub import public_rest_api

            with TemporaryDirectory(prefix="dl-hub-", dir=target.parent) as folder:
                public_rest_api.download_model(
                    self._config(), model_id, str(Path(folder) / "model"), verbose=False
                )
                (found,) = Path(folder).iterdir()
                found.replace(target)

        self._call(f"downloading model {model_id}", deadline, ask, whole=True)

    def _exists(self, what: str, deadline: Deadline, ask: Callable[[], bool]) -> bool:
        with suppress(HubRefused):  # 404: not there, or not ours
            return self._call(what, deadline, ask)
        return False

    def _config(self) -> Any:
        from qai_hub.public_rest_api import ClientConfig

        account = self.account
        return ClientConfig(
            api_token=account.token, api_url=account.api_url, web_url=account.web_url, verbose=False
        )

    def _call(self, what: str, deadline: Deadline, function: Callable[[], T], *, whole: bool = False) -> T:
        """Carry a call out in a thread; `whole` lets it take all the time that is left."""
        deadline.require(what)
        answers: queue.Queue[Mapping[str, Any]] = queue.Queue()

        def work() -> None:
            try:
                answers.put({"value": function()})
            except BaseException as error:
                answers.put({"error": translate(error, what, self.account)})

        threading.Thread(target=work, name="devicelab-aihub", daemon=True).start()
        limit_s = deadline.left_s if whole else min(_CALL_S, deadline.left_s)
        try:
            answer = answers.get(timeout=limit_s)
        except queue.Empty:
            answer = {}
        if "value" in answer:
            return answer["value"]  # type: ignore[no-any-return]  # what `function` returned
        failure: InfrastructureError | None = answer.get("error")
        if failure is None:
            from pytest_devicelab.aihub.outcome import HubOffline

            deadline.require(what)
            failure = HubOffline(f"AI Hub: {what} got no answer within {limit_s:.0f} s")
        raise failure


def _uploaded(made: Any) -> str:
    """Return the id of an upload; ValueError where AI Hub took nothing, which it says beside an id."""
    if made.status or not made.id:
        raise ValueError(made.status or "AI Hub returned no id")
    return str(made.id)
