"""The formats logs come in, and how to tell which one a log has."""

from __future__ import annotations

import re
from itertools import islice

from pytest_devicelab.logs.framing import Framing, split_lines

_SNIFF_LINES = 200
_SNIFF_BYTES = 1 << 18

# Source: the formats are those of Android's liblog (logprint), with the modifiers year, usec, nsec, zone
# and uid; of Android Studio's logcat window, before and after 2022; and of the kernel's ring buffer. Every
# repetition is bounded, so that a hostile line costs time in proportion to its length.
_CLOCK = r"(?:\d{4}-)?\d\d-\d\d \d\d:\d\d:\d\d\.(?:\d{9}|\d{6}|\d{3})(?![0-9])(?: [+-]\d{4}(?![0-9]))?"
_DATE = rf"(?P<time>{_CLOCK})"
_SECONDS = r"(?P<seconds> {0,20}[0-9]{1,12}\.(?:\d{9}|\d{6}|\d{3})(?![0-9]))"
_IDS = r" {1,12}(?:\w{1,16} {1,12})??(?P<pid>[0-9]{1,10}) {1,12}(?P<tid>[0-9]{1,10}) "
_TAG_COLON = r"(?P<priority>[VDIWEFA]) (?P<tag>.{0,128}?):(?: (?P<message>.*))?$"
_TAG_PID = r"(?P<priority>[VDIWEFA])/(?P<tag>.{0,128}?)\( {0,8}(?P<pid>[0-9]{1,10})\):(?: (?P<message>.*))?$"
_OWNER = r"(?:\w{1,16}: {0,12})??(?P<pid>[0-9]{1,10}): {0,12}(?P<tid>[0-9]{1,10}) "

_THREADTIME = re.compile(rf"{_DATE}{_IDS}{_TAG_COLON}")
_EPOCH = re.compile(rf"{_SECONDS}{_IDS}{_TAG_COLON}")
_TIME = re.compile(rf"{_DATE} {_TAG_PID}")
_LONG = re.compile(
    rf"\[ (?:{_DATE}|{_SECONDS}) {{0,12}}{_OWNER}(?P<priority>[VDIWEFA])/(?P<tag>.{{0,128}}?)\]$"
)
_STUDIO = re.compile(
    rf"{_DATE} {{1,12}}(?P<pid>[0-9]{{1,10}})-(?P<tid>[0-9]{{1,10}}) {{1,12}}(?P<tag>\S{{1,64}}+(?: \S{{1,64}}+){{0,8}})"
    r" {1,64}+(?P<process>\S{1,256}+) {1,64}+(?P<priority>[VDIWEFA])  (?P<message>.*)$"
)
_STUDIO_OLD = re.compile(
    rf"{_DATE} {{1,12}}(?P<pid>[0-9]{{1,10}})-(?P<tid>[0-9]{{1,10}})/(?P<process>\S{{1,256}}+) "
    r"(?P<priority>[VDIWEFA])/(?P<tag>.{0,128}?):(?: (?P<message>.*))?$"
)
_KERNEL = re.compile(
    r"(?:<[0-9]{1,3}>)?\[(?P<seconds> {0,12}[0-9]{1,10}\.[0-9]{6})\](?:\[ {0,10}[TC][0-9]{1,8}\])? (?P<message>.*)$"
)
_BRIEF = re.compile(_TAG_PID)
_PROCESS = re.compile(
    r"(?P<priority>[VDIWEFA])\( {0,8}(?P<pid>[0-9]{1,10})\) (?P<message>.*)  \((?P<tag>[^()]{0,128})\)$"
)
_TAG = re.compile(r"(?P<priority>[VDIWEFA])/(?P<tag>.{0,128}?):(?: (?P<message>.*))?$")
_HOST = re.compile(r"(?=(?P<time>\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d\.[0-9]{3,9}) )(?P<message>.*)$")

THREADTIME = Framing(name="threadtime", headers=(_THREADTIME,))
EPOCH = Framing(name="epoch", headers=(_EPOCH,))
TIME = Framing(name="time", headers=(_TIME,))
BRIEF = Framing(name="brief", headers=(_BRIEF,))
PROCESS = Framing(name="process", headers=(_PROCESS,))
TAG = Framing(name="tag", headers=(_TAG,))
LONG = Framing(name="long", headers=(_LONG,), carries=True)
STUDIO = Framing(name="studio", headers=(_STUDIO, _STUDIO_OLD), carries=True)
KERNEL = Framing(name="kernel", headers=(_KERNEL,))
# Output of a tool, and `logcat -v raw`: a line is a message; a leading timestamp is its time.
PLAIN = Framing(name="plain", headers=(_HOST,), open=True)
# Several logs in one file, with prose between them; only headers that no prose looks like.
BUGREPORT = Framing(name="bugreport", headers=(_THREADTIME, _EPOCH, _TIME, _KERNEL), open=True)

# The most telling first: on a draw, and where a format's lines are lines of another too, the first counts.
LOGCAT_FRAMINGS: tuple[Framing, ...] = (THREADTIME, TIME, BRIEF, EPOCH, LONG, STUDIO, KERNEL, PROCESS, TAG)

_BUGREPORT = re.compile(
    rb"={8,80}\n== dumpstate|(?:^|\n)-{6} [A-Z][A-Z0-9 _-]{2,60}(?: \(|\b).{0,200} -{6}\r?\n"
)


def sniff_framing(data: bytes) -> Framing:
    """Say how a log is framed, from its first lines.

    Returns:
        The format that reads most of them, if that is more than half; else `PLAIN`, under which dialects
        see every line whole and miss nothing but its tag.
    """
    head = data[:_SNIFF_BYTES]
    if _BUGREPORT.search(head):
        return BUGREPORT
    sample = tuple(islice(split_lines(head), _SNIFF_LINES))
    chosen, most = PLAIN, 0
    for framing in LOGCAT_FRAMINGS:
        records = tuple(framing.frame(sample))
        read = sum(1 for record in records if record.time or record.priority)
        said = sum(1 for record in records if not record.framed) + read
        if read > most and read * 2 > said:
            chosen, most = framing, read
    return chosen
