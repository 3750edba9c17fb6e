"""What ONNX Runtime says of where it put each node, and why not on the NPU."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from pytest_devicelab.evidence.events import Event
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
    candidates = (
        b"Validation FAILED",
        b"placed on [",
        b"preferred execution providers",
        b"partitions supported by",
        b"Unsupported nodes in",
        b"backendValidateOpConfig",
        b"Fusion modified: 1",
        b"EpContext model",
        b"default CPU EP",
        b"Failed to finalize QNN graph",
        b"Failed to create context from binary",
        b"Failed to execute QNN graph",
        b"QNN graph execute error",
    )

    def parse(self, lines: Sequence[LogLineRecord], *, source: str) -> Iterator[Event]:
        """Return `op_rejected`, `placement`, `cpu_fallback`, `partition`, `fusion`, `load_error` events."""
        sessions: dict[int | None, OrtSession] = {}
        for record in lines:
            if is_qnn_line(record):
                continue
            session = sessions.get(record.pid)
            if session is None:
                session = sessions[record.pid] = OrtSession()
            header = _HEADER.match(record.message)
            text = record.message if header is None else header["text"]
            if text.startswith(_SESSION_BEGINS):
                yield from session.events(dialect=self.name, source=source)
                session = sessions[record.pid] = OrtSession(backend=session.backend)
            session.read(record, text, "" if header is None else header["location"])
            if text.startswith(_SESSION_READY):
                yield from session.events(dialect=self.name, source=source)
                sessions[record.pid] = OrtSession(backend=session.backend)
        for session in sessions.values():
            yield from session.events(dialect=self.name, source=source)
