from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pytest_devicelab.cluster import head as module
from pytest_devicelab.cluster.head import HeadWatch
from pytest_devicelab.cluster.ray_edge import answers
from pytest_devicelab.errors import InfrastructureError


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POLL_S", 0.001)
    monkeypatch.setattr(module, "PATIENCE_S", 0.05)


def test_a_head_that_falls_silent_is_lost_and_left_once(monkeypatch: pytest.MonkeyPatch) -> None:
    silent, left = threading.Event(), threading.Event()
    monkeypatch.setattr(module, "answers", lambda address: not silent.is_set())
    watch = HeadWatch("10.0.0.1:6379", left.set)
    assert not left.wait(0.2)
    early = watch.lost
    silent.set()
    watch.wait_left()
    assert left.is_set()
    assert (early, watch.lost) == (False, True)
    assert isinstance(watch.error(), InfrastructureError)
    assert "10.0.0.1:6379 is gone" in str(watch.error())


def test_a_head_that_only_stumbles_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, enough = [0], threading.Event()

    def answers(address: str) -> bool:
        asked[0] += 1
        if asked[0] == 20:
            enough.set()
        return asked[0] % 2 == 0

    monkeypatch.setattr(module, "PATIENCE_S", 60.0)
    monkeypatch.setattr(module, "answers", answers)
    watch = HeadWatch("10.0.0.1:6379", lambda: None)
    assert enough.wait(30)
    watch.close()
    watch.wait_left()
    assert not watch.lost


def test_who_takes_connections_and_says_nothing_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_devicelab.cluster.ray_edge._ANSWERS_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:  # as the kernel does for a process that is stopped
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert not answers(address)
        server.accept()[0].close()

        def speak() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"settings")
                connection.recv(100)

        speaker = threading.Thread(target=speak)
        speaker.start()
        assert answers(address)
        speaker.join()
    assert not answers(address)


def test_a_node_ends_with_the_lab_host_that_was_killed(tmp_path: Path) -> None:
    scripts = tmp_path / "ray" / "scripts"
    scripts.mkdir(parents=True)
    for package in (scripts.parent, scripts):
        (package / "__init__.py").touch()
    (scripts / "scripts.py").write_text("""
import signal, sys

def cli():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(f"ended, after {sys.argv[1:]}"))
    print("up", flush=True)
    while True:
        signal.pause()
""")
    node = subprocess.Popen(
        [sys.executable, "-m", "pytest_devicelab.cluster.node", "--address=h:1"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(module.__file__).parents[2]}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with node:
        assert node.stdout is not None
        assert node.stdin is not None
        assert node.stderr is not None
        assert node.stdout.readline() == b"up\n"
        node.stdin.close()
        assert node.wait(30) == 1
        assert node.stderr.read() == b"ended, after ['start', '--block', '--address=h:1']\n"


@pytest.mark.parametrize(("shutdown", "status"), [("threading.Event().wait()", 1), ("print('left')", 0)])
def test_a_process_ends_though_ray_waits_for_a_silent_head(shutdown: str, status: int) -> None:
    program = f"""
import atexit, sys, threading, types
def shutdown():
    with lock:
        {shutdown}
lock = threading.Lock()
ray = sys.modules["ray"] = types.ModuleType("ray")
ray.shutdown = shutdown
atexit.register(shutdown)  # as Ray does
from pytest_devicelab.cluster import ray_edge
ray_edge._LEAVE_S = 0.2
ray_edge.leave()
print("said all", end="")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    assert done.returncode == status, done.stderr
    assert b"said all" in done.stdout


def test_without_ray_nothing_asks_for_it() -> None:
    """Every module of the cluster can be imported where Ray is not installed, and says so only when it is used."""
    program = """
import sys
sys.modules["ray"] = None  # `import ray` now fails
import pytest_devicelab.plugin
from importlib.util import find_spec
assert not [name for name in sys.modules if name.startswith("pytest_devicelab.cluster")]
import pytest_devicelab.cluster.executor, pytest_devicelab.cluster.join, pytest_devicelab.cluster.unit
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
