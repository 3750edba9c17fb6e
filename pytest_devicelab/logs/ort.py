"""What ONNX Runtime says of where it put each node, and why not on the NPU."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pytest_devicelab.evidence.events import Event
from pytest_devicelab.logs.dialect import LineReader, Trigger
from pytest_devicelab.logs.framing import LogLineRecord
from pytest_devicelab.logs.ort_session import OrtSession
from pytest_devicelab.logs.qnn import is_qnn_line

# `[L:category:id, file:line function] text`, behind a timestamp on a host, without one in logcat.
_HEADER = re.compile(
    r"(?:\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d\.\d{1,9} )?"
    r"\[[VIWEF]:[^:\]]{0,128}:[^,\]]{0,128}, (?P<location>[^\]]{0,512})\] ?(?P<text>.*)"
)
_SESSION_BEGINS = "Session Options {"
_SESSION_READY = "Session successfully initialized"


class OrtDialect:
    """Reads ONNX Runtime with the QNN execution provider, classic and plugin.

    A session's lines belong together (a node's rejection, then its placement), so one process's log is
    cut into sessions first. What a session prints once a pass is one event.
    """

    name = "ort"
    triggers = (
        *(
            Trigger(literal=literal)
            for literal in (
                _SESSION_BEGINS.encode(),
                _SESSION_READY.encode(),
                b"Validation PASSED",
                b"Validation FAILED",
                b"Operator type: ",
                b"REASON : ",
                b"VerifyEachNodeIsAssigned",
                b"preferred execution providers",
                b"backend provider name: ",
                b"Fusion modified: 1",
                b"EpContext model",
                b"default CPU EP",
                b"Failed to create context from binary",
                b"QNN graph",
                b"QNN EP",
                b"QNNExecutionProvider",
                b"qnn_execution_provider",
                b"QNN.backendValidateOpConfig",
            )
        ),
        # The names of the nodes follow, one a line; below ONNX Runtime's own header or bare.
        Trigger(literal=b"placed on [", counted=b"Number of nodes: "),
    )

    def reader(self, *, source: str) -> LineReader:
        """Start on a log."""
        return _OrtReader(source)


class _OrtReader:
    """Cuts each process's lines into sessions."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._sessions: dict[int | None, OrtSession] = {}

    def read(self, record: LogLineRecord) -> Iterator[Event]:
        if is_qnn_line(record):
            return
        session = self._sessions.setdefault(record.pid, OrtSession())
        header = _HEADER.match(record.message)
        text = record.message if header is None else header["text"]
        if text.startswith(_SESSION_BEGINS):
            yield from session.events(dialect=OrtDialect.name, source=self._source)
            session = self._sessions[record.pid] = OrtSession(backend=session.backend)
        session.read(record, text, "" if header is None else header["location"])
        if text.startswith(_SESSION_READY):
            yield from session.events(dialect=OrtDialect.name, source=self._source)
            self._sessions[record.pid] = OrtSession(backend=session.backend)

    def finish(self) -> Iterator[Event]:
        for session in self._sessions.values():
            yield from session.events(dialect=OrtDialect.name, source=self._source)
