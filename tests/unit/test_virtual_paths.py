from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_devicelab.virtual.paths import DEVICE_FOLDERS, resolve, resolve_writable, rewrite_command
from pytest_devicelab.virtual.shell import Request, parse_request


@pytest.fixture
def root(tmp_path: Path) -> Path:
    where = tmp_path.resolve() / "root"
    for folder in DEVICE_FOLDERS:
        (where / folder).mkdir(parents=True)
    (where / "data/local/tmp").mkdir(parents=True)
    return where


def test_paths_lie_below_the_root(root: Path) -> None:
    assert resolve(root, "/data/local/tmp/x") == root / "data/local/tmp/x"
    assert resolve(root, "data/./local//tmp/") == root / "data/local/tmp"
    assert resolve(root, "//data") == root / "data"
    assert resolve(root, "/") == root
    assert resolve(root, "") == root


def test_dots_stop_at_the_root(root: Path) -> None:
    assert resolve(root, "/../../../etc/passwd") == root / "etc/passwd"
    assert resolve(root, "/data/local/../../../../x") == root / "x"


def test_links_are_read_as_the_device_reads_them(root: Path) -> None:
    (root / "sdcard/absolute").symlink_to("/data/local/tmp")
    (root / "sdcard/relative").symlink_to("../data/local")
    (root / "sdcard/up").symlink_to("../../../..")
    (root / "sdcard/host").symlink_to("/etc")
    (root / "sdcard/own").symlink_to(root / "data/local")
    assert resolve(root, "/sdcard/absolute/x") == root / "data/local/tmp/x"
    assert resolve(root, "/sdcard/relative/tmp") == root / "data/local/tmp"
    assert resolve(root, "/sdcard/up/etc/passwd") == root / "etc/passwd"
    assert resolve(root, "/sdcard/host/passwd") == root / "etc/passwd"
    assert resolve(root, "/sdcard/own/tmp") == root / "data/local/tmp"
    assert resolve(root, "/sdcard/host") == root / "etc"
    assert resolve(root, "/sdcard/host", follow=False) == root / "sdcard/host"


def test_a_circle_of_links_is_an_error(root: Path) -> None:
    (root / "data/one").symlink_to("two")
    (root / "data/two").symlink_to("one")
    with pytest.raises(OSError, match=r"[Ll]evels of symbolic links") as caught:
        resolve(root, "/data/one")
    assert caught.value.errno == errno.ELOOP


def test_a_file_is_no_folder(root: Path) -> None:
    (root / "data/file").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        resolve(root, "/data/file/x")


@pytest.mark.parametrize(
    "path", ["/", "/etc/x", "/dev/socket/control", "/device.json", "/sdcard/../x", "/sdcard/host/x"]
)
def test_only_the_devices_own_folders_are_written(root: Path, path: str) -> None:
    (root / "sdcard/host").symlink_to("/etc")
    with pytest.raises(OSError, match="Read-only") as caught:
        resolve_writable(root, path)
    assert caught.value.errno == errno.EROFS


@given(
    parts=st.lists(st.sampled_from(["..", "data", "up", "host", "loop", "x", ".", "", "a\nb"]), max_size=8),
    absolute=st.booleans(),
)
def test_no_path_leaves_the_root(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], absolute: bool
) -> None:
    root = tmp_path_factory.getbasetemp().resolve() / "any"
    if not root.exists():
        (root / "data").mkdir(parents=True)
        (root / "data/up").symlink_to("../../..")
        (root / "data/host").symlink_to("/etc")
        (root / "data/loop").symlink_to("/data/loop/x")
    try:
        where = resolve(root, ("/" if absolute else "") + "/".join(parts))
    except OSError:
        return
    assert where.is_relative_to(root)
    assert ".." not in where.parts


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("ls /data", "ls @/data"),
        ("cat '/data/local/tmp/a b' \"/sdcard/x\"", "cat '@/data/local/tmp/a b' \"@/sdcard/x\""),
        (
            "LD_LIBRARY_PATH=/vendor/lib64:/system/lib64 x",
            "LD_LIBRARY_PATH=@/vendor/lib64:@/system/lib64 x",
        ),
        ("run --model=/data/m.bin>/data/out;(cd /data)", "run --model=@/data/m.bin>@/data/out;(cd @/data)"),
        ("echo `ls /data`$(ls /sdcard)", "echo `ls @/data`$(ls @/sdcard)"),
        ("/system/bin/sh -c true\n/vendor/bin/x", "@/system/bin/sh -c true\n@/vendor/bin/x"),
        ("ls ./data /mnt/data x/data $VROOT/data", "ls ./data /mnt/data x/data $VROOT/data"),
        ("ls /database /data-old /data.bak", "ls /database /data-old /data.bak"),
        ("ls /tmp /usr/bin", "ls /tmp /usr/bin"),
    ],
)
def test_device_paths_in_commands_point_into_the_root(command: str, expected: str) -> None:
    root = Path("/state/s24")
    assert rewrite_command(root, command) == expected.replace("@", str(root))


def test_a_path_that_points_into_the_root_already_stays(root: Path) -> None:
    below_data = Path("/data/ci/s24")
    assert rewrite_command(below_data, "cat /data/ci/s24/data/x") == "cat /data/ci/s24/data/x"
    assert rewrite_command(below_data, "cat /data/x") == "cat /data/ci/s24/data/x"


@pytest.mark.parametrize(
    ("name", "framed", "terminal", "term", "command"),
    [
        ("shell,v2,TERM=xterm-256color,raw:echo a:b", True, False, "xterm-256color", "echo a:b"),
        ("shell,v2,TERM=xterm,pty:", True, True, "xterm", ""),
        ("shell,v2,pty:top", True, True, "dumb", "top"),
        ("shell:ls", False, False, "dumb", "ls"),
        ("shell:", False, True, "dumb", ""),
        ("shell,raw:", False, False, "dumb", ""),
        ("exec:cat", False, False, "dumb", "cat"),
    ],
)
def test_shell_requests(name: str, framed: bool, terminal: bool, term: str, command: str) -> None:
    request = parse_request(name)
    assert request == Request(
        command=command,
        framed=framed,
        terminal=terminal,
        term=term,
        grace_s=5.0 if name.startswith("exec") else 0,
    )


@pytest.mark.parametrize("name", ["sync:", "shellx:ls", "shell", "tcp:80", ""])
def test_other_services_are_no_shells(name: str) -> None:
    assert parse_request(name) is None
