"""The three phrases people look for in a QNN log, whoever writes them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from pytest_devicelab.evidence.events import Event, EventKind
from pytest_devicelab.logs.dialect import make_event
from pytest_devicelab.logs.framing import LogLineRecord

# Case counts: ONNX Runtime's "fallback to CPU EP has been explicitly disabled" says the opposite.
_PHRASE = re.compile(r"Fallback to CPU|Fusing operation|Quantization params")
_KINDS: tuple[tuple[str, EventKind], ...] = (
    ("Fallback to CPU", "cpu_fallback"),
    ("Fusing operation", "fusion"),
    ("Quantization params", "quant_params"),
)
_DENIED_BEFORE = re.compile(r"\b(?:no|not|without|disabled?|disabling)\s{1,4}$", re.IGNORECASE)
_DENIED_AFTER = re.compile(r"\s{0,4}(?:[:=]|is|was)?\s{0,4}(?:disabled|off|false|0)\b", re.IGNORECASE)
_FIELDS = (
    ("op", re.compile(r"\bop(?:erator|_type)?\s{0,2}[ :=]\s{0,2}['\"`]?([\w.]{1,256})")),
    ("node", re.compile(r"\bnode(?:_name)?\s{0,2}[ :=]\s{0,2}['\"`]?([^\s'\"`,;)]{1,1024})")),
    ("reason", re.compile(r"\b(?:reason|because)\s{0,2}[ :=]\s{0,2}(.+)")),
    ("tensor", re.compile(r"\btensor\s{0,2}[ :=]\s{0,2}['\"`]?([^\s'\"`,;)]{1,1024})")),
    ("scale", re.compile(r"\bscale\s{0,2}[ :=]\s{0,2}([-+.0-9eE]{1,40})")),
    ("zero_point", re.compile(r"\b(?:zero_point|offset)\s{0,2}[ :=]\s{0,2}(-?[0-9]{1,20})")),
)


class PhrasesDialect:
    """Reads the seed phrases: in logcat under a tag of QNN's or ONNX Runtime's, on a host anywhere.

    An app's own "Fallback to CPU" (a renderer's, say) is not the runtime's, hence the tags.
    """

    name = "phrases"
    candidates = (b"Fallback to CPU", b"Fusing operation", b"Quantization params")

    def parse(self, lines: Sequence[LogLineRecord], *, source: str) -> Iterator[Event]:
        """Return one event a line; `text` is what followed the phrase, other fields only where written."""
        for record in lines:
            match = _PHRASE.search(record.message)
            if match is None or not _by_runtime(record):
                continue
            kind = dict(_KINDS)[match.group()]
            before, text = record.message[: match.start()], record.message[match.end() :]
            fields = {"text": text.strip(" :")}
            for name, pattern in _FIELDS:
                found = pattern.search(text)
                if found is not None:
                    fields[name] = found[1].strip()
            if kind == "cpu_fallback":
                if _DENIED_BEFORE.search(before[-20:]) or _DENIED_AFTER.match(text):
                    continue
                fields = {"op": "", "node": "", "reason": "", "runtime": "qnn"} | fields
            yield make_event(kind, record, dialect=self.name, source=source, fields=fields)


def _by_runtime(record: LogLineRecord) -> bool:
    return not record.tag or record.tag.lower().startswith(("qnn", "onnxruntime"))
