from __future__ import annotations

import pytest

from pytest_devicelab.audit.redact import redact


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'library: "/home/alice/venv/lib/libQnnHtp.so"', b'library: "<path>/libQnnHtp.so"'),
        (b"in /tmp/.new-x1/job.json, /root/a b", b"in <path>/job.json, <path>/a b"),
        (b"dir /home/alice/models/", b"dir <path>/models"),
        (b"push to /data/local/tmp/devicelab/x.bin", b"push to /data/local/tmp/devicelab/x.bin"),
        (
            b"open /vendor/lib64/libcdsprpc.so and /dev/null",
            b"open /vendor/lib64/libcdsprpc.so and /dev/null",
        ),
        (b"3/4 samples, 10 MB/s, a/b, input/output", b"3/4 samples, 10 MB/s, a/b, input/output"),
        (b"serial R5CT20ABCDE is up", b"serial <redacted> is up"),
        (b"\xff\xfe/home/alice/x", b"\xff\xfe<path>/x"),
        (b"path=/home/alice/x:/home/bob/y", b"path=<path>/x:<path>/y"),
    ],
)
def test_only_what_is_about_the_host_goes(line: bytes, expected: bytes) -> None:
    assert redact(line, ["R5CT20ABCDE", ""]) == expected
