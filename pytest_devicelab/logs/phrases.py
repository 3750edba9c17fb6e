"""The three phrases people look for in a QNN log, whoever writes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from pytest_devicelab.evidence.events import Event, EventKind
from pytest_devicelab.logs.dialect import LineReader, Trigger, make_event
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
    ("op", "op", re.compile(r"\bop(?:erator|_type)?\s{0,2}[ :=]\s{0,2}['\"`]?([\w.]{1,256})")),
    ("node", "node", re.compile(r"\bnode(?:_name)?\s{0,2}[ :=]\s{0,2}['\"`]?([^\s'\"`,;)]{1,1024})")),
    ("reason", "", re.compile(r"\b(?:reason|because)\s{0,2}[ :=]\s{0,2}(.+)")),
    ("tensor", "tensor", re.compile(r"\btensor\s{0,2}[ :=]\s{0,2}['\"`]?([^\s'\"`,;)]{1,1024})")),
    ("scale", "scale", re.compile(r"\bscale\s{0,2}[ :=]\s{0,2}([-+.0-9eE]{1,40})")),
    ("dtype", "type", re.compile(r"\b(?:dtype|data_?type|type)\s{0,2}[ :=]\s{0,2}([\w.]{1,64})")),
    ("zero_point", "", re.compile(r"\b(?:zero_point|offset)\s{0,2}[ :=]\s{0,2}(-?[0-9]{1,20})")),
)
_FUSED = re.compile(r"(?P<from>.{1,512}?) {0,4}(?:->|=>|\binto\b) {0,4}(?P<into>\S{1,512})")


class PhrasesDialect:
    """Reads the seed phrases: in logcat under a tag of QNN's or ONNX Runtime's, on a host anywhere.

    An app's own "Fallback to CPU" (a renderer's, say) is not the runtime's, hence the tags.
    """

    name = "phrases"
    triggers = tuple(Trigger(literal=phrase.encode()) for phrase, _ in _KINDS)

    def reader(self, *, source: str) -> LineReader:
        """Start on a log."""
        return _PhraseReader(source)


class _PhraseReader:
    """One event a line; `text` is what followed the phrase, other fields only where written."""

    def __init__(self, source: str) -> None:
        self._source = source

    def read(self, record: LogLineRecord) -> Iterator[Event]:
        match = _PHRASE.search(record.message)
        if match is None or not _by_runtime(record):
            return
        kind = dict(_KINDS)[match.group()]
        before, text = record.message[: match.start()], record.message[match.end() :]
        fields = {"text": text.strip(" :")}
        for name, word, pattern in _FIELDS:
            found = (
                pattern.search(text) if word in text else None
            )  # most lines have none: skip the costly search
            if found is not None:
                fields[name] = found[1].strip()
        if kind == "cpu_fallback":
            if _DENIED_BEFORE.search(before[-20:]) or _DENIED_AFTER.match(text):
                return
            fields = {"op": "", "node": "", "reason": "", "runtime": "qnn"} | fields
        elif kind == "fusion":
            fused = _FUSED.match(fields["text"])
            fields |= {"into": "", "from": ""} if fused is None else fused.groupdict()
        yield make_event(kind, record, dialect=PhrasesDialect.name, source=self._source, fields=fields)

    def finish(self) -> Iterable[Event]:
        return ()


def _by_runtime(record: LogLineRecord) -> bool:
    return not record.tag or record.tag.lower().startswith(("qnn", "onnxruntime"))
