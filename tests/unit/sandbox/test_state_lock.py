"""A worker is dead when its lock is free, and the next one knows its token."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from codegen_mcp.sandbox.state_lock import is_alive, worker_token

HOLD = (
    "import fcntl, os, sys\n"
    "lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
    "fcntl.flock(lock, fcntl.LOCK_EX)\n"
    "print('held', flush=True)\n"
    "sys.stdin.read()\n"
)


def test_the_lock_tells_a_living_worker_from_a_killed_one(tmp_path: Path) -> None:
    assert not is_alive(tmp_path)
    argv = [sys.executable, "-IS", "-c", HOLD, str(tmp_path / "lock")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"held\n"
        assert is_alive(tmp_path)
        assert is_alive(tmp_path)
        worker.kill()
    assert not is_alive(tmp_path)


def test_the_token_is_made_once_and_kept(tmp_path: Path) -> None:
    token = worker_token(tmp_path)
    assert len(token) == 16
    assert worker_token(tmp_path) == token
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
    other = tmp_path / "other"
    other.mkdir()
    assert worker_token(other) != token


def test_a_damaged_token_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("../../somewhere\n")
    assert worker_token(tmp_path) == worker_token(tmp_path)
    assert len(worker_token(tmp_path)) == 16
