"""Landlock, in forked children that confine themselves."""

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from codegen_mcp.sandbox import landlock

pytestmark = pytest.mark.skipif(landlock.abi() < 1, reason="this kernel has no Landlock")
SYSTEM = [("/usr", landlock.RUN), ("/lib", landlock.RUN), ("/lib64", landlock.RUN)]


def confined(work: Callable[[], object]) -> str:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            said = repr(work())
        except BaseException as error:
            said = f"{type(error).__name__} {error}"
        os.write(writer, said.encode()[:4000])
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(pid, 0)
    return said


def tried(action: Callable[[], object]) -> str:
    try:
        action()
    except OSError as error:
        return type(error).__name__
    return "done"


def test_only_what_the_rules_name_can_be_read_and_written(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    for directory in (inside, outside):
        directory.mkdir()
        (directory / "file").write_text("x")

    def work() -> list[str]:
        landlock.restrict([*SYSTEM, (str(inside), landlock.WRITE), ("/nonexistent", 1)])
        return [
            tried(lambda: (inside / "file").read_text()),
            tried(lambda: (inside / "new").write_text("y")),
            tried(lambda: (outside / "file").read_text()),
            tried(lambda: (outside / "new").write_text("y")),
            tried(lambda: os.listdir(outside)),
            tried(lambda: os.mknod(inside / "dev", 0o60600, os.makedev(1, 1))),
        ]

    refused = "PermissionError"
    assert confined(work) == repr(["done", "done", refused, refused, refused, refused])


def test_a_file_may_be_named_and_a_read_only_tree_is_read_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").write_text("x")

    def work() -> list[str]:
        rules = [(str(tmp_path / "file"), landlock.READ), ("/dev/null", landlock.DEVICE)]
        landlock.restrict([*SYSTEM, *rules])
        return [
            tried(lambda: (tmp_path / "file").read_text()),
            tried(lambda: (tmp_path / "file").write_text("y")),
            tried(lambda: (tmp_path / "other").read_text()),
            tried(lambda: Path("/dev/null").write_text("y")),
        ]

    assert confined(work) == repr(["done", "PermissionError", "PermissionError", "done"])


@pytest.mark.skipif(landlock.abi() < 4, reason="Landlock covers TCP from version 4 on")
def test_tcp_is_refused() -> None:
    with socket.socket() as service:
        service.bind(("127.0.0.1", 0))
        service.listen()

        def work() -> list[str]:
            landlock.restrict(SYSTEM)
            return [
                tried(lambda: socket.socket().connect(service.getsockname())),
                tried(lambda: socket.socket().bind(("127.0.0.1", 0))),
            ]

        assert confined(work) == repr(["PermissionError", "PermissionError"])


@pytest.mark.skipif(
    landlock.abi() < landlock.SIGNAL_SCOPE, reason="Landlock covers signals from version 6 on"
)
def test_signals_reach_only_what_starts_below() -> None:
    def work() -> list[object]:
        landlock.scope_signals()
        child = os.fork()
        if child == 0:
            signal.pause()
        os.kill(child, signal.SIGKILL)
        return [
            os.WTERMSIG(os.waitpid(child, 0)[1]),
            tried(lambda: os.kill(os.getppid(), 0)),
            tried(lambda: Path("/etc/hostname").exists()),
        ]

    assert confined(work) == repr([9, "PermissionError", "done"])


def test_a_kernel_without_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    with pytest.raises(OSError, match="no Landlock"):
        landlock.restrict([])
    assert not landlock.scope_signals()
