"""Real output of ONNX Runtime and Qualcomm's HTP simulator, as a virtual device's logcat gave it.

The log is that of `digits_channelnorm` on a virtual SM8650. The labels were read off it by eye: the
LayerNormalization is rejected twice (two passes, one event), and stands among the five nodes on the CPU.
"""

from __future__ import annotations

import gzip
import re
from pathlib import Path

from pytest_devicelab.logs.formats import sniff_framing
from pytest_devicelab.logs.framing import split_lines
from pytest_devicelab.logs.scan import scan_log

LOG = gzip.decompress((Path(__file__).parent / "logs" / "virtual_channelnorm_v75.txt.gz").read_bytes())

# Every warning and error of these runtimes that is no event, and why it is none.
EXPLAINED = {
    r"Initializing HtpProvider|m_CFBCallbackInfoObj is not initialized": "QNN starts up",
    r"Performance Estimates unsupported|Cost Based unsupported": "estimates this chip has none of",
    r"HTP arch will be deprecated|SOC has already been set|different from arch associated": "the chip is named twice",
    r"Sanitizing the value for hvx_threads|no longer supported after PGE removal": "an option falls back to its default",
    r"No op packages found for architecture": "custom operators, of which there are none",
    r"unexpected GraphHtpSettings option": "an option this backend does not know",
    r"File mapped weights feature|EPContext encryption config unavailable|persist telemetry": "not on this system",
    r"LogNodeSupport\] Validation FAILED": "the second pass of a rejection that is an event",
    r"not assigned to the preferred execution providers|Rerunning with verbose": "said in full by the placement listing",
}
_TROUBLE = re.compile(r"<[EWF]>|\[[EWF]:|FAILED|[Ff]ailed|[Ee]rror:|allback to CPU")


def test_every_event_of_a_real_run() -> None:
    scan = scan_log(LOG, source="logcat")
    found = [(event.line, event.dialect, event.kind) for event in scan.events]
    assert found == [
        (176, "ort", "op_rejected"),
        (975, "ort", "placement"),
        (978, "ort", "placement"),
        (981, "ort", "cpu_fallback"),
    ]
    rejected, htp, cpu, fallback = (dict(event.fields) for event in scan.events)
    assert (htp["unit"], htp["count"], cpu["unit"], cpu["count"]) == ("htp", "2", "cpu", "5")
    why = "QNN LayerNorm on HTP only supports normalization along the last axis"
    for fields in (rejected, fallback):
        assert (fields["op"], fields["node"]) == ("LayerNormalization", "channel_norm")
        assert fields["reason"].startswith(why)
    assert (scan.lines, scan.unparsed, scan.lost) == (1055, 0, 0)


def test_nothing_is_left_unexplained() -> None:
    events = {event.line for event in scan_log(LOG, source="logcat").events}
    unexplained = [
        record.message
        for record in sniff_framing(LOG).frame(split_lines(LOG))
        if record.line not in events
        and (record.priority in "EWF" or _TROUBLE.search(record.message))
        and not any(re.search(known, record.message) for known in EXPLAINED)
    ]
    assert unexplained == []
