"""A loopback AI Hub for the real qai_hub client: its REST paths and messages, and trouble on demand.

All shapes come from the client's source, none from Qualcomm: what the real service does beyond them is not known here.
Its devices say `simulated:true`, and its address is not Qualcomm's, so no record of it passes for silicon.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from qai_hub import public_api_pb2 as pb

from tests.e2e.aihub_double.jobs import Account, fleet

TOKEN = "planted5ecret0token0of0the0double"
_PROTOBUF = "application/x-protobuf"


class Double:
    """A running double."""

    def __init__(self, root: Path, contexts: Path) -> None:
        self.account = Account(root=root, contexts=contexts)
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._threads = [
            threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True),
            threading.Thread(target=self.account.work, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def write_ini(self, path: Path, token: str = TOKEN) -> Path:
        path.write_text(f"[api]\napi_token = {token}\napi_url = {self.url}\nweb_url = {self.url}\n")
        path.chmod(0o600)
        return path

    def close(self) -> None:
        self.account.trouble.hold = False
        self.account.todo.put(None)
        self._server.shutdown()
        self._server.server_close()
        for thread in self._threads:
            thread.join()


@contextmanager
def serve(root: Path, contexts: Path) -> Iterator[Double]:
    double = Double(root, contexts)
    try:
        yield double
    finally:
        double.close()


def _handler(double: Double) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self._answer("GET")

        def do_POST(self) -> None:
            self._answer("POST")

        def do_PUT(self) -> None:
            self._answer("PUT")

        def do_PATCH(self) -> None:
            self._answer("PATCH")

        def _answer(self, verb: str) -> None:
            body = self._body()
            parts = urlsplit(self.path)
            double.requests.append(f"{verb} {parts.path}")
            trouble = double.account.trouble
            if trouble.drop_from and len(double.requests) >= trouble.drop_from:
                self.close_connection = True
                return
            if trouble.moods:
                if status := trouble.moods.pop(0):
                    self._send(status, b'{"detail": "not now"}', "application/json")
                self.close_connection = True
                return
            blob = parts.path.startswith("/blob/")
            if not blob and self.headers.get("Authorization") != f"token {TOKEN}":
                self._send(401, b"", "text/plain")
                return
            for pattern, answer in _ROUTES:
                if found := re.fullmatch(pattern, f"{verb} {parts.path}"):
                    query = {key: values[0] for key, values in parse_qs(parts.query).items()}
                    query["attributes"] = " ".join(parse_qs(parts.query).get("attributes", ()))
                    said = answer(double, body, query, self.headers.get("Content-Type", ""), *found.groups())
                    if said is None:
                        self.close_connection = True
                    elif isinstance(said, tuple):
                        self._send(said[0], said[1], "application/json")
                    elif isinstance(said, bytes) and verb == "GET":
                        self._blob(said)
                    elif isinstance(said, bytes):
                        self._send(200, said, "application/octet-stream")
                    else:
                        self._send(200, said.SerializeToString(), _PROTOBUF)
                    return
            self._send(404, b'{"detail": "no such thing"}', "application/json")

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            found = b""
            while size := int(self.rfile.readline(), 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found

        def _send(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"part"')
            self.end_headers()
            self.wfile.write(body)

        def _blob(self, data: bytes) -> None:
            trouble = double.account.trouble
            if trouble.truncate:
                trouble.truncate -= 1
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
                return
            self._send(200, data, "application/octet-stream")

    return Handler


def _user(double: Double, *_: Any) -> Any:
    return pb.User()


def _devices(double: Double, body: bytes, query: dict[str, str], *_: Any) -> Any:
    wanted = set(query["attributes"].split())
    found = [
        each
        for each in fleet()
        if query.get("name") in (None, "", each.name)
        and query.get("os") in (None, "", each.os)
        and wanted <= set(each.attributes)
    ]
    if double.account.trouble.echo:
        for each in found:
            each.attributes.append(f"note:{double.account.trouble.echo}")
    return pb.DeviceList(total_query_count=len(found), devices=found)


def _new_model(double: Double, *_: Any) -> Any:
    return _made(double.account.new_id("m"), double.account.trouble.upload)


def _model(double: Double, body: bytes, query: Any, kind: str, model_id: str) -> Any:
    if model_id not in double.account.models:
        return 404, b'{"detail": "no such model"}'
    return pb.Model(model_id=model_id, model_type=pb.MODEL_TYPE_ONNX)


def _model_urls(double: Double, body: bytes, query: dict[str, str], kind: str, model_id: str) -> Any:
    answer = pb.FileUploadResponse()
    answer.multipart_url.urls.append(f"{double.url}/blob/models/{model_id}")
    answer.multipart_url.upload_id = "u1"
    answer.multipart_url.max_part_size = 1 << 30
    return answer


def _put_model(double: Double, body: bytes, query: Any, kind: str, model_id: str) -> Any:
    path = double.account.root / f"{model_id}.onnx"
    path.write_bytes(body)
    double.account.models[model_id] = path
    return b""


def _model_complete(double: Double, body: bytes, query: Any, kind: str, model_id: str) -> Any:
    return _made(model_id)


def _model_download(double: Double, body: bytes, query: Any, kind: str, model_id: str) -> Any:
    answer = pb.FileDownloadResponse()
    answer.url.url = f"{double.url}/blob/models/{model_id}"
    answer.url.filename = "model.onnx"
    return answer


def _new_dataset(double: Double, *_: Any) -> Any:
    return _made(double.account.new_id("d"))


def _dataset(double: Double, body: bytes, query: Any, kind: str, dataset_id: str) -> Any:
    if dataset_id not in double.account.datasets:
        return 404, b'{"detail": "no such dataset"}'
    return pb.Dataset(dataset_id=dataset_id)


def _dataset_url(double: Double, body: bytes, query: Any, kind: str, dataset_id: str) -> Any:
    answer = pb.FileUploadResponse()
    answer.url.url = f"{double.url}/blob/datasets/{dataset_id}"
    answer.url.file_field_name = "file"
    return answer


def _post_dataset(double: Double, body: bytes, query: Any, kind: str, dataset_id: str) -> Any:
    boundary = kind.partition("boundary=")[2].encode()
    part = body.split(b"--" + boundary)[1]
    path = double.account.root / f"{dataset_id}.h5"
    path.write_bytes(part.partition(b"\r\n\r\n")[2][:-2])
    double.account.datasets[dataset_id] = path
    return b""


def _dataset_download(double: Double, body: bytes, query: Any, kind: str, dataset_id: str) -> Any:
    answer = pb.FileDownloadResponse()
    answer.url.url = f"{double.url}/blob/datasets/{dataset_id}"
    answer.url.filename = "outputs.h5"
    return answer


def _submit(double: Double, body: bytes, *_: Any) -> Any:
    account, job = double.account, pb.Job()
    job.ParseFromString(body)
    with account.guard:
        if account.trouble.rate_limit:
            account.trouble.rate_limit -= 1
            return 429, b'{"detail": "slow down"}'
        if account.trouble.quota == "403":
            return 403, b'{"detail": "job limit exceeded for this account"}'
        if account.trouble.quota == "status":
            return pb.CreateUpdateResponse(status="Quota exceeded")
        job_id = account.submit(job)
        if account.trouble.lose_submit:
            account.trouble.lose_submit -= 1
            return None
    return _made(job_id)


def _job(double: Double, body: bytes, query: Any, kind: str, job_id: str) -> Any:
    with double.account.guard:
        found = pb.Job()
        found.CopyFrom(double.account.jobs[job_id])
        return found


def _result(double: Double, body: bytes, query: Any, kind: str, job_id: str) -> Any:
    return double.account.results[job_id]


def _summaries(double: Double, body: bytes, query: dict[str, str], *_: Any) -> Any:
    found = []
    with double.account.guard:
        for job_id, job in reversed(double.account.jobs.items()):
            made = getattr(job, job.WhichOneof("job"))
            kind = job.WhichOneof("job").removesuffix("_job")
            if kind == "inference" and made.is_profiling_on:
                kind = double.account.trouble.profiled_as
            if query.get("type", kind) == kind:
                summary = pb.JobSummary()
                inner = getattr(summary, f"{kind}_job_summary")
                inner.job_id, inner.name = job_id, made.name
                inner.creation_time.CopyFrom(made.creation_time)
                found.append(summary)
    offset, limit = int(query.get("offset", 0)), int(query["limit"])
    return pb.JobSummaryList(total_query_count=len(found), job_summaries=found[offset : offset + limit])


def _artifacts(double: Double, body: bytes, query: Any, kind: str, job_id: str) -> Any:
    answer = pb.NamedArtifactDownloadURLList()
    # A name that would lead out of any folder: nobody may use it.
    answer.artifacts.add(url=f"{double.url}/blob/logs/{job_id}", filename="../../escaped.log", name="log")
    return answer


def _blob(double: Double, body: bytes, query: Any, kind: str, sort: str, name: str) -> Any:
    if sort == "logs":
        return double.account.logs[name]
    held = double.account.models if sort == "models" else double.account.datasets
    return held[name].read_bytes()


def _made(made: str, status: str = "") -> Any:
    answer = pb.CreateUpdateResponse(id=made, status=status)
    answer.creation_time.GetCurrentTime()
    return answer


_ROUTES: tuple[tuple[str, Callable[..., Any]], ...] = (
    (r"GET /api/v1/users/auth/user/", _user),
    (r"GET /api/v1/devices/", _devices),
    (r"POST /api/v1/models/", _new_model),
    (r"GET /api/v1/models/(\w+)/", _model),
    (r"GET /api/v1/models/(\w+)/multipart_upload/", _model_urls),
    (r"GET /api/v1/models/(\w+)/download/", _model_download),
    (r"PUT /blob/models/(\w+)", _put_model),
    (r"POST /api/v1/models/(\w+)/multipart_upload/", _model_complete),
    (r"POST /api/v1/datasets/", _new_dataset),
    (r"GET /api/v1/datasets/(\w+)/", _dataset),
    (r"PATCH /api/v1/datasets/(\w+)/", _model_complete),
    (r"GET /api/v1/datasets/(\w+)/upload_url/", _dataset_url),
    (r"POST /blob/datasets/(\w+)", _post_dataset),
    (r"GET /api/v1/datasets/(\w+)/download_data/", _dataset_download),
    (r"POST /api/v1/jobs/", _submit),
    (r"GET /api/v1/jobs/(\w+)/", _job),
    (r"GET /api/v1/jobs/(\w+)/result/", _result),
    (r"GET /api/v1/job_summaries/", _summaries),
    (r"GET /api/v1/jobs/(\w+)/device_runs/latest/artifact_list/1/", _artifacts),
    (r"GET /blob/(logs|datasets|models)/(\w+)", _blob),
)
