from __future__ import annotations

import asyncio
import contextlib
import http.server
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import adbutils
import pytest

from pytest_devicelab.errors import InfrastructureError
from pytest_devicelab.matrix.soc import Soc
from pytest_devicelab.matrix.specs import DeviceSpec, Source
from pytest_devicelab.virtual.control import control
from pytest_devicelab.virtual.namespace import MountNamespace, Rewriting, View, open_view
from pytest_devicelab.virtual.paths import DEVICE_FOLDERS
from pytest_devicelab.virtual.spawn import ServedFarm, spawn

MIB = 1024 * 1024


def _spec(device_id: str, soc: str = "SM8650") -> DeviceSpec:
    source = Source(file="test", line=1, column=1)
    chip = Soc(
        name=soc, manufacturer="QTI", marketing="Snapdragon 8 Gen 3", hexagon="V75", platform="pineapple"
    )
    return DeviceSpec(id=device_id, kind="virtual", source=source, soc=chip)


class Adb:
    """The unmodified adb binary, with a server of its own."""

    def __init__(self, home: Path) -> None:
        self.binary = adbutils.adb_path()
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "TMPDIR": str(home),
            "ANDROID_ADB_SERVER_PORT": str(self.port),
            "ADB_MDNS": "0",
            "ADB_LOCAL_TRANSPORT_MAX_PORT": "5553",
        }
        self._server = subprocess.Popen(
            [self.binary, "nodaemon", "server"],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _eventually(lambda: self("devices").returncode == 0)

    def __call__(
        self, *args: str, stdin: bytes = b"", timeout_s: float = 60
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [self.binary, *args],
            env=self.env,
            input=stdin,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )

    def start(self, *args: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [self.binary, *args],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def state(self, serial: str) -> str:
        return self("-s", serial, "get-state").stdout.decode().strip()

    def close(self) -> None:
        self._server.kill()
        self._server.wait()


class Phone:
    """One virtual device, connected."""

    def __init__(self, adb: Adb, farm: ServedFarm, device_id: str) -> None:
        self.server = adb
        self.farm = farm
        self.root = farm.root(device_id)
        self.serial = f"127.0.0.1:{farm.ports[device_id]}"
        assert adb("connect", self.serial).stdout == f"connected to {self.serial}\n".encode()

    def adb(
        self, *args: str, stdin: bytes = b"", timeout_s: float = 60
    ) -> subprocess.CompletedProcess[bytes]:
        return self.server("-s", self.serial, *args, stdin=stdin, timeout_s=timeout_s)

    def shell(self, command: str) -> str:
        done = self.adb("shell", command)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    def ok(self, *args: str) -> str:
        done = self.adb(*args)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout.decode()


def _eventually(condition: Callable[[], object], timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def _processes_of(state: Path) -> list[str]:
    """Return the command line of every process that belongs to a farm, whatever became of its parent."""
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdecimal() and int(process.name) != os.getpid():
                line = (process / "cmdline").read_bytes()
                if str(state).encode() in line + (process / "environ").read_bytes():
                    found.append(line.replace(b"\0", b" ").decode())
    return found


@pytest.fixture(scope="module")
def adb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adb]:
    server = Adb(tmp_path_factory.mktemp("adb"))
    yield server
    server.close()


@pytest.fixture
def state() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="devicelab-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module", params=[None, False], ids=["namespace", "rewriting"])
def farm(request: pytest.FixtureRequest) -> Iterator[ServedFarm]:
    with tempfile.TemporaryDirectory(prefix="devicelab-") as folder:
        state = Path(folder)
        with spawn(
            [_spec("s24"), _spec("s23", "SM8550")], state, timeout_s=60, namespace=request.param
        ) as served:
            yield served
        assert _processes_of(state) == []


@pytest.fixture(scope="module")
def phone(adb: Adb, farm: ServedFarm) -> Iterator[Phone]:
    connected = Phone(adb, farm, "s24")
    yield connected
    adb("disconnect", connected.serial)


@pytest.fixture
def local(phone: Phone) -> adbutils.AdbDevice:
    client = adbutils.AdbClient(host="127.0.0.1", port=phone.server.port)
    return client.device(phone.serial)


# The adb binary: shells


def test_devices_are_listed_by_product(phone: Phone) -> None:
    (line,) = [
        line for line in phone.server("devices", "-l").stdout.decode().splitlines() if phone.serial in line
    ]
    assert " device " in line
    assert "model:Virtual_Snapdragon_8_Gen_3" in line
    assert "device:sm8650" in line


def test_exit_status_and_both_outputs_come_back_apart(phone: Phone) -> None:
    done = phone.adb("shell", "echo out; echo err >&2; exit 3")
    assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"err\n", 3)
    assert phone.adb("shell", "kill -9 $$").returncode == 137


def test_standard_input_reaches_the_command(phone: Phone) -> None:
    content = random.Random(1).randbytes(3 * MIB + 17)
    done = phone.adb("shell", "cat", stdin=content)
    assert done.stdout == content
    assert phone.adb("shell", "head -c 3; exit 5", stdin=content).returncode == 5


def test_output_streams_while_the_command_runs(phone: Phone) -> None:
    with phone.server.start("-s", phone.serial, "shell", "echo first; sleep 60") as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"first\n"
        assert running.poll() is None
        running.kill()


def test_closing_a_stream_ends_the_whole_process_group(phone: Phone) -> None:
    marker = "sleep 987654"
    with phone.server.start(
        "-s", phone.serial, "shell", f"{marker} & (trap '' HUP; echo up; {marker})"
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"up\n"
        assert any(marker in line for line in _processes_of(phone.root))
        running.kill()
    _eventually(lambda: not any(marker in line for line in _processes_of(phone.root)))


def test_large_output_is_whole(phone: Phone) -> None:
    done = phone.adb("exec-out", "head -c 20000000 /dev/zero; printf end")
    assert len(done.stdout) == 20_000_003
    assert done.stdout.endswith(b"end")


def test_exec_in_lets_the_command_finish(phone: Phone) -> None:
    content = random.Random(2).randbytes(MIB + 1)
    assert phone.adb(
        "exec-in", "cat > /data/local/tmp/in; sleep 0.2; touch /data/local/tmp/done", stdin=content
    )
    _eventually((phone.root / "data/local/tmp/done").exists)
    assert (phone.root / "data/local/tmp/in").read_bytes() == content


def test_a_terminal_where_one_is_asked_for(phone: Phone) -> None:
    assert phone.shell("test -t 1 || echo no terminal") == "no terminal\n"
    done = phone.adb("shell", "-tt", "tty; test -t 0 && echo terminal; echo err >&2; exit 4")
    assert done.stdout.startswith(b"/dev/pts/")
    assert done.stdout.endswith(b"terminal\r\nerr\r\n")
    assert done.returncode == 4


def test_an_interactive_shell_reads_its_commands(phone: Phone) -> None:
    assert phone.adb("shell", "-T", stdin=b"echo $((6 * 7))\nexit 9\n").stdout == b"42\n"


def test_no_host_secret_is_in_the_environment(phone: Phone) -> None:
    names = {line.partition("=")[0] for line in phone.shell("env").splitlines()}
    assert "ANDROID_ADB_SERVER_PORT" not in names
    assert {"ANDROID_DATA", "DEVICELAB_VDEVICE", "PATH", "TERM"} <= names


# The adb binary: absolute paths


def test_absolute_device_paths_work_in_commands(phone: Phone) -> None:
    phone.shell("mkdir -p /data/local/tmp/a && echo hello > '/data/local/tmp/a/b c'")
    assert (phone.root / "data/local/tmp/a/b c").read_text() == "hello\n"
    assert phone.shell("cd /data/local/tmp/a && cat 'b c' && ls /sdcard") == "hello\nDownload\n"
    assert phone.shell('cat "$VROOT/data/local/tmp/a/b c"') == "hello\n"
    assert phone.shell("getprop ro.soc.model") == "SM8650\n"


def test_host_programs_and_this_python_stay_in_reach(phone: Phone) -> None:
    assert phone.shell(f"{sys.executable} -c 'import sys; print(sys.prefix)'") == f"{sys.prefix}\n"
    assert phone.shell("test -d /tmp && test -x /bin/sh && test -r /dev/null && echo yes") == "yes\n"


def test_devices_do_not_share_files(phone: Phone, adb: Adb, farm: ServedFarm) -> None:
    other = Phone(adb, farm, "s23")
    phone.shell("echo mine > /data/local/tmp/mine")
    assert other.adb("shell", "cat /data/local/tmp/mine").returncode == 1
    assert other.shell("getprop ro.soc.model") == "SM8550\n"


# The adb binary: files


def test_200_mb_arrive_and_return_unchanged(phone: Phone, tmp_path: Path) -> None:
    source, back = tmp_path / "big", tmp_path / "back"
    source.write_bytes(random.Random(3).randbytes(200_000_000))
    phone.ok("push", str(source), "/data/local/tmp/big")
    phone.ok("pull", "/data/local/tmp/big", str(back))
    assert subprocess.run(["cmp", source, back], check=False).returncode == 0
    phone.shell("rm /data/local/tmp/big")


def test_folders_are_pushed_and_pulled(phone: Phone, tmp_path: Path) -> None:
    source = tmp_path / "tree"
    for name, content in {"a": b"", "sub/b": b"b" * 65537, "sub/deep/ü c": b"c"}.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    (source / "a").chmod(0o750)
    os.utime(source / "sub/b", (1_600_000_000, 1_600_000_000))
    phone.ok("push", str(source), "/data/local/tmp/tree")
    phone.ok("pull", "-a", "/data/local/tmp/tree", str(tmp_path / "back"))
    assert subprocess.run(["diff", "-r", source, tmp_path / "back"], check=False).returncode == 0
    pushed = phone.root / "data/local/tmp/tree"
    assert stat.S_IMODE((pushed / "a").stat().st_mode) == 0o777  # as adbd: all get what the owner has
    assert int((pushed / "sub/b").stat().st_mtime) == 1_600_000_000
    assert "deep" in phone.ok("ls", "/data/local/tmp/tree/sub")


def test_a_push_replaces_a_file_and_keeps_old_readers_whole(phone: Phone, tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_bytes(b"old")
    phone.ok("push", str(source), "/data/local/tmp/file")
    with (phone.root / "data/local/tmp/file").open("rb") as reader:
        source.write_bytes(b"new")
        phone.ok("push", str(source), "/data/local/tmp/file")
        assert reader.read() == b"old"
    assert phone.shell("cat /data/local/tmp/file") == "new"


def _push_link(local: adbutils.AdbDevice, path: str, target: bytes) -> None:
    """Push a symbolic link; the adb binary never does, but the protocol has it."""
    name = f"{path},{stat.S_IFLNK | 0o777}".encode()
    with local.open_transport() as connection:
        connection.send_command("sync:")
        connection.check_okay()
        connection.send(b"SEND" + len(name).to_bytes(4, "little") + name)
        connection.send(b"DATA" + len(target).to_bytes(4, "little") + target)
        connection.send(b"DONE" + bytes(4))
        assert connection.read(8) == b"OKAY" + bytes(4)


@pytest.mark.parametrize(
    "target",
    ["/etc/planted", "/data/local/tmp/way-out/planted", "/data/../../planted", "/dev/planted", "/planted"],
)
def test_no_push_leaves_the_device(
    phone: Phone, local: adbutils.AdbDevice, tmp_path: Path, target: str
) -> None:
    _push_link(local, "/data/local/tmp/way-out", b"/etc")
    assert str((phone.root / "data/local/tmp/way-out").readlink()) == "/etc"
    (tmp_path / "planted").write_bytes(b"x")
    done = phone.adb("push", str(tmp_path / "planted"), target)
    assert done.returncode == 1
    assert b"Read-only file system" in done.stderr
    assert not Path("/etc/planted").exists()
    assert not (phone.root / "planted").exists()
    assert not (phone.root / "dev/planted").exists()


def test_no_pull_leaves_the_device(phone: Phone, tmp_path: Path) -> None:
    (phone.root / "sdcard/passwd").unlink(missing_ok=True)
    (phone.root / "sdcard/passwd").symlink_to("../../../../../../../../../../etc/passwd")
    for path in ("/etc/passwd", "/sdcard/passwd", "/sdcard/../../../etc/passwd"):
        done = phone.adb("pull", path, str(tmp_path / "stolen"))
        assert done.returncode == 1
        assert b"No such file or directory" in done.stderr
    assert not (tmp_path / "stolen").exists()


def test_a_refused_push_says_why(phone: Phone, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(3 * MIB))
    phone.shell("touch /data/local/tmp/plain")
    done = phone.adb("push", str(tmp_path / "file"), "/data/local/tmp/plain/x")
    assert done.returncode == 1
    assert b"Not a directory" in done.stderr


def test_a_named_pipe_does_not_stop_the_lab(phone: Phone, local: adbutils.AdbDevice) -> None:
    phone.shell("rm -f /data/local/tmp/pipe; mkfifo /data/local/tmp/pipe")
    with pytest.raises(adbutils.AdbError, match="not a regular file"):
        local.sync.read_bytes("/data/local/tmp/pipe")
    assert phone.shell("echo still here") == "still here\n"


def test_install_streams_the_package(phone: Phone, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "app.apk", "w") as package:
        package.writestr("AndroidManifest.xml", random.Random(4).randbytes(MIB))
    assert "Success" in phone.ok("install", str(tmp_path / "app.apk"))


# The adb binary: life of the device


def test_root_restarts_adbd_and_unroot_takes_it_back(phone: Phone) -> None:
    assert phone.shell("id -u") == "2000\n"
    assert phone.ok("root") == "restarting adbd as root\n"
    phone.ok("wait-for-device")
    assert phone.shell("id -u") == "0\n"
    assert phone.ok("root") == "adbd is already running as root\n"
    phone.ok("unroot")
    phone.ok("wait-for-device")
    assert phone.shell("id -u") == "2000\n"


@pytest.mark.parametrize("ask", [("reboot",), ("shell", "reboot")], ids=["adb-reboot", "shell-reboot"])
def test_a_reboot_resets_properties_and_ends_processes(phone: Phone, ask: tuple[str, ...]) -> None:
    phone.shell("setprop debug.mine 1; setsid sleep 876543 >/dev/null 2>&1 </dev/null &")
    _eventually(lambda: any("sleep 876543" in line for line in _processes_of(phone.root)))
    phone.adb(*ask)
    _eventually(lambda: phone.adb("shell", "getprop debug.mine").stdout == b"\n")
    assert phone.shell("getprop sys.boot_completed; getprop ro.soc.model") == "1\nSM8650\n"
    assert not any("sleep 876543" in line for line in _processes_of(phone.root))


def test_drop_offline_online(phone: Phone) -> None:
    with phone.server.start("-s", phone.serial, "shell", "echo up; sleep 60") as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"up\n"
        control(phone.root, "drop")
        assert running.wait(10) == 255
    _eventually(lambda: phone.server.state(phone.serial) == "device")
    assert phone.shell("echo back") == "back\n"
    control(phone.root, "offline")
    _eventually(lambda: phone.server.state(phone.serial) != "device")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(phone.serial.partition(":")[2])))
    control(phone.root, "online")
    _eventually(
        lambda: phone.server("connect", phone.serial) and phone.server.state(phone.serial) == "device"
    )
    assert phone.shell("echo back") == "back\n"
    with pytest.raises(InfrastructureError, match="refused 'explode'"):
        control(phone.root, "explode")


# The adb binary: ports


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(bytes(MIB))

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def web_port() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def _get(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with client.makefile("rb") as reply:
            return reply.read()


def test_forward_reaches_a_port_of_the_device(phone: Phone, web_port: int) -> None:
    port = int(phone.ok("forward", "tcp:0", f"tcp:{web_port}"))
    assert _get(port).endswith(bytes(MIB))
    assert f"{phone.serial} tcp:{port} tcp:{web_port}" in phone.ok("forward", "--list")
    phone.ok("forward", "--remove", f"tcp:{port}")


def test_reverse_reaches_a_port_of_the_host(phone: Phone, web_port: int) -> None:
    first = int(phone.ok("reverse", "tcp:0", f"tcp:{web_port}"))
    second = int(phone.ok("reverse", "tcp:0", f"tcp:{web_port}"))
    assert _get(first).endswith(bytes(MIB))
    listed = phone.ok("reverse", "--list").split()
    assert [f"tcp:{first}", f"tcp:{second}"] == listed[1::3]
    assert phone.adb("reverse", "--no-rebind", f"tcp:{first}", "tcp:9").returncode == 1
    phone.ok("reverse", "--remove", f"tcp:{first}")
    assert phone.adb("reverse", "--remove", f"tcp:{first}").returncode == 1
    with pytest.raises(ConnectionRefusedError):
        _get(first)
    phone.ok("reverse", "--remove-all")
    assert phone.ok("reverse", "--list").strip() == ""
    taken = phone.adb("reverse", f"tcp:{web_port}", "tcp:9")
    assert taken.returncode == 1
    assert b"cannot bind" in taken.stderr


# adbutils


def test_adbutils_shells(local: adbutils.AdbDevice) -> None:
    assert local.shell("echo one; echo two >&2") == "one\ntwo"
    answer = local.shell2("echo out; echo err >&2; exit 7", v2=True)
    assert (answer.stdout, answer.stderr, answer.returncode) == ("out\n", "err\n", 7)
    assert local.prop.get("ro.soc.model") == "SM8650"


def test_adbutils_closing_a_stream_ends_the_command(phone: Phone, local: adbutils.AdbDevice) -> None:
    stream = local.shell("echo up; exec sleep 765432", stream=True)
    assert stream.read_until_close is not None
    assert stream.read(3) == b"up\n"
    assert any("sleep 765432" in line for line in _processes_of(phone.root))
    stream.close()
    _eventually(lambda: not any("sleep 765432" in line for line in _processes_of(phone.root)))


def test_adbutils_files(local: adbutils.AdbDevice, tmp_path: Path) -> None:
    content = random.Random(5).randbytes(3_000_001)
    assert local.sync.push(content, "/data/local/tmp/via_adbutils", check=True) == len(content)
    assert local.sync.read_bytes("/data/local/tmp/via_adbutils") == content
    assert local.sync.pull("/data/local/tmp/via_adbutils", tmp_path / "back") == len(content)
    assert (tmp_path / "back").read_bytes() == content
    assert local.sync.stat("/data/local/tmp/via_adbutils").size == len(content)
    assert "via_adbutils" in [entry.path for entry in local.sync.list("/data/local/tmp")]
    with pytest.raises(adbutils.AdbError, match="No such file"):
        local.sync.read_bytes("/data/local/tmp/absent")
    with pytest.raises(adbutils.AdbError):
        local.sync.push(b"x", "/etc/planted")


def test_adbutils_reverse(local: adbutils.AdbDevice, web_port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free = probe.getsockname()[1]
    local.reverse(f"tcp:{free}", f"tcp:{web_port}")
    assert [(item.remote, item.local) for item in local.reverse_list()] == [
        (f"tcp:{free}", f"tcp:{web_port}")
    ]
    assert _get(free).endswith(bytes(MIB))
    local.reverse_remove(f"tcp:{free}")
    assert local.reverse_list() == []
    local.reverse_remove_all()


# pure-python-adb


def test_ppadb(phone: Phone, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its escapes are SyntaxWarnings on newer Pythons
        from ppadb.client import Client
    device = Client(host="127.0.0.1", port=phone.server.port).device(phone.serial)
    assert device.shell("echo one; echo two >&2") == "one\ntwo\n"
    assert device.get_properties()["ro.soc.model"] == "SM8650"
    content = random.Random(6).randbytes(3_000_001)
    (tmp_path / "file").write_bytes(content)
    device.push(str(tmp_path / "file"), "/data/local/tmp/via_ppadb")
    device.pull("/data/local/tmp/via_ppadb", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == content


# The process that serves them


def test_one_process_serves_64_devices(adb: Adb, state: Path) -> None:
    ids = [f"d{number:02}" for number in range(64)]
    with spawn([_spec(name) for name in ids], state, timeout_s=120) as served:
        assert list(served.ports) == ids
        serials = {name: f"127.0.0.1:{port}" for name, port in served.ports.items()}
        assert not {5555, *range(5557, 5586, 2)} & set(served.ports.values())

        def greet(name: str) -> bytes:
            adb("connect", serials[name])
            return adb("-s", serials[name], "shell", f"echo {name} > /data/who; cat /data/who").stdout

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(greet, ids)) == [f"{name}\n".encode() for name in ids]
            list(pool.map(lambda serial: adb("disconnect", serial), serials.values()))
    assert _processes_of(state) == []


_PARENT = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_virtual_adb import _spec, spawn
farm = spawn([_spec("s24")], Path(sys.argv[1]), timeout_s=60)
print(farm.ports["s24"], flush=True)
time.sleep(600)
"""


def test_the_devices_die_with_their_parent(adb: Adb, state: Path) -> None:
    argv = [sys.executable, "-c", _PARENT, str(state), str(Path(__file__).parent)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        serial = f"127.0.0.1:{int(parent.stdout.readline())}"
        adb("connect", serial)
        # One that hangs up on nobody: it left its session and holds no pipe of ours.
        adb("-s", serial, "shell", "setsid sleep 654321 >/dev/null 2>&1 </dev/null &")
        _eventually(lambda: any("sleep 654321" in line for line in _processes_of(state)))
        parent.send_signal(signal.SIGKILL)
    _eventually(lambda: not _processes_of(state))
    adb("disconnect", serial)


def test_sigterm_ends_everything(state: Path) -> None:
    with spawn([_spec("s24")], state, timeout_s=60) as served:
        os.kill(served.pid, signal.SIGTERM)
        _eventually(lambda: not _processes_of(state))
    assert not (state / "ports.json").exists()


def test_a_killed_lab_leaves_nothing_either(adb: Adb, state: Path) -> None:
    with spawn([_spec("s24")], state, timeout_s=60) as served:
        phone = Phone(adb, served, "s24")
        phone.adb("shell", "setsid sleep 543210 >/dev/null 2>&1 </dev/null &")
        _eventually(lambda: any("sleep 543210" in line for line in _processes_of(state)))
        os.kill(served.pid, signal.SIGKILL)
    _eventually(lambda: not _processes_of(state))
    adb("disconnect", phone.serial)


def test_a_taken_port_is_an_error_that_says_so(state: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InfrastructureError, match=f"cannot listen on 127.0.0.1:{port}") as caught:
            spawn([_spec("s24")], state, timeout_s=60, ports={"s24": port})
    assert "Address already in use" in str(caught.value)
    assert _processes_of(state) == []


def test_ports_can_be_chosen_and_folders_be_deep(state: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    deep = state / ("deeper_than_a_socket_address_reaches/" * 3)
    with spawn([_spec("s24")], deep, timeout_s=60, ports={"s24": port}) as served:
        assert served.ports == {"s24": port}
        control(served.root("s24"), "drop")


def test_an_id_that_is_a_path_is_refused(state: Path) -> None:
    with pytest.raises(InfrastructureError, match=r"device id '../s24' cannot name a folder"):
        spawn([_spec("../s24")], state / "inner", timeout_s=60)
    assert not (state / "s24").exists()


def test_a_lab_that_is_too_slow_is_an_error_and_leaves_nothing(state: Path) -> None:
    with pytest.raises(InfrastructureError, match="nothing in 0 s"):
        spawn([_spec("s24")], state, timeout_s=0)
    assert _processes_of(state) == []


def test_a_device_without_anybody_to_serve_it_says_so(state: Path) -> None:
    with pytest.raises(InfrastructureError, match="does not answer"):
        control(state / "nobody", "drop")


# Mount namespaces


def _run_on(view: View, root: Path, command: str) -> str:
    environment = {"PATH": os.environ["PATH"]}
    return subprocess.run(
        view.argv(command), env=environment, cwd=root, capture_output=True, text=True, timeout=30, check=True
    ).stdout


async def _open_and_run(root: Path, namespace: bool | None, command: str) -> tuple[View, str]:
    view = await open_view(root, namespace=namespace)
    try:
        return view, await asyncio.to_thread(_run_on, view, root, command)
    finally:
        await view.close()


@pytest.fixture
def root(state: Path) -> Path:
    where = state.resolve() / "s24"
    for folder in DEVICE_FOLDERS:
        (where / folder).mkdir(parents=True)
    return where


def test_a_user_without_privileges_gets_a_namespace(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this kernel or container forbids user namespaces")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (root / "script").write_text("echo one > /data/x; cat /data/x; touch /y || echo read-only")
    view, said = asyncio.run(_open_and_run(root, True, f"sh {root}/script 2>/dev/null"))
    assert isinstance(view, MountNamespace)
    assert "--user" in view.enter
    assert said == "one\nread-only\n"
    assert (root / "data/x").read_text() == "one\n"
    assert not (root / "y").exists()


def test_where_namespaces_are_forbidden_commands_are_rewritten(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "unshare").write_text(
        "#!/bin/sh\necho 'unshare failed: Operation not permitted' >&2; exit 1\n"
    )
    (tmp_path / "unshare").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    view, said = asyncio.run(_open_and_run(root, None, "echo one > /data/x; cat /data/x"))
    assert view == Rewriting(root)
    assert said == "one\n"
    with pytest.raises(InfrastructureError, match="Operation not permitted"):
        asyncio.run(open_view(root, namespace=True))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(InfrastructureError, match="No such file or directory"):
        asyncio.run(open_view(root, namespace=True))


def test_a_root_folder_the_device_would_hide_gets_no_namespace() -> None:
    root = Path("/data/ci/s24")
    assert asyncio.run(open_view(root, namespace=None)) == Rewriting(root)
    with pytest.raises(InfrastructureError, match="would be hidden by the device's own /data"):
        asyncio.run(open_view(root, namespace=True))


def test_a_root_folder_that_needs_quoting_is_refused_where_it_cannot_be_quoted() -> None:
    with pytest.raises(InfrastructureError, match="cannot be put into shell commands"):
        Rewriting(Path("/tmp/it's"))
